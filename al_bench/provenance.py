"""When, where and by which versions something was run. Nothing here imports torch."""

import ast
import functools
import hashlib
import importlib.metadata
import importlib.util
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


def n_cores() -> int:
    """The cores that this process may use: fewer than the machine has where its affinity says so."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def strategy_version(settings: dict[str, Any]) -> dict[str, str] | None:
    """Which functions a strategy's settings name, and the checksum of their code; None where they name none.

    settings: every dotted path among them counts. Code: the lines of the function and of what it uses of its own file,
    docstrings aside, so another strategy in that file is no change.
    """
    places = {place for value in _leaves(settings) if isinstance(value, str) and (place := _place(value))}
    if not places:
        return None
    code = sorted((f"{name} in {file.name}", _definition(_source(file), name)) for file, name in places)
    return {
        "files": ", ".join(place for place, _ in code),
        "checksum": hashlib.sha256("\n".join(text for _, text in code).encode()).hexdigest(),
    }


def file_version(path: str) -> str | None:
    """sha256:<hex> of a file's content; None where it cannot be read."""
    file = Path(path).expanduser()
    try:
        facts = file.stat()
        return _file_version(file, (facts.st_ino, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns))
    except OSError:
        return None


@functools.lru_cache
def _file_version(file: Path, state: tuple[int, ...]) -> str:
    """state: a changed file has another, and is read again."""
    with open(file, "rb") as content:
        return f"sha256:{hashlib.file_digest(content, 'sha256').hexdigest()}"


def _leaves(settings: Any) -> Iterator[Any]:
    if isinstance(settings, dict | list):
        for value in settings.values() if isinstance(settings, dict) else settings:
            yield from _leaves(value)
    else:
        yield settings


def _place(path: str) -> tuple[Path, str] | None:
    """The file and the name in it that a dotted path leads to. Imports nothing."""
    top, *names = path.split(".")
    try:
        spec = importlib.util.find_spec(top) if names else None
        if not spec:
            return None
        if not spec.submodule_search_locations:
            file = Path(spec.origin or "")
            return (file, names[0]) if file.suffix == ".py" and file.is_file() else None
        return next(filter(None, (_below(Path(folder), names) for folder in spec.submodule_search_locations)), None)
    except (ImportError, ValueError, OSError):  # no module's name, or no file's
        return None


def _below(folder: Path, names: list[str]) -> tuple[Path, str] | None:
    """In a package's folder."""
    first, *rest = names
    if (folder / f"{first}.py").is_file():
        return (folder / f"{first}.py", rest[0]) if rest else None
    if rest and (folder / first).is_dir():
        return _below(folder / first, rest)
    return (folder / "__init__.py", first) if (folder / "__init__.py").is_file() else None


@functools.cache  # as it was when this process first asked: what it imported does not change either
def _source(file: Path) -> str:
    return file.read_text(encoding="utf-8", errors="replace")


@functools.lru_cache
def _definition(source: str, name: str) -> str:
    """The lines that define a name, and in turn what those use of the same file; all lines where it is not found."""
    try:
        statements = ast.parse(source).body
    except (SyntaxError, ValueError):
        return source
    defining: dict[str, list[ast.stmt]] = {}
    for statement in statements:
        for bound in _bound(statement):
            defining.setdefault(bound, []).append(statement)
    todo, used = [name], set()
    while todo:
        for statement in defining.get(todo.pop(), []):
            if statement not in used:
                used.add(statement)
                todo += [node.id for node in ast.walk(statement) if isinstance(node, ast.Name)]
    if not used:
        return source
    wanted = {line for statement in used for line in _lines(statement)}
    return "\n".join(text for line, text in enumerate(source.split("\n"), 1) if line in wanted)


def _bound(statement: ast.stmt) -> set[str]:
    """The names of the module that a statement gives a meaning, or may change."""
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return {statement.name}
    nodes = list(ast.walk(statement))
    names = {node.id for node in nodes if isinstance(node, ast.Name)}
    names |= {(node.asname or node.name).split(".")[0] for node in nodes if isinstance(node, ast.alias)}
    return names | {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)}


def _lines(statement: ast.stmt) -> set[int]:
    """Its line numbers, decorators included, docstrings on lines of their own not."""
    decorators = [node.lineno for node in getattr(statement, "decorator_list", [])]
    lines = set(range(min([statement.lineno, *decorators]), statement.end_lineno + 1))
    for node in ast.walk(statement):
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and ast.get_docstring(node, clean=False) is not None:
            docstring, *rest = node.body
            if docstring.lineno > node.lineno and (not rest or rest[0].lineno > docstring.end_lineno):
                lines -= set(range(docstring.lineno, docstring.end_lineno + 1))
    return lines


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*:\s*(.+)", cpuinfo.read_text()) if cpuinfo.exists() else []
    return names[0] if names else platform.processor() or platform.machine()


def _git_commit() -> str | None:
    """The commit of the checkout this package lies in, None for an installed wheel; with a + where al_bench/ or conf/,
    on which a run depends, differ from it."""
    root = Path(__file__).parents[1]
    if not (root / ".git").exists():
        return None

    def git(*words: str) -> str:
        asked = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, timeout=10)
        return asked.stdout.strip()

    try:
        commit = git("rev-parse", "HEAD")
        return f"{commit}{'+' if git('status', '--porcelain', '--', 'al_bench', 'conf') else ''}" if commit else None
    except (OSError, subprocess.TimeoutExpired):
        return None


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
