"""When, where and by which versions something was run. Nothing here imports torch."""

import hashlib
import importlib.metadata
import importlib.util
import os
import platform
import re
import socket
import subprocess
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
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
    }


def own_code(settings: dict[str, Any]) -> dict[str, str] | None:
    """The files outside this package that hold a strategy's functions, and their checksum; None where there are none.

    settings: a strategy's; every dotted path among them counts.
    """
    files = {file for value in settings.values() if isinstance(value, str) and (file := _file_of(value))}
    if not files:
        return None
    contents = "".join(hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(files))
    return {
        "files": ", ".join(sorted(file.name for file in files)),
        "checksum": hashlib.sha256(contents.encode()).hexdigest(),
    }


def _file_of(path: str) -> Path | None:
    """Of the module in a dotted path, which a class may follow."""
    while path := path.rpartition(".")[0]:
        try:
            spec = importlib.util.find_spec(path)
        except (ImportError, ValueError):  # a class is no package
            continue
        file = Path(spec.origin) if spec and spec.origin else None
        return file if file and file.is_file() and Path(__file__).parent not in file.resolve().parents else None
    return None


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
