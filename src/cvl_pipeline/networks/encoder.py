"""Encoders: the first part of every network, from observations to features."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import replace
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from cvl_pipeline.episodes.container import Normalisation
from cvl_pipeline.episodes.parts import Layout
from cvl_pipeline.errors import InputError, unknown_name
from cvl_pipeline.imports import check_return
from cvl_pipeline.networks.arrays import pieces
from cvl_pipeline.networks.mlp import Standardise
from cvl_pipeline.networks.parameters import (
    ENCODERS,
    AutomaticEncoderParameters,
    ConvolutionalEncoderParameters,
    EncoderParameters,
    IdentityEncoderParameters,
    MLPEncoderParameters,
    ResNetEncoderParameters,
)

PIECE = 1 << 22
"""Numbers in the images that are encoded at once, where no gradient keeps them all: faster than many at once, too."""
SMALLEST = 6
"""Side length, in pixels, at or below which convolutions do not halve an image."""


class Encoder(nn.Module, ABC):
    """An encoder from standardised observations to features.

    To add your own, extend this class and give it a model ``Parameters`` with its settings.
    """

    Parameters: ClassVar[type[EncoderParameters]] = EncoderParameters
    features: int
    """Size of the output, which the constructor sets."""

    @abstractmethod
    def __init__(self, parameters: Any, shape: tuple[int, ...]) -> None:
        """Build the layers.

        Args:
            parameters: an instance of ``Parameters``.
            shape: shape of one observation: (O,), or (H, W, C) for an image.

        Raises:
            InputError: the encoder does not support this shape.
        """
        super().__init__()

    @abstractmethod
    def forward(self, observations: Tensor) -> Tensor:
        """Encode standardised observations, (B, O) or (B, H, W, C) -> (B, features)."""


def _check_axes(name: str, shape: tuple[int, ...], axes: int) -> None:
    """Raise InputError unless an observation has as many axes: one of a vector, or three of an image."""
    if len(shape) != axes:
        kind = "images" if axes == 3 else "vectors"
        raise InputError(f"encoder '{name}' needs {kind}, but observations have shape {shape}; use auto")


class IdentityEncoder(Encoder):
    """Identity, for vectors."""

    Parameters = IdentityEncoderParameters

    def __init__(self, parameters: IdentityEncoderParameters, shape: tuple[int, ...]) -> None:
        """Check the shape."""
        super().__init__(parameters, shape)
        _check_axes("identity", shape, 1)
        self.features = shape[0]

    def forward(self, observations: Tensor) -> Tensor:
        """Return the observations, (B, O) -> (B, O)."""
        return observations


class ConvolutionalEncoder(Encoder):
    """Convolutions of stride 2, for images.

    They halve the image until a side has at most SMALLEST pixels. A linear layer, LayerNorm and tanh give the
    features a fixed size and scale.
    """

    Parameters = ConvolutionalEncoderParameters

    def __init__(self, parameters: ConvolutionalEncoderParameters, shape: tuple[int, ...]) -> None:
        """Build the layers for images (H, W, C)."""
        super().__init__(parameters, shape)
        _check_axes("convolutional", shape, 3)
        height, width, channels = shape
        layers: list[nn.Module] = []
        while min(height, width) > SMALLEST:
            layers += [nn.Conv2d(channels, parameters.channels, 3, stride=2, padding=1), nn.ReLU()]
            height, width, channels = math.ceil(height / 2), math.ceil(width / 2), parameters.channels
        self.features = parameters.features
        self.layers = nn.Sequential(*layers, *_head(height * width * channels, self.features))

    def forward(self, observations: Tensor) -> Tensor:
        """Return features, (B, H, W, C) -> (B, features)."""
        return _of_images(self.layers, observations)


class ResNetEncoder(Encoder):
    """A residual network with GroupNorm, for images (He et al. 2016; Wu and He 2018).

    A convolution of stride 2, then blocks of stride 2 until a side has at most SMALLEST pixels, and the features as in
    ``convolutional``. GroupNorm, unlike BatchNorm, is the same in training and in use.
    """

    Parameters = ResNetEncoderParameters

    def __init__(self, parameters: ResNetEncoderParameters, shape: tuple[int, ...]) -> None:
        """Build the layers for images (H, W, C)."""
        super().__init__(parameters, shape)
        _check_axes("resnet", shape, 3)
        height, width, channels = shape
        size = parameters.channels
        layers: list[nn.Module] = [nn.Conv2d(channels, size, 3, stride=2, padding=1), _norm(size), nn.ReLU()]
        height, width, channels = math.ceil(height / 2), math.ceil(width / 2), size
        while min(height, width) > SMALLEST:
            layers.append(_ResidualBlock(channels, size))
            height, width, channels = math.ceil(height / 2), math.ceil(width / 2), size
            size = min(2 * size, 4 * parameters.channels)
        self.features = parameters.features
        self.layers = nn.Sequential(*layers, *_head(height * width * channels, self.features))

    def forward(self, observations: Tensor) -> Tensor:
        """Return features, (B, H, W, C) -> (B, features)."""
        return _of_images(self.layers, observations)


class _ResidualBlock(nn.Module):
    """Two convolutions, the first of stride 2, beside a convolution of one pixel, (B, C, H, W) -> (B, C', H/2, W/2)."""

    def __init__(self, channels: int, size: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(channels, size, 3, stride=2, padding=1), _norm(size), nn.ReLU(),
            nn.Conv2d(size, size, 3, padding=1), _norm(size),
        )  # fmt: skip
        self.shortcut = nn.Conv2d(channels, size, 1, stride=2)

    def forward(self, images: Tensor) -> Tensor:
        return functional.relu(self.layers(images) + self.shortcut(images))


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(math.gcd(8, channels), channels)


def _head(size: int, features: int) -> list[nn.Module]:
    """Give features a fixed size and scale (Yarats et al. 2021, section 4.1)."""
    return [nn.Flatten(), nn.Linear(size, features), nn.LayerNorm(features), nn.Tanh()]


def _of_images(layers: nn.Module, observations: Tensor) -> Tensor:
    """Features of images with their channels last, (B, H, W, C) -> (B, features)."""
    channels_first = observations.permute(0, 3, 1, 2)
    features: Tensor = layers(channels_first.to(memory_format=torch.channels_last))
    return features


class MLPEncoder(Encoder):
    """Layers of its own for a vector, whose features get the same scale as those of images."""

    Parameters = MLPEncoderParameters

    def __init__(self, parameters: MLPEncoderParameters, shape: tuple[int, ...]) -> None:
        """Build the layers for vectors (O,)."""
        super().__init__(parameters, shape)
        _check_axes("mlp", shape, 1)
        sizes = [shape[0], *parameters.hidden]
        hidden = [layer for before, size in pairwise(sizes) for layer in (nn.Linear(before, size), nn.ReLU())]
        self.features = parameters.features
        self.layers = nn.Sequential(*hidden, *_head(sizes[-1], self.features))

    def forward(self, observations: Tensor) -> Tensor:
        """Return features, (B, O) -> (B, features)."""
        features: Tensor = self.layers(observations)
        return features


class AutomaticEncoder(Encoder):
    """Identity for vectors, convolutions for images."""

    Parameters = AutomaticEncoderParameters

    def __init__(self, parameters: AutomaticEncoderParameters, shape: tuple[int, ...]) -> None:
        """Choose the encoder by the shape."""
        super().__init__(parameters, shape)
        self.chosen: Encoder = (
            ConvolutionalEncoder(ConvolutionalEncoder.Parameters(), shape)
            if len(shape) == 3
            else IdentityEncoder(IdentityEncoder.Parameters(), shape)
        )
        self.features = self.chosen.features

    def forward(self, observations: Tensor) -> Tensor:
        """Return the chosen encoder's features."""
        features: Tensor = self.chosen(observations)
        return features


def _built(parameters: Any, shape: tuple[int, ...]) -> Encoder:
    """Build the chosen encoder and check what its constructor must do."""
    place = f"encoder '{parameters.name}'"
    try:
        encoder = ENCODERS.of(parameters)(parameters, shape)
        initialised = "_modules" in vars(encoder)
    except AttributeError as error:
        if "before Module.__init__() call" not in str(error):
            raise
        initialised = False
    if not initialised:
        raise InputError(f"{place}: its __init__ must call super().__init__(parameters, shape) first")
    features = getattr(encoder, "features", None)
    if not isinstance(features, int):
        raise InputError(
            f"{place}: its constructor must set self.features, the size of its output; it is {features!r}"
        )
    for module in encoder.modules() if ":" in parameters.name else ():
        kinds = [kind for kind in type(module).__mro__ if not kind.__module__.startswith("torch.")]
        if type(module) not in kinds:
            continue
        for name, value in [item for holder in (*kinds, module) for item in vars(holder).items()]:
            if isinstance(value, Tensor):
                raise InputError(
                    f"{place}: self.{name} is a tensor that would not be stored; use self.register_buffer('{name}', "
                    "...), or nn.Parameter if it is trained"
                )
    return encoder


class ObservationEncoder(nn.Module):
    """Standardises observations per dimension, or images per channel, and encodes them."""

    def __init__(
        self,
        shape: tuple[int, ...],
        normalisation: Normalisation | None = None,
        encoder: dict[str, Any] | None = None,
    ) -> None:
        """Build the layers.

        Args:
            shape: shape of one observation: (O,), or (H, W, C) for an image.
            normalisation: statistics; None: ``load_state_dict`` sets them.
            encoder: parameters of the encoder as plain values; None: ``auto``.

        Raises:
            InputError: the encoder is unknown or does not support this shape.
        """
        super().__init__()
        if encoder and encoder.get("parts"):
            raise InputError(
                f"part_encoders names {', '.join(encoder['parts'])}, but observations have no parts; set encoder"
            )
        self.shape = shape
        self.standardise = Standardise(shape[-1])
        if normalisation is not None:
            self.standardise.fit(normalisation.observation_mean, normalisation.observation_std)
        settings = {name: value for name, value in (encoder or {}).items() if name != "parts"}
        parameters: Any = ENCODERS.validate(settings)
        self.encoder = _built(parameters, shape)
        self.features = self.encoder.features
        if ":" in parameters.name:
            self._check_is_rebuilt(parameters)

    def forward(self, observations: Tensor) -> Tensor:
        """Return features, (..., O) or (..., H, W, C) -> (..., features)."""
        rows = observations.shape[: -len(self.shape)]
        flat = observations.reshape(-1, *self.shape)
        # Layers of images need many times their memory. With gradients, all of it is needed anyway.
        images = len(self.shape) == 3 and not torch.is_grad_enabled()
        parts = pieces(flat, max(1, PIECE // math.prod(self.shape))) if images else (flat,)
        features = [self._encoded(self.encoder, self.standardise(part)) for part in parts]
        return (features[0] if len(features) == 1 else torch.cat(features)).reshape(*rows, self.features)

    def _encoded(self, encoder: Encoder, observations: Tensor) -> Tensor:
        """Return an encoder's features, (B, O) or (B, H, W, C) -> (B, features)."""
        features: Any = encoder(observations)
        wanted = (observations.shape[0], self.features)  # not len: torch.export would take it for a constant
        if not (isinstance(features, Tensor) and features.shape == wanted):
            expected = f"a tensor of shape {wanted}: rows, self.features"
            check_return(encoder, "forward", features, valid=False, expected=expected)
        return features  # type: ignore[no-any-return]

    @torch.no_grad()
    def _check_is_rebuilt(self, parameters: Any) -> None:
        """Raise InputError unless an encoder of the user's own, rebuilt with the same weights, acts the same.

        A file has the weights alone, so anything else that the constructor draws would be another one at each load.
        Two encoders are built with the weights of the one in use, which stays as it is.
        """
        with torch.random.fork_rng(devices=[]):
            outputs = []
            observations = torch.randn(4, *self.shape)
            for _ in range(2):
                twin = _built(parameters, self.shape)
                twin.load_state_dict(self.encoder.state_dict())
                torch.default_generator.manual_seed(
                    0
                )  # of what forward draws, which may be random on purpose
                outputs.append(self._encoded(twin.eval(), observations))
        if not torch.allclose(outputs[0], outputs[1], rtol=0.0, atol=0.0, equal_nan=True):
            raise InputError(
                f"encoder '{parameters.name}' would act differently each time it is loaded, because something that "
                "its __init__ draws is not stored: use nn.Parameter, self.register_buffer or nn.ModuleList for it"
            )


class PartsEncoder(nn.Module):
    """Encodes every part of packed observations by itself, and joins the features in the order of the parts."""

    def __init__(
        self,
        layout: Layout,
        normalisation: Normalisation | None = None,
        encoder: dict[str, Any] | None = None,
    ) -> None:
        """Build an encoder for each part.

        Args:
            layout: the parts.
            normalisation: statistics; None: ``load_state_dict`` sets them.
            encoder: plain parameters of the encoder of images, with those of single parts, by name, in ``parts``.

        Raises:
            InputError: an unknown part, or an encoder that does not support the shape of its part.
        """
        super().__init__()
        self.layout = layout
        general = dict(encoder or {})
        chosen = general.pop("parts", {})
        for name in chosen:
            if name not in layout.names:
                raise unknown_name("part of the observations in part_encoders", name, list(layout.names))
        if not layout.images and general.get("name", "auto") not in ("auto", "identity"):
            raise InputError(
                f"encoder '{general['name']}' is for the images among the parts of observations, and none of "
                f"{', '.join(layout.names)} is one; name a part in part_encoders"
            )
        self.encoders = nn.ModuleList()
        for part in layout.parts:
            own = chosen.get(part.name, general if part.image else {})
            statistics = normalisation and _statistics(normalisation, layout, part.name)
            try:
                self.encoders.append(ObservationEncoder(part.shape, statistics, own))
            except InputError as error:
                raise InputError(f"part '{part.name}' of the observations: {error}") from error
        self.features = sum(encoder.features for encoder in self.encoders)  # type: ignore[misc]

    def forward(self, observations: Tensor) -> Tensor:
        """Return features, (..., B) uint8 -> (..., features); or of rows of ``Layout.numbers``, (..., N) float32."""
        parts = self.layout.unpack(observations).values()
        return torch.cat([encoder(part) for encoder, part in zip(self.encoders, parts, strict=True)], dim=-1)


def _statistics(normalisation: Normalisation, layout: Layout, name: str) -> Normalisation:
    """Statistics of one part."""
    place = layout.statistics_of(name)
    return replace(
        normalisation,
        observation_mean=normalisation.observation_mean[place],
        observation_std=normalisation.observation_std[place],
    )


def observation_encoder(
    shape: tuple[int, ...],
    normalisation: Normalisation | None = None,
    encoder: dict[str, Any] | None = None,
    layout: Layout | None = None,
) -> ObservationEncoder | PartsEncoder:
    """Build the encoder of observations: one vector or image, or packed parts if there is a layout."""
    if layout is None:
        return ObservationEncoder(shape, normalisation, encoder)
    return PartsEncoder(layout, normalisation, encoder)
