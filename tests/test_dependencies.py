"""What is installed with al_bench: never a release that was tampered with, by no way round."""

import tomllib
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]


def asked(lines: list[str], extras: frozenset[str] = frozenset()) -> list[Requirement]:
    """The requirements that hold on this machine, with these extras."""
    found = map(Requirement, lines)
    return [r for r in found if not r.marker or any(r.marker.evaluate({"extra": e}) for e in extras | {""})]


def brought_by(requirements: list[Requirement]) -> set[str]:
    """The names of all packages that come along, by what the installed ones say of themselves."""
    left, seen = list(requirements), set()
    while left:
        r = left.pop()
        key = (canonicalize_name(r.name), frozenset(r.extras))
        if key in seen:
            continue
        seen.add(key)
        try:
            left += asked(requires(r.name) or [], key[1])
        except PackageNotFoundError:
            continue  # of an extra that is not installed here
    return {name for name, _ in seen}


def test_lightning_is_never_installed_along():
    stated = [*PROJECT["dependencies"], *(line for lines in EXTRAS.values() for line in lines)]
    assert {"pytorch-lightning", "torch", "tensorboard", "lightning-utilities"} <= brought_by(asked(stated))
    assert "lightning" not in brought_by(asked(stated))
    assert "lightning" not in {canonicalize_name(Requirement(line).name) for line in [*stated, *requires("al-bench")]}
    assert "lightning" not in brought_by([Requirement(f"al-bench[{','.join(EXTRAS)}]")])


def test_the_walk_follows_extras_of_extras():
    assert "lightning" in brought_by([Requirement("lightning")])
    assert "tensorboard" in brought_by([Requirement("al-bench[tensorboard]")])
    assert "tensorboard" not in brought_by([Requirement("al-bench")])


@pytest.mark.parametrize("release, allowed", [("2.5", True), ("2.6.1", True), ("2.6.2", False), ("2.6.3", False)])
def test_releases_of_pytorch_lightning_that_were_tampered_with_are_excluded(release, allowed):
    (ours,) = [r for r in map(Requirement, PROJECT["dependencies"]) if r.name == "pytorch-lightning"]
    assert ours.specifier.contains(release) == allowed and not ours.extras
    assert ours.specifier.contains(version("pytorch-lightning"))
