"""Random shifts of images, the augmentation of DrQ (Kostrikov, Yarats and Fergus, ICLR 2021)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator, Tensor

from cvl_pipeline.episodes.container import Transitions
from cvl_pipeline.errors import InputError

PLACES = 2
"""Observations that a row of a batch has at most: a state, and a future one, a next one or a goal."""


def random_shift(transitions: Transitions, pixels: int) -> RandomShift | None:
    """Random shifts of up to so many pixels; None if there are none."""
    return RandomShift(transitions, pixels) if pixels else None


class RandomShift:
    """Shifts the images of a batch by random whole pixels; pixels from beyond the edge are those of the edge.

    It is the same as padding by replication and cropping at a random place. Each image of each row has a shift of its
    own.
    """

    def __init__(self, transitions: Transitions, pixels: int) -> None:
        """Remember what observations are.

        Args:
            transitions: episodes whose observations are images, or have some.
            pixels: largest shift in each direction.

        Raises:
            InputError: there are no images.
        """
        layout = transitions.parts
        if not transitions.images and not (layout and layout.images):
            raise InputError(
                f"training.random_shift is {pixels}, but no observation is an image: leave it out, or set it to 0"
            )
        self._layout, self._pixels = layout, pixels
        self._images = [part.name for part in layout.parts if part.image] if layout else [""]

    def draw(self, count: int, generator: Generator) -> Tensor:
        """Draw shifts of ``count`` rows, (count, PLACES, images, 2) int64 from -pixels to pixels, down and right."""
        shape = (count, PLACES, len(self._images), 2)
        low, high = -self._pixels, self._pixels + 1
        return torch.randint(low, high, shape, generator=generator, device=generator.device)

    def changed(self, observations: Tensor, noise: Tensor, place: int) -> Tensor:
        """Shift images (B, H, W, C), or those in packed rows (B, N), by the shifts of a place; returns a copy."""
        if self._layout is None:
            return _shifted(observations, noise[:, place, 0])
        parts = self._layout.unpack(observations)
        for number, name in enumerate(self._images):
            parts[name] = _shifted(parts[name], noise[:, place, number])
        return self._layout.pack(parts, torch.zeros_like(observations))


def _shifted(images: Tensor, shifts: Tensor) -> Tensor:
    """Images (B, H, W, C), each shifted by its own (B, 2)."""
    rows, columns = (
        (torch.arange(size, device=images.device) + shifts[:, axis : axis + 1]).clamp_(0, size - 1)
        for axis, size in enumerate(images.shape[1:3])
    )
    index = torch.arange(len(images), device=images.device)
    shifted: Any = images[index[:, None, None], rows[:, :, None], columns[:, None, :]]
    return shifted  # type: ignore[no-any-return]
