"""Observations of several parts, such as a state and cameras, packed in rows of bytes.

A row stays a row: sampling, gathering, memory mapping and prefetching do not know what is in it. Only the edges do:
sources pack, networks unpack, and rewards and policies of your own get and take dictionaries.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from cvl_pipeline.errors import InputError, unknown_name

ALIGNMENT = 4
"""Bytes of a float32: every row, and so every vector in it, begins at a multiple of this."""
DTYPES = {"float32": torch.float32, "uint8": torch.uint8}


@dataclass(frozen=True)
class Part:
    """One part of an observation.

    Attributes:
        name: such as ``state`` or ``images.wrist``.
        shape: (O,) of a vector, or (H, W, C) of an image.
        dtype: ``float32`` of a vector, ``uint8`` of an image.
    """

    name: str
    shape: tuple[int, ...]
    dtype: Literal["float32", "uint8"]

    def __post_init__(self) -> None:
        """Raise InputError unless this is a vector or an image, with a name."""
        object.__setattr__(self, "shape", tuple(int(size) for size in self.shape))
        if not isinstance(self.name, str) or not self.name:
            raise InputError(f"observations: the name of a part is {self.name!r}; give a text")
        axes = {"float32": 1, "uint8": 3}.get(self.dtype)
        if axes != len(self.shape) or min(self.shape) < 1:
            raise InputError(
                f"observations: part '{self.name}' is {self.dtype} of shape {self.shape}; a part is a vector, (O,) "
                "float32, or an image, (height, width, channels) uint8"
            )

    @property
    def image(self) -> bool:
        """Whether this is an image."""
        return self.dtype == "uint8"

    @property
    def nbytes(self) -> int:
        """Bytes in a row."""
        return math.prod(self.shape) * DTYPES[self.dtype].itemsize


class _Place(NamedTuple):
    part: Part
    bytes: slice
    statistics: slice
    numbers: slice


@dataclass(frozen=True)
class Layout:
    """The parts of an observation, and where each is in a packed row of B bytes.

    Vectors come first, so that they begin at multiples of four bytes; otherwise, parts keep their order. Rows are
    padded to a multiple of four bytes with zeros.

    Attributes:
        parts: in their order in a row.
    """

    parts: tuple[Part, ...]

    def __post_init__(self) -> None:
        """Order the parts; raise InputError if there are none, or two have the same name."""
        parts = tuple(sorted(self.parts, key=lambda part: part.image))
        object.__setattr__(self, "parts", parts)
        twice = {name for name in self.names if self.names.count(name) > 1}
        if not parts or twice:
            fault = f"two parts are called '{min(twice)}'" if twice else "there are no parts"
            raise InputError(f"observations: {fault}")

    @classmethod
    def from_plain(cls, values: Iterable[Mapping[str, Any]]) -> Layout:
        """Undo ``plain``."""
        return cls(tuple(Part(**value) for value in values))

    def plain(self) -> list[dict[str, Any]]:
        """Plain values, for JSON."""
        return [{**asdict(part), "shape": list(part.shape)} for part in self.parts]

    @classmethod
    def of(cls, observations: Mapping[str, Any], leading: int = 1) -> Layout:
        """Layout of dictionaries of arrays or tensors.

        Arrays of bytes with three axes are images. All other numbers are vectors.

        Args:
            observations: arrays by name of the part.
            leading: axes before those of the part; 1: rows.

        Raises:
            InputError: a part is neither a vector nor an image.
        """
        return cls(tuple(cls._part_of(name, array, leading) for name, array in observations.items()))

    @staticmethod
    def _part_of(name: str, array: Any, leading: int) -> Part:
        values = array if isinstance(array, Tensor) else np.asarray(array)
        shape = tuple(values.shape[leading:])
        image = len(shape) == 3 and values.dtype in (np.uint8, torch.uint8)
        numbers = isinstance(values, Tensor) or values.dtype.kind in "biuf"
        if not image and (len(shape) != 1 or not numbers):
            raise InputError(
                f"observations: part '{name}' is {values.dtype} of shape {shape}; a part is a vector, (O,) numbers, or "
                "an image, (height, width, channels) uint8"
            )
        return Part(name, shape, "uint8" if image else "float32")

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the parts, in their order in a row."""
        return tuple(part.name for part in self.parts)

    @property
    def images(self) -> bool:
        """Whether any part is an image."""
        return any(part.image for part in self.parts)

    @cached_property
    def nbytes(self) -> int:
        """Bytes in a row, B."""
        return -(-sum(part.nbytes for part in self.parts) // ALIGNMENT) * ALIGNMENT

    @cached_property
    def _places(self) -> dict[str, _Place]:
        places, first, number, value = {}, 0, 0, 0
        for part in self.parts:
            end, after, last = first + part.nbytes, number + part.shape[-1], value + math.prod(part.shape)
            places[part.name] = _Place(part, slice(first, end), slice(number, after), slice(value, last))
            first, number, value = end, after, last
        return places

    def __getitem__(self, name: str) -> Part:
        """The part of that name; raises InputError if there is none."""
        return self._place(name).part

    def _place(self, name: str) -> _Place:
        if name not in self._places:
            raise unknown_name("part of the observations", str(name), list(self.names))
        return self._places[name]

    def statistics_of(self, name: str) -> slice:
        """Where the mean or standard deviation of a part is among those of all parts.

        It has one number per dimension of a vector, and one per channel of an image.
        """
        return self._place(name).statistics

    def pack(self, observations: Mapping[str, Any], out: Tensor | None = None) -> Tensor:
        """Pack parts into rows of bytes.

        Args:
            observations: arrays or tensors by name, (..., *shape of the part); the leading axes are those of all parts.
            out: (..., B) uint8, in which to write the rows, such as part of a mapped file; None: new memory.

        Returns:
            (..., B) uint8; ``out``, if it is given.

        Raises:
            InputError: a part is missing, or there is one too many; another shape; values that a part cannot hold.
        """
        unknown = [name for name in observations if name not in self._places]
        missing = [name for name in self.names if name not in observations]
        if unknown or missing:
            fault = (
                f"lack {', '.join(missing)}" if missing else f"have {', '.join(map(str, unknown))} too many"
            )
            raise InputError(f"observations {fault}; the parts are {', '.join(self.names)}")
        values = {
            name: self._converted(part, observations[name]) for name, (part, *_) in self._places.items()
        }
        leading = {name: value.shape[: value.ndim - len(self[name].shape)] for name, value in values.items()}
        first = self.names[0]
        for name, shape in leading.items():
            if shape != leading[first]:
                raise InputError(
                    f"observations: '{name}' has {tuple(shape)} rows, but '{first}' {tuple(leading[first])}; give the "
                    "same number"
                )
        if out is None:
            out = torch.zeros((*leading[first], self.nbytes), dtype=torch.uint8)
        for name, value in values.items():
            part, place, *_ = self._places[name]
            flat = value.reshape(*leading[first], math.prod(part.shape)).contiguous()
            if flat.numel():  # strides of empty arrays may be 0
                out[..., place] = flat.view(torch.uint8)
        return out

    def _converted(self, part: Part, array: Any) -> Tensor:
        """Values of a part, (..., *shape), in its type."""
        values = array if isinstance(array, Tensor) else torch.from_numpy(_numbers(part.name, array))
        if tuple(values.shape[max(0, values.ndim - len(part.shape)) :]) != part.shape:
            raise InputError(
                f"observations: '{part.name}' has shape {tuple(values.shape)}; it must be {part.shape}, or several"
            )
        if not part.image or values.dtype == torch.uint8:
            return values.to(DTYPES[part.dtype])
        pixels = values.clamp(0, 255).to(torch.uint8)
        if not torch.equal(pixels.to(values.dtype), values):
            raise InputError(
                f"observations: '{part.name}' are images: their values must be whole numbers from 0 to 255"
            )
        return pixels

    def part(self, packed: Tensor, name: str) -> Tensor:
        """One part of packed rows, (..., B) -> (..., *shape); a view where the memory of a vector is aligned.

        Rows of ``numbers``, (..., N), have the same parts, with images as float32.

        Raises:
            InputError: there is no part of that name.
        """
        part, place, _, numbers = self._place(name)
        if packed.is_floating_point():
            return packed[..., numbers].unflatten(-1, part.shape)  # type: ignore[no-untyped-call, no-any-return]
        values = packed[..., place]
        if part.image:
            return values.unflatten(-1, part.shape)  # type: ignore[no-untyped-call, no-any-return]
        steps = values.storage_offset(), *values.stride()[:-1]
        if values.stride(-1) != 1 or any(step % ALIGNMENT for step in steps):
            values = values.clone(memory_format=torch.contiguous_format)
        return values.view(torch.float32)

    def numbers(self, observations: Mapping[str, Tensor]) -> Tensor:
        """Rows of float32 instead of bytes, of all parts, (..., *shape) -> (..., N).

        Networks take them as they take packed rows, with the same results. An exported program needs them, because it
        cannot read bytes as float32.
        """
        parts = (observations[part.name].flatten(-len(part.shape)).float() for part in self.parts)
        return torch.cat(list(parts), dim=-1)

    def unpack(self, packed: Tensor) -> dict[str, Tensor]:
        """All parts of packed rows, (..., B) -> (..., *shape) each, by name; see ``part``."""
        return {name: self.part(packed, name) for name in self.names}

    def select(self, packed: Tensor, names: Iterable[str]) -> tuple[Layout, Tensor]:
        """Layout and packed rows of some of the parts, (..., B) -> (..., B').

        Raises:
            InputError: there is no part of such a name.
        """
        chosen = Layout(tuple(self[name] for name in names))
        return chosen, chosen.pack({name: self.part(packed, name) for name in chosen.names})

    @cached_property
    def twice(self) -> Layout:
        """Layout of ``beside``: every part with twice the dimensions or channels."""
        parts = (Part(part.name, (*part.shape[:-1], 2 * part.shape[-1]), part.dtype) for part in self.parts)
        return Layout(tuple(parts))

    def beside(self, first: Tensor, second: Tensor) -> Tensor:
        """Rows with the parts of two side by side, (..., B) and (..., B) -> (..., B'), packed or of ``numbers``."""
        pairs = {
            name: torch.cat([self.part(first, name), self.part(second, name)], dim=-1) for name in self.names
        }
        if first.is_floating_point():
            return self.twice.numbers(pairs)
        rows = next(iter(pairs.values())).shape[: first.ndim - 1]
        out = torch.zeros((*rows, self.twice.nbytes), dtype=torch.uint8, device=first.device)
        return self.twice.pack(pairs, out)

    def first_of(self, pairs: Tensor) -> Tensor:
        """The first of the rows that ``beside`` put together, (..., B') -> (..., B), packed or of ``numbers``."""
        parts = {
            name: self.twice.part(pairs, name)[..., : self[name].shape[-1]].contiguous()
            for name in self.names
        }
        if pairs.is_floating_point():
            return self.numbers(parts)
        out = torch.zeros((*pairs.shape[:-1], self.nbytes), dtype=torch.uint8, device=pairs.device)
        return self.pack(parts, out)


def beside(first: Tensor, second: Tensor, layout: Layout | None = None) -> Tensor:
    """Two observations side by side, such as a state and a goal.

    Vectors (..., O) become (..., 2 O), and images (..., H, W, C) become (..., H, W, 2 C). With a layout, every part
    does.

    Args:
        first: an observation, or many.
        second: as many.
        layout: of packed observations; None: they are one vector or one image.
    """
    return torch.cat([first, second], dim=-1) if layout is None else layout.beside(first, second)


def shape_beside(shape: tuple[int, ...], layout: Layout | None) -> tuple[tuple[int, ...], Layout | None]:
    """Shape and layout of ``beside``, for observations of a shape and a layout."""
    if layout is None:
        return (*shape[:-1], 2 * shape[-1]), None
    return (layout.twice.nbytes,), layout.twice


def named_parts(shape: tuple[int, ...], layout: Layout | None) -> tuple[Part, ...]:
    """The parts of observations of a shape. Without a layout it is one, called ``image`` or ``state``."""
    if layout is not None:
        return layout.parts
    return (Part("image", shape, "uint8") if len(shape) == 3 else Part("state", shape, "float32"),)


def unpacked(observations: Tensor, layout: Layout | None) -> Any:
    """Observations as users see them: a dictionary of parts, or the tensor itself if there is no layout."""
    return observations if layout is None else layout.unpack(observations)


def _numbers(name: str, values: Any) -> np.ndarray[Any, Any]:
    array = np.asarray(values)
    if array.dtype.kind not in "biuf":
        raise InputError(f"observations: '{name}' are {array.dtype}, not numbers")
    if array.dtype.kind in "f" and array.dtype.itemsize not in (4, 8):
        array = array.astype(np.float32)
    if array.dtype.kind == "u" and array.dtype.itemsize > 1:
        array = array.astype(np.float64)
    # torch takes neither read-only nor foreign-endian arrays, nor negative strides, such as of a flipped picture.
    whole = array.flags.writeable and array.dtype.isnative and min(array.strides, default=0) >= 0
    return array if whole else np.array(array, array.dtype.newbyteorder("="), order="C")
