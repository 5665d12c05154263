"""The yaml files of options, one folder a group: those that al_bench brings, and those of a user's own folder."""

from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf


def conf_dir() -> Path:
    """conf/ inside the installed wheel, or beside the package in a checkout."""
    package = Path(__file__).parent
    return package / "conf" if (package / "conf").is_dir() else package.parent / "conf"


def files_by_group(own: str | None) -> dict[str, dict[str, Path]]:
    """The file of each option by group, of al_bench and of the user's own folder."""
    groups: dict[str, dict[str, Path]] = {}
    for folder in filter(None, (conf_dir(), own and Path(own))):
        for file in sorted(folder.glob("**/*.yaml")):
            if group := file.parent.relative_to(folder).as_posix().removeprefix("."):
                groups.setdefault(group, {})[file.stem] = file
    return groups


def whole_strategies() -> list[str]:
    """The names of the strategies that al_bench brings and whose files leave no setting to the user."""
    return sorted(name for name, file in files_by_group(None)["strategy"].items() if "???" not in file.read_text())


@cache  # a sweep asks for each of its runs
def shipped(group: str, name: str) -> dict[str, Any] | None:
    """The settings of the option `name` that al_bench brings in this group; None if it brings none."""
    if (file := files_by_group(None)[group].get(name)) is None:
        return None
    settings = OmegaConf.to_container(OmegaConf.load(file))
    return settings.get(group, settings)  # a global file has the group's name above its settings
