"""What is set for the whole process: by `prepare` alone, in the command's process and in those that it starts."""

import json
import subprocess
import sys

import pytest

LOOK = """
import json, logging, os, warnings

def state():
    patterns = [str(getattr(f[1], "pattern", "")) for f in warnings.filters]
    return {
        "levels": [logging.getLogger(name).level for name in ("al_bench", "pytorch_lightning", "lightning_fabric")],
        "quiet": [sum(word in pattern for pattern in patterns) for word in ("many workers", "Glyph")],
        "caches": [os.environ.get(k) for k in ("LRU_CACHE_CAPACITY", "ONEDNN_PRIMITIVE_CACHE_CAPACITY")],
    }
"""
PREPARED = {"levels": [10, 30, 30], "quiet": [1, 1], "caches": ["256", "256"]}


def states(code, folder):
    """What the code prints, a JSON line each."""
    done = subprocess.run([sys.executable, "-c", LOOK + code], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def test_an_import_sets_nothing_and_preparing_twice_is_as_good_as_once(tmp_path):
    code = """
import pytorch_lightning, torch
before = (os.environ.copy(), torch.get_num_threads())
print(json.dumps(state()))
import al_bench.cli, al_bench.loop, al_bench.plan, al_bench.sweep, al_bench.tracking, al_bench.analysis.report
from al_bench import process
from hydra.core.plugins import Plugins
assert before == (os.environ.copy(), torch.get_num_threads())
assert "hydra_plugins.al_bench.Sweeper" not in Plugins.instance().class_name_to_class
print(json.dumps(state()))
for _ in range(2):
    process.prepare()
    print(json.dumps(state()))
"""
    lightning_alone, imported, *prepared = states(code, tmp_path)
    assert imported == lightning_alone and imported["quiet"] == [0, 0]
    assert prepared == [PREPARED] * 2


@pytest.mark.parametrize("worker", [False, True])
def test_the_command_and_a_worker_that_was_given_its_function_are_prepared(tmp_path, worker):
    """A sweep's launcher calls the function behind `cli.run` in a process in which `cli.main` has not run.

    The run ends as soon as Lightning, which sets log levels of its own, is imported: there is no reference.
    """
    code = f"""
import sys
from hydra import compose, initialize_config_dir
from al_bench import cli
from al_bench.options import conf_dir
ask = ["budget.stop.at=test", "results_dir=."]
sys.argv[1:] = ask
if {worker}:
    from hydra.core.hydra_config import HydraConfig
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        HydraConfig.instance().set_config(compose("config", return_hydra_config=True))
        cfg = compose("config", ask)
try:
    cli.run.__wrapped__(cfg) if {worker} else cli.main()
except SystemExit as end:
    assert "needs the full-data reference" in str(end)
assert "pytorch_lightning" in sys.modules
print(json.dumps(state()))
"""
    (state,) = states(code, tmp_path)
    assert state == PREPARED


@pytest.mark.parametrize("computing, said", [(True, "said\n"), (False, "said\nlate\n")])
def test_the_command_ends_at_once_where_a_thread_still_computes(computing, said):
    code = f"""
import atexit, threading, time
from al_bench import process
atexit.register(print, "late")
if {computing}:
    threading.Thread(target=time.sleep, args=(30,), name=process.COMPUTING, daemon=True).start()
print("said")
process.end(3)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (3, said, "")
