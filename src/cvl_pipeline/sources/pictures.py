"""Pictures of videos and of compressed images, decoded by PyAV, which the extra ``lerobot`` installs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from cvl_pipeline.errors import InputError, missing_extra, one_line
from cvl_pipeline.io.storage import check_file, shown

Array = NDArray[Any]

TOLERANCE = 0.25
"""Share of the time between two pictures by which a picture may be early or late."""
FAR = 2.0
"""Seconds from which a video is wound forward instead of decoded."""
CODECS = {b"\x89PNG": "png", b"\xff\xd8": "mjpeg"}
"""Decoders of compressed images by their first bytes."""


def import_av() -> Any:
    """Return PyAV.

    Raises:
        InputError: it is not installed.
    """
    try:
        import av
        import av.logging
    except ImportError as error:
        raise missing_extra("lerobot", error) from error
    # Without messages, which decoding threads could only write while Python runs: closing a damaged video waits for
    # these threads, and would never end. Errors are raised all the same.
    av.logging.set_level(None)
    return av


def resized(pictures: Array, size: tuple[int, int] | None) -> Array:
    """Return pictures at a size; each new pixel is the mean of those that it covers.

    Args:
        pictures: (N, H, W, C) uint8.
        size: height and width; None: as they are.
    """
    if size is None or pictures.shape[1:3] == size:
        return pictures
    channels_first = torch.from_numpy(pictures).permute(0, 3, 1, 2).float()
    means = functional.interpolate(channels_first, size=size, mode="area")
    return means.round_().to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()


def decode_images(images: Iterable[Any], place: str) -> Array:
    """Decode compressed images.

    Args:
        images: the bytes of a PNG or JPEG file each; None: it is missing.
        place: name of the images in errors.

    Returns:
        (N, H, W, 3) uint8.

    Raises:
        InputError: an image is missing, damaged, of another format, or of another size than the first.
    """
    av = import_av()
    pictures: list[Array] = []
    for number, data in enumerate(images):
        where = f"{place}, image {number} (the first is 0)"
        codec = next((codec for start, codec in CODECS.items() if (data or b"").startswith(start)), None)
        if codec is None:
            raise InputError(f"{where}: is no PNG or JPEG image; embed the bytes of the image files")
        try:
            decoder = av.CodecContext.create(codec, "r")
            frames = [*decoder.decode(av.Packet(data)), *decoder.decode(None)]
            picture = frames[0].to_ndarray(format="rgb24")
        except Exception as error:  # a damaged image can raise any error of its decoder
            raise InputError(
                f"{where}: cannot be decoded ({one_line(error)[:200]}); write it again"
            ) from error
        if pictures and picture.shape != pictures[0].shape:
            raise InputError(
                f"{where}: is {picture.shape[0]} x {picture.shape[1]} pixels, but the one before "
                f"{pictures[0].shape[0]} x {pictures[0].shape[1]}; record one size"
            )
        pictures.append(picture)
    return np.stack(pictures)


class Videos:
    """Pictures of the videos of one camera, in the order in which they were recorded; one video is open at a time."""

    def __init__(self, rate: float) -> None:
        """Open nothing yet.

        Args:
            rate: pictures per second.
        """
        self._rate = rate
        self._path: Path | None = None
        self._container: Any = None
        self._pictures: Iterator[Any] = iter(())
        self._time = -np.inf
        self._picture: Any = None

    def __enter__(self) -> Videos:
        """Return this."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the video."""
        self._close()

    def at(self, path: Path, times: Array, size: tuple[int, int] | None = None) -> Array:
        """Decode the pictures at ascending times.

        Args:
            path: an MP4 file.
            times: (N,) seconds.
            size: height and width of the result; None: those of the video.

        Returns:
            (N, H, W, 3) uint8.

        Raises:
            InputError: PyAV is not installed; the video is missing, damaged or too short, or has no picture at a time.
        """
        try:
            self._go_to(path, float(times[0]))
            pictures = [self._at(path, float(time)) for time in times]
        except InputError:
            raise
        except Exception as error:  # a damaged video can raise any error of its decoder
            raise InputError(
                f"{shown(path)}: cannot be decoded ({one_line(error)[:200]}); it is damaged or incomplete, so download "
                "or record it again"
            ) from error
        return resized(np.stack(pictures), size)

    def _go_to(self, path: Path, time: float) -> None:
        margin = TOLERANCE / self._rate
        if path != self._path or time < self._time - margin:
            self._open(path)
        if time > max(self._time, 0.0) + FAR:
            stream = self._container.streams.video[0]
            self._container.seek(int((time - margin) / stream.time_base), backward=True, stream=stream)
            self._pictures, self._time = self._container.decode(stream), -np.inf

    def _open(self, path: Path) -> None:
        self._close()
        check_file(path)
        if not path.exists():
            raise InputError(f"{shown(path)} does not exist; download or record the dataset again")
        # The format is given: other formats of FFmpeg are lists that name other files.
        self._container = import_av().open(str(path), format="mp4")
        if not self._container.streams.video:
            raise InputError(f"{shown(path)}: has no pictures; record the dataset again")
        stream = self._container.streams.video[0]
        self._path, self._time, self._pictures = path, -np.inf, self._container.decode(stream)

    def _at(self, path: Path, time: float) -> Array:
        margin = TOLERANCE / self._rate
        while self._time < time - margin:
            picture = next(self._pictures, None)
            if picture is None:
                raise InputError(
                    f"{shown(path)}: ends at {max(self._time, 0):.3f} seconds, but the log has a frame at {time:.3f}; "
                    "the video is incomplete, so download or record it again"
                )
            if picture.pts is not None:
                self._picture, self._time = picture, float(picture.pts * picture.time_base)
        if self._time > time + margin:
            raise InputError(
                f"{shown(path)}: has no picture at {time:.3f} seconds, where the log has a frame (the next is at "
                f"{self._time:.3f}); the video and the log do not belong together"
            )
        pixels: Array = self._picture.to_ndarray(format="rgb24")
        return pixels

    def _close(self) -> None:
        if self._container is not None:
            with suppress(Exception):  # it was only read
                self._container.close()
        self._path = self._container = None


def encode_image(picture: Array) -> bytes:
    """Return a picture, (H, W, 3) uint8, as the bytes of a PNG file."""
    av = import_av()
    encoder = av.CodecContext.create("png", "w")
    encoder.height, encoder.width = picture.shape[:2]
    encoder.pix_fmt, encoder.time_base = "rgb24", Fraction(1)
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
    return b"".join(bytes(packet) for packet in (*encoder.encode(frame), *encoder.encode(None)))
