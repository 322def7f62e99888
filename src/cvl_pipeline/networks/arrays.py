"""NumPy arrays that a user gives to a network."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from cvl_pipeline.episodes.parts import Layout
from cvl_pipeline.errors import InputError, one_line


def pieces(rows: Tensor, size: int) -> tuple[Tensor, ...]:
    """Split rows, (B, ...) -> at most ``size`` each, to limit the memory; a program that is exported has one piece.

    Its number of rows is not known, so it could not be split.
    """
    return (rows,) if torch.compiler.is_exporting() else torch.split(rows, size)


def as_rows(
    values: ArrayLike | Mapping[str, ArrayLike],
    shape: tuple[int, ...],
    name: str,
    network: str,
    layout: Layout | None = None,
) -> Tensor:
    """Return numbers of any type as float32, images as uint8, and parts as packed rows.

    Args:
        values: one row, of that shape, or many, (B, *shape); or such arrays by name of the part.
        shape: of one row; three axes are an image.
        name: of the values, for errors, such as ``observations``.
        network: what takes them, for errors, such as ``policy``.
        layout: the parts; None: there are none.

    Raises:
        InputError: the values lack a part, are rows of unequal shapes, have another shape, are not finite numbers, or
            are images whose values are not whole numbers from 0 to 255.
    """
    if isinstance(values, Mapping) != (layout is not None):
        parts = f"give arrays by name of the part: {', '.join(layout.names)}" if layout else "give an array"
        raise InputError(
            f"{name} are {type(values).__name__}, but this {network} was trained on others; {parts}"
        )
    if layout is not None and isinstance(values, Mapping):
        missing = [part for part in layout.names if part not in values]
        if missing:
            raise InputError(f"{name} lack {', '.join(missing)}; give the parts {', '.join(layout.names)}")
        known = {part.name: part.shape for part in layout.parts}
        return layout.pack(
            {
                part: as_rows(value, known[part], f"{name}['{part}']", network) if part in known else value
                for part, value in values.items()
            }
        )
    try:
        rows = np.asarray(values.detach().cpu() if isinstance(values, Tensor) else values)
    except (RuntimeError, TypeError, ValueError) as error:
        raise InputError(
            f"{name} are {type(values).__name__}, which makes no array of numbers ({one_line(error)}); give rows of "
            "equal shapes"
        ) from error
    if rows.dtype.kind not in "biuf":
        raise InputError(f"{name} are {rows.dtype}, not numbers")
    if rows.shape[-len(shape) :] != shape or rows.ndim - len(shape) not in (0, 1):
        many = ", ".join(str(size) for size in ("B", *shape))
        raise InputError(f"{name} have shape {rows.shape}; this {network} takes {shape} or ({many})")
    images = len(shape) == 3
    with np.errstate(over="ignore", invalid="ignore"):
        narrow = np.array(rows, dtype=np.uint8 if images else np.float32)
    if not (np.isfinite(rows).all() and np.isfinite(narrow).all()):
        raise InputError(f"{name} hold a value that is not a finite number in single precision")
    if images and not np.array_equal(narrow, rows):
        raise InputError(f"{name} are images: their values must be whole numbers from 0 to 255")
    return torch.from_numpy(narrow)
