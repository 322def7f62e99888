from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Generator, Tensor, nn

from cvl_pipeline.testing.builders import training_parameters
from cvl_pipeline.training.fit import fit
from cvl_pipeline.training.module import OfflineModule
from cvl_pipeline.training.threads import OPERATIONS_PER_THREAD, dense_operations, mapped, threads_for

POLICY = """
import os, sys
{first}
import cvl_pipeline
print(os.environ.get("OMP_WAIT_POLICY"))
print("torch" in sys.modules)
"""


@pytest.fixture(autouse=True)
def four_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("share", "threads"), [(0.0, 1), (1.9, 1), (2.0, 2), (3.5, 3), (100.0, 4)])
def test_every_thread_has_enough_work_and_there_are_no_more_than_torch_has(
    share: float, threads: int
) -> None:
    with threads_for(share * OPERATIONS_PER_THREAD):
        assert torch.get_num_threads() == threads
    assert torch.get_num_threads() == 4


def test_the_number_is_restored_after_an_error() -> None:
    with pytest.raises(RuntimeError), threads_for(0.0):
        raise RuntimeError
    assert torch.get_num_threads() == 4


def test_the_users_number_of_threads_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    with threads_for(0.0):
        assert torch.get_num_threads() == 4


def test_dense_layers_take_six_operations_per_weight_and_row() -> None:
    assert dense_operations(nn.Linear(3, 4, bias=False), 10) == 6 * 3 * 4 * 10


class Product(OfflineModule):
    """One matrix product per step, (B, 1000) by (1000, 1000), and the number of threads of every step."""

    def __init__(self, fails: bool = False, **training: Any) -> None:
        super().__init__(training_parameters(steps=3, validation_interval=3, **training), 0)
        self.weight = nn.Parameter(torch.zeros(1000, 1000))
        self.threads: list[int] = []
        self.fails = fails

    def draw(self, batches: int, generator: Generator) -> list[None]:
        return [None] * batches

    def training_loss(self, batch: None) -> tuple[Tensor, dict[str, Tensor]]:
        self.threads.append(torch.get_num_threads())
        if self.fails and self.global_step == 2:
            raise RuntimeError("failed")
        return (torch.ones(self.training_parameters.batch_size, 1000) @ self.weight).sum(), {}

    def validation_metrics(self, generator: Generator) -> dict[str, Tensor]:
        return {}


# The gradient of the weights is one more product; the inputs need none, but an estimate cannot know that.
@pytest.mark.parametrize(("batch", "counted", "threads"), [(16, True, 1), (300, True, 2), (300, False, 3)])
def test_training_takes_as_many_threads_as_its_steps_are_worth(
    batch: int, counted: bool, threads: int
) -> None:
    module = Product(batch_size=batch)
    module.graphable = counted
    fit(module, description="test")
    assert module.threads[-3:] == [threads] * 3
    assert len(module.threads) == 3 + counted  # a step that may have effects is taken once
    assert torch.get_num_threads() == 4


def test_the_number_is_restored_after_training_that_failed() -> None:
    with pytest.raises(RuntimeError, match="failed"):
        fit(Product(fails=True, batch_size=16), description="test")
    assert torch.get_num_threads() == 4


def test_training_keeps_the_users_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    module = Product(batch_size=16)
    fit(module, description="test")
    assert module.threads == [4] * 3  # and no step is taken to count its operations


@pytest.mark.parametrize(
    ("first", "own", "expected"),
    [
        ("", {}, ["PASSIVE", "False"]),
        ("import torch", {}, ["None", "True"]),
        ("", {"OMP_WAIT_POLICY": "active"}, ["active", "False"]),
        ("", {"GOMP_SPINCOUNT": "7"}, ["None", "False"]),
        ("", {"KMP_BLOCKTIME": "1"}, ["None", "False"]),
    ],
)
def test_waiting_threads_sleep_unless_the_user_says_otherwise(
    first: str, own: dict[str, str], expected: list[str]
) -> None:
    names = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
    environment = {name: value for name, value in os.environ.items() if name not in names}
    command = [sys.executable, "-c", POLICY.format(first=first)]
    result = subprocess.run(command, capture_output=True, text=True, check=True, env=environment | own)
    assert result.stdout.split() == expected


def test_parts_are_mapped_in_their_order_without_gradients_by_as_many_threads_as_torch_has() -> None:
    seen: set[tuple[int, int]] = set()
    barrier = threading.Barrier(2, timeout=60)

    def double(part: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        if len(seen) < 2:
            seen.add((threading.get_ident(), torch.get_num_threads()))
            barrier.wait()  # both threads are at work
        return (part * weight + other).sum()

    weight = torch.tensor(2.0, requires_grad=True)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        parts = torch.split(torch.arange(12.0), 3)
        results = mapped(double, parts, parts, device=torch.device("cpu"))
    finally:
        torch.set_num_threads(before)
    assert [float(result) for result in results] == [9.0, 36.0, 63.0, 90.0]
    assert not any(result.requires_grad for result in results)
    assert len({thread for thread, _ in seen}) == 2
    assert {count for _, count in seen} == {1}


def test_an_error_in_a_part_is_raised() -> None:
    def fail(part: torch.Tensor) -> None:
        raise ValueError(f"part {int(part[0])}")

    with pytest.raises(ValueError, match="part 0"):
        mapped(fail, torch.split(torch.arange(4), 1), device=torch.device("cpu"))
