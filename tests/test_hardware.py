import os

import pytest
import torch
from test_learner import configured

from al_bench.models import hardware

pytestmark = pytest.mark.usefixtures("one_thread")


def test_precision_auto_is_bf16_where_the_processor_multiplies_matrices_in_it(monkeypatch):
    t = configured("trainer.precision=auto").trainer
    with_amx = {"avx512_bf16": True, "amx_bf16": True}
    for able, expected in [({"avx512_bf16": True}, "32-true"), (with_amx, "bf16-mixed"), ({}, "32-true")]:
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda able=able: able, raising=False)
        assert hardware.precision(t) == expected
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert hardware.precision(t) == "32-true"


def test_a_run_is_one_process_also_within_a_slurm_job(tmp_path, monkeypatch):
    (tmp_path / "srun").write_text("#!/bin/sh")
    (tmp_path / "srun").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    for name, value in {"JOB_ID": "1", "NTASKS": "4", "JOB_NAME": "sweep", "PROCID": "3", "LOCALID": "3"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    trainer = hardware.new_trainer(configured().trainer)
    assert (trainer.world_size, trainer.global_rank) == (1, 0)
