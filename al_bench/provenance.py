"""When, where and by which versions something was run. This module does not import torch."""

import ast
import functools
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import socket
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import al_bench

# Files of al_bench/strategies: the start of a checksum, and that of a later file by which the same images are chosen. A
# run that began with the earlier one goes on. An entry is for a change of how strategies are loaded, and for no other.
CHOOSE_ALIKE = {"fe2d3447c64cb5a7": "299285689cabe6a9"}


def circumstances() -> dict[str, Any]:
    packages = ("torch", "torchvision", "pytorch-lightning", "timm", "numpy", "scikit-learn")
    return {
        "time": now(),
        "host": socket.gethostname(),
        "python": platform.python_version(),
        "versions": {"al-bench": al_bench.__version__} | {p: importlib.metadata.version(p) for p in packages},
        "git": _git_commit(),
        "cpu": _cpu_name(),
        "cores": n_cores(),
    }


def machine() -> dict[str, Any]:
    """What a published measurement was made with: the circumstances without when and on which host."""
    return {name: fact for name, fact in circumstances().items() if name not in ("time", "host")}


def n_cores() -> int:
    """The number of cores that this process may use. Its affinity may allow fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def code_version(settings: dict[str, Any]) -> dict[str, Any] | None:
    """The checksums of the modules that the settings of a strategy or a net lead to, and one checksum of all.

    Every text among the settings that is a dotted path leads to the module that holds what it names. The modules of
    al_bench.strategies that these import, directly or indirectly, count as well. Whole files are compared: a changed
    comment, or a change of another function in the file, makes another version. None if no text is a dotted path.
    """
    texts = (value for value in _leaves(settings) if isinstance(value, str))
    modules = dict(filter(None, map(_module_of, texts)))
    todo = [*modules.values()]
    while todo:
        for name, file in _imported(_source(todo.pop())).items():
            if name not in modules:
                modules[name] = file
                todo.append(file)
    if not modules:
        return None
    sums = {name: hashlib.sha256(_source(file).encode()).hexdigest() for name, file in sorted(modules.items())}
    return {"modules": sums, "checksum": hashlib.sha256(json.dumps(sums).encode()).hexdigest()}


def version_of(code: dict[str, Any]) -> str:
    """The checksum of what code_version returned. Files that CHOOSE_ALIKE have the same."""
    if not code.get("modules"):
        return code["checksum"]
    starts = {name: checksum[:16] for name, checksum in code["modules"].items()}
    modules = {name: CHOOSE_ALIKE.get(start, start) for name, start in starts.items()}
    return hashlib.sha256(json.dumps(modules).encode()).hexdigest()


@functools.cache
def own_code() -> str:
    """sha256 over all Python files of al_bench, also of a checkout with changes that are not committed."""
    package = Path(__file__).parent
    files = {str(file.relative_to(package)): _source(file) for file in sorted(package.rglob("*.py"))}
    return hashlib.sha256(json.dumps(files).encode()).hexdigest()


def file_version(path: str) -> str | None:
    """sha256:<hex> of a file's content; None if it cannot be read."""
    try:
        return f"sha256:{sha256_of(Path(path).expanduser())}"
    except OSError:
        return None


def sha256_of(file: Path) -> str:
    """sha256 of a file's content, computed once for each file as it is now. Raises OSError."""
    facts = file.stat()
    return _sha256_of(file, (facts.st_ino, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns))


@functools.cache
def _sha256_of(file: Path, state: tuple[int, ...]) -> str:
    """Cached by `state`: a changed file has another state and is read again."""
    with open(file, "rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _leaves(settings: Any) -> Iterator[Any]:
    if isinstance(settings, dict | list):
        for value in settings.values() if isinstance(settings, dict) else settings:
            yield from _leaves(value)
    else:
        yield settings


def _module_of(path: str) -> tuple[str, Path] | None:
    """The module that a dotted path leads into, and its file; None for other texts. It imports nothing."""
    top, *names = path.split(".")
    try:
        spec = importlib.util.find_spec(top) if names else None
        if not spec:
            return None
        if not spec.submodule_search_locations:
            file = Path(spec.origin or "")
            return (top, file) if file.suffix == ".py" and file.is_file() else None
        found = (_below(top, Path(folder), names) for folder in spec.submodule_search_locations)
        return next(filter(None, found), None)
    except (ImportError, ValueError, OSError):  # not the name of a module, or not of a file
        return None


def _below(package: str, folder: Path, names: list[str]) -> tuple[str, Path] | None:
    """The same for the names that follow the name of a package. The package lies in this folder."""
    first, *rest = names
    if (folder / f"{first}.py").is_file():
        return (f"{package}.{first}", folder / f"{first}.py") if rest else None
    if rest and (folder / first).is_dir():
        return _below(f"{package}.{first}", folder / first, rest)
    return (package, folder / "__init__.py") if (folder / "__init__.py").is_file() else None


@functools.cache  # cached: what the process has imported does not change either
def _source(file: Path) -> str:
    return file.read_text(encoding="utf-8", errors="replace")


@functools.cache
def _imported(source: str) -> dict[str, Path]:
    """The modules of al_bench.strategies that a Python file imports anywhere in it, with their files."""
    try:
        nodes = list(ast.walk(ast.parse(source)))
    except (SyntaxError, ValueError):
        return {}
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return {name: file for name, file in _strategy_modules().items() if name in names}


@functools.cache
def _strategy_modules() -> dict[str, Path]:
    files = (Path(__file__).parent / "strategies").glob("*.py")
    return {f"al_bench.strategies.{file.stem}".removesuffix(".__init__"): file for file in files}


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*:\s*(.+)", cpuinfo.read_text()) if cpuinfo.exists() else []
    return names[0] if names else platform.processor() or platform.machine()


def _git_commit() -> str | None:
    """The commit of the checkout that holds this package; None for an installed wheel.

    A + is added if al_bench/ or conf/, on which a run depends, differ from the commit.
    """
    root = Path(__file__).parents[1]
    if not (root / ".git").exists():
        return None

    def git(*words: str) -> str:
        done = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, timeout=10)
        return done.stdout.strip()

    try:
        commit = git("rev-parse", "HEAD")
        return f"{commit}{'+' if git('status', '--porcelain', '--', 'al_bench', 'conf') else ''}" if commit else None
    except (OSError, subprocess.TimeoutExpired):
        return None


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
