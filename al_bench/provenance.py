"""When, where and by which versions something was run. Nothing here imports torch."""

import importlib.metadata
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


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*:\s*(.+)", cpuinfo.read_text()) if cpuinfo.exists() else []
    return names[0] if names else platform.processor() or platform.machine()


def _git_commit() -> str | None:
    """The commit of the checkout this package lies in, with a + where files differ; None for an installed wheel."""
    root = Path(__file__).parents[1]
    if not (root / ".git").exists():
        return None
    try:
        ask = ["git", "-C", str(root), "describe", "--always", "--abbrev=40", "--dirty=+", "--exclude=*"]
        return subprocess.run(ask, capture_output=True, text=True, timeout=10).stdout.strip() or None
    except (OSError, subprocess.TimeoutExpired):
        return None


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
