"""Batches: tensors, and tuples and dataclasses of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor


def mapped(batch: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Change every tensor of a batch; raise TypeError if it is not made of tensors."""
    if isinstance(batch, Tensor):
        return change(batch)
    if isinstance(batch, tuple):
        return tuple(mapped(part, change) for part in batch)
    if is_dataclass(batch) and not isinstance(batch, type):
        parts = {field.name: mapped(getattr(batch, field.name), change) for field in fields(batch)}
        return replace(batch, **parts)
    raise TypeError(f"a batch is a {type(batch).__name__}")


def columns(batch: Any) -> list[Tensor]:
    """The tensors of a batch."""
    tensors: list[Tensor] = []
    mapped(batch, lambda column: tensors.append(column) or column)  # type: ignore[func-returns-value]
    return tensors


def stacked(batches: Sequence[Any]) -> Any:
    """One batch, each of whose tensors stacks those of all batches, (B, ...) -> (batches, B, ...)."""
    return _filled(batches[0], [torch.stack(column) for column in zip(*map(columns, batches), strict=True)])


def unstacked(batch: Any) -> list[Any]:
    """Undo ``stacked``; the tensors of the batches are parts of the given ones."""
    return [_filled(batch, row) for row in zip(*(column.unbind() for column in columns(batch)), strict=True)]


def _filled(batch: Any, tensors: Iterable[Tensor]) -> Any:
    """A batch like the given one, of other tensors."""
    rest = iter(tensors)
    return mapped(batch, lambda _: next(rest))
