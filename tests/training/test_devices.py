from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from cvl_pipeline.training.devices import available_cores, visible_devices


@pytest.mark.parametrize(
    ("value", "expected"),
    [("2,5", ("2", "5")), ("", ()), ("-1", ()), ("GPU-5e1, GPU-7f0", ("GPU-5e1", "GPU-7f0"))],
)
def test_devices_are_those_that_the_user_lets_be_seen(
    monkeypatch: pytest.MonkeyPatch, value: str, expected: tuple[str, ...]
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
    assert visible_devices() == expected


@pytest.mark.parametrize("driver", ["/dev/nvidiactl", "/dev/kfd", "/dev/dxg", None])
def test_gpus_of_every_vendor_are_counted(monkeypatch: pytest.MonkeyPatch, driver: str | None) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(Path, "exists", lambda path: str(path) == driver)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert visible_devices() == (("0", "1") if driver else ())


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="the system does not say it")
def test_cores_are_those_that_this_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5, 7})
    assert available_cores() == 3
