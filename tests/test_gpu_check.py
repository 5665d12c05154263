"""The small checks of scripts/gpu_check.py on this CPU, and what it says where a check fails or no GPU is there."""

import json
import sys
from pathlib import Path

import gpu_check
import pytest
import torch
import warm

from al_bench.options import whole_strategies

SCRIPT = Path(__file__).parents[1] / "scripts" / "gpu_check.py"

pytestmark = pytest.mark.xdist_group("commands")  # the tests share the process that forks


def test_all_checks_pass_on_a_cpu_with_small_sizes_and_say_what_they_found(tmp_path):
    out = tmp_path / "gpu_check.json"
    done = warm.run(tmp_path, "--device=cpu", f"--out={out}", script=SCRIPT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "All checks passed on cpu."
    found = json.loads(out.read_text())
    assert found["device"] == "cpu" and found["machine"]["versions"]["torch"] in torch.__version__
    assert found["checks"].keys() == {"resume", "memory", "throughput", "strategies", "precision"}
    checks = found["checks"]
    assert all(check["passed"] is True for check in checks.values())
    (resumed,) = checks["resume"]["rows"]
    assert resumed["equal"] and 1 <= resumed["rounds_before_kill"] < resumed["rounds"] == 4
    (used,) = checks["memory"]["rows"]
    assert 0 < used["peak_MB"] <= 2 * used["estimate_MB"] == 2 * sum(used["parts_MB"].values())
    assert len(checks["throughput"]["rows"]) == 6
    assert all(row["ours"] > 0 and row["bare"] > 0 for row in checks["throughput"]["rows"])
    assert checks["strategies"]["seconds"].keys() == {*whole_strategies()}
    assert checks["precision"]["accuracy"].keys() == {"32-true", "bf16-mixed"}


def test_a_check_that_fails_or_breaks_leaves_the_others_and_the_exit_code_is_1(tmp_path, monkeypatch, capsys):
    def fails(place):
        return {"passed": False, "rows": [{"what": "a net", "ratio": 0.123}]}

    def breaks(place):
        raise RuntimeError("no memory")

    def passes(place):
        return {"passed": True}

    monkeypatch.setattr(gpu_check, "CHECKS", (fails, breaks, passes))
    monkeypatch.setattr(sys, "argv", ["gpu_check.py", "--device=cpu", f"--out={tmp_path / 'found.json'}"])
    with pytest.raises(SystemExit) as end:
        gpu_check.main()
    assert end.value.code == "gpu_check: failed on cpu: fails, breaks."
    checks = json.loads((tmp_path / "found.json").read_text())["checks"]
    assert [check["passed"] for check in checks.values()] == [False, False, True]
    assert checks["breaks"]["error"] == "RuntimeError: no memory"
    assert "FAIL  fails" in (out := capsys.readouterr().out) and "a net: ratio 0.12" in out


def test_only_a_loop_that_is_slow_by_both_measures_is_too_slow():
    rows = [
        {"what": "a large net", "ratio": 0.9, "extra_ms_per_batch": 9.0},
        {"what": "a tiny net", "ratio": 0.2, "extra_ms_per_batch": 0.5},
        {"what": "a slow loop", "ratio": 0.7, "extra_ms_per_batch": 3.0},
    ]
    assert gpu_check.slow(rows) == ["a slow loop"]


def test_a_strategy_that_breaks_is_named_and_the_others_choose(tmp_path, monkeypatch):
    shipped = {"random": {"_target_": "no_such_module.random", "name": "random"}}
    monkeypatch.setattr(
        gpu_check, "shipped", lambda group, name: shipped.get(name) or {"_target_": f"{__name__}.first", "name": name}
    )
    found = gpu_check.strategies(gpu_check.Place(torch.device("cpu"), gpu_check.SMALL, tmp_path))
    assert not found["passed"] and list(found["failed"]) == ["random"]
    assert found["failed"]["random"].startswith("UserError: strategy random: no_such_module.random cannot be loaded")
    assert len(found["seconds"]) > 30


def first(view, k, rng):
    return torch.arange(k)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_it_says_so(capsys):
    assert gpu_check.find_device("auto").type == "cpu"
    assert capsys.readouterr().out.startswith("No GPU is checked: ")
    with pytest.raises(SystemExit, match="gpu_check: no GPU to check: "):
        gpu_check.find_device("cuda")
