from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from benchmarks import scaling, speed


def test_two_processes_are_compared_with_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scaling, "STEPS", 4)
    speed.write_log(tmp_path, episodes=10, steps=20)
    threads, variable = torch.get_num_threads(), os.environ.get("OMP_NUM_THREADS")
    one, two = scaling.weak_scaling(tmp_path, 32)
    assert (one["processes"], one["batch"], one["efficiency"]) == (1, 32, 1.0)
    assert (two["processes"], two["batch"]) == (2, 64)
    assert two["efficiency"] == pytest.approx(two["steps_per_second"] / one["steps_per_second"])
    assert (torch.get_num_threads(), os.environ.get("OMP_NUM_THREADS")) == (threads, variable)
