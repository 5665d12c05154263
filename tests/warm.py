"""`python -m al_bench` without the seconds that its imports take: one process imports, and forks for each command.

A forked command is a process of its own, with its own folder, environment, signals and exit code. It cannot show how
the command starts, and which modules it imports: tests of those start Python.

As a script, this file is the process that forks. Its standard input is a socket: it reads there what to run, and writes
the exit code.
"""

import atexit
import gc
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from functools import cache
from pathlib import Path

import numpy

# What commands import. Hydra looks for its plugins in each command.
MODULES = ("al_bench.cli", "al_bench.loop", "al_bench.plan", "al_bench.check.command", "al_bench.analysis.report",
           "al_bench.analysis.status", "hydra_plugins.hydra_joblib_launcher.joblib_launcher")  # fmt: skip


@cache
def server() -> socket.socket:
    """The process that forks. It ends when this one does, for its socket is closed then."""
    ours, its = socket.socketpair()
    process = subprocess.Popen([sys.executable, __file__], stdin=its, start_new_session=True)
    its.close()
    atexit.register(process.wait)
    atexit.register(ours.close)
    return ours


def run(
    folder: Path, *arguments: str, script: Path | None = None, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """One command, or a script that calls it. Output and exit code come back as from subprocess.run."""
    env = dict(os.environ if env is None else env)
    asked = {"folder": str(folder), "arguments": arguments, "script": script and str(script), "env": env}
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        files = [0, out.fileno(), err.fileno()]
        text = json.dumps(asked).encode()
        socket.send_fds(server(), [len(text).to_bytes(8)], files)
        server().sendall(text)
        code = server().recv(100)
        assert code, "the process that forks itself has ended"
        out.seek(0)
        err.seek(0)
        return subprocess.CompletedProcess(arguments, int(code), out.read(), err.read())


def serve() -> None:
    asked_for = socket.socket(fileno=os.dup(0))
    for name in MODULES:
        __import__(name)
    gc.freeze()  # a collection in a child would copy all of these pages
    while True:
        length, files, *_ = socket.recv_fds(asked_for, 8, 3)
        if not length:
            return
        text = b""
        while len(text) < int.from_bytes(length):
            text += asked_for.recv(1 << 16)
        if not (child := os.fork()):
            asked_for.close()
            return become(files, **json.loads(text))
        for file in files:
            os.close(file)
        _, status = os.waitpid(child, 0)
        asked_for.sendall(str(os.waitstatus_to_exitcode(status)).encode())


def become(files: list[int], folder: str, arguments: list[str], script: str | None, env: dict[str, str]) -> None:
    """The command itself. First what Python does before it runs a module or a script."""
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(env)
    sys.argv[1:] = arguments
    sys.path[0] = os.path.dirname(script) if script else folder
    signal.signal(signal.SIGINT, signal.default_int_handler)
    numpy.random.seed()  # else what is not seeded would be equal in all of them; random does it by itself
    code = 0
    try:
        if script:
            runpy.run_path(script, run_name="__main__")
        else:
            runpy.run_module("al_bench", run_name="__main__", alter_sys=True)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int | None) else print(end.code, file=sys.stderr) or 1
    # Python's own end would also free all modules, which copies their memory and takes as long as a short command.
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    os._exit(code or 0)


if __name__ == "__main__":
    serve()
