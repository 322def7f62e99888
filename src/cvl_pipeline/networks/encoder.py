"""Encoders: the first part of every network, from observations to features."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from cvl_pipeline.episodes.container import Normalisation
from cvl_pipeline.errors import InputError
from cvl_pipeline.networks.mlp import Standardise
from cvl_pipeline.schema import MOST_UNITS, Registry, Strict

SMALLEST = 6
"""Side length, in pixels, at or below which convolutions do not halve an image."""


class EncoderParameters(Strict):
    """The settings that every encoder has. An encoder adds its own."""

    name: str = Field(description="Name of the encoder, or `module:Class` for one of your own.")


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


ENCODERS: Registry[Encoder] = Registry(
    "encoder",
    "name",
    "cvl_pipeline.networks.encoder:Encoder",
    {
        "auto": "cvl_pipeline.networks.encoder:AutomaticEncoder",
        "identity": "cvl_pipeline.networks.encoder:IdentityEncoder",
        "convolutional": "cvl_pipeline.networks.encoder:ConvolutionalEncoder",
    },
)


class IdentityEncoder(Encoder):
    """Identity, for vectors."""

    class Parameters(EncoderParameters):
        """The settings of ``identity``: none."""

        name: Literal["identity"] = Field("identity", description="Standardised vectors, without an encoder.")

    def __init__(self, parameters: Parameters, shape: tuple[int, ...]) -> None:
        """Check the shape."""
        super().__init__(parameters, shape)
        if len(shape) != 1:
            raise InputError(
                f"encoder 'identity' needs vectors, but observations have shape {shape}; use auto"
            )
        self.features = shape[0]

    def forward(self, observations: Tensor) -> Tensor:
        """Return the observations, (B, O) -> (B, O)."""
        return observations


class ConvolutionalEncoder(Encoder):
    """Convolutions of stride 2, for images.

    They halve the image until a side has at most SMALLEST pixels. A linear layer, LayerNorm and tanh give the
    features a fixed size and scale (Yarats et al. 2021, section 4.1).
    """

    class Parameters(EncoderParameters):
        """The settings of ``convolutional``."""

        name: Literal["convolutional"] = Field("convolutional", description="Convolutions, for images.")
        channels: int = Field(32, ge=1, le=MOST_UNITS, description="Channels of every convolution.")
        features: int = Field(128, ge=1, le=MOST_UNITS, description="Size of the output.")

    def __init__(self, parameters: Parameters, shape: tuple[int, ...]) -> None:
        """Build the layers for images (H, W, C)."""
        super().__init__(parameters, shape)
        if len(shape) != 3:
            raise InputError(
                f"encoder 'convolutional' needs images, but observations have shape {shape}; use auto"
            )
        height, width, channels = shape
        layers: list[nn.Module] = []
        while min(height, width) > SMALLEST:
            layers += [nn.Conv2d(channels, parameters.channels, 3, stride=2, padding=1), nn.ReLU()]
            height, width, channels = math.ceil(height / 2), math.ceil(width / 2), parameters.channels
        self.features = parameters.features
        self.layers = nn.Sequential(
            *layers,
            nn.Flatten(),
            nn.Linear(height * width * channels, self.features),
            nn.LayerNorm(self.features),
            nn.Tanh(),
        )

    def forward(self, observations: Tensor) -> Tensor:
        """Return features, (B, H, W, C) -> (B, features)."""
        channels_first = observations.permute(0, 3, 1, 2)
        features: Tensor = self.layers(channels_first.to(memory_format=torch.channels_last))
        return features


class AutomaticEncoderParameters(EncoderParameters):
    """The settings of ``auto``: none."""

    name: Literal["auto"] = Field("auto", description="`identity` for vectors, `convolutional` for images.")


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
        self.shape = shape
        self.standardise = Standardise(shape[-1])
        if normalisation is not None:
            self.standardise.fit(normalisation.observation_mean, normalisation.observation_std)
        parameters = ENCODERS.validate(encoder or {})
        self.encoder = ENCODERS.of(parameters)(parameters, shape)
        features = getattr(self.encoder, "features", None)
        if not isinstance(features, int):
            raise InputError(
                f"encoder '{parameters.name}': its constructor must set self.features, the size of its output; it "  # type: ignore[attr-defined]
                f"is {features!r}"
            )
        self.features = features

    def forward(self, observations: Tensor) -> Tensor:
        """Return features, (..., O) or (..., H, W, C) -> (..., features)."""
        standard: Tensor = self.standardise(observations)
        rows = standard.shape[: -len(self.shape)]
        features: Tensor = self.encoder(standard.reshape(-1, *self.shape))
        if features.shape[-1] != self.features:
            raise InputError(
                f"encoder {type(self.encoder).__name__}: it returns {features.shape[-1]} features, but self.features "
                f"is {self.features}"
            )
        return features.reshape(*rows, self.features)
