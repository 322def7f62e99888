from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from cvl_pipeline.training.batches import columns, mapped, stacked, unstacked


@dataclass(frozen=True)
class Pair:
    left: Tensor
    right: Tensor


def batch(number: int) -> tuple[Pair, Tensor]:
    return Pair(torch.full((2, 3), float(number)), torch.full((2,), number)), torch.tensor([number > 1, True])


def test_every_tensor_is_changed() -> None:
    pair, flags = mapped(batch(3), lambda column: column + column)
    assert torch.equal(pair.left, torch.full((2, 3), 6.0))
    assert torch.equal(pair.right, torch.tensor([6, 6]))
    assert torch.equal(flags, torch.tensor([True, True]))
    assert len(columns(batch(3))) == 3


def test_stacked_batches_can_be_parted_again() -> None:
    batches = [batch(number) for number in range(4)]
    whole = stacked(batches)
    assert [tuple(column.shape) for column in columns(whole)] == [(4, 2, 3), (4, 2), (4, 2)]
    for part, original in zip(unstacked(whole), batches, strict=True):
        assert isinstance(part[0], Pair)
        for one, other in zip(columns(part), columns(original), strict=True):
            assert torch.equal(one, other)
            assert one.dtype == other.dtype


def test_other_things_are_no_batch() -> None:
    with pytest.raises(TypeError, match="a batch is a str"):
        mapped((torch.zeros(1), "a"), torch.clone)
