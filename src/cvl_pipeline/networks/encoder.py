"""Encoders: the first part of every network, from observations to features."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from cvl_pipeline.episodes.container import Normalisation
from cvl_pipeline.errors import InputError
from cvl_pipeline.imports import check_return
from cvl_pipeline.networks.mlp import Standardise
from cvl_pipeline.networks.parameters import (
    ENCODERS,
    AutomaticEncoderParameters,
    ConvolutionalEncoderParameters,
    EncoderParameters,
    IdentityEncoderParameters,
)

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


class IdentityEncoder(Encoder):
    """Identity, for vectors."""

    Parameters = IdentityEncoderParameters

    def __init__(self, parameters: IdentityEncoderParameters, shape: tuple[int, ...]) -> None:
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

    Parameters = ConvolutionalEncoderParameters

    def __init__(self, parameters: ConvolutionalEncoderParameters, shape: tuple[int, ...]) -> None:
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
        self.shape = shape
        self.standardise = Standardise(shape[-1])
        if normalisation is not None:
            self.standardise.fit(normalisation.observation_mean, normalisation.observation_std)
        parameters: Any = ENCODERS.validate(encoder or {})
        self.encoder = _built(parameters, shape)
        self.features = self.encoder.features
        if ":" in parameters.name:
            self._check_is_rebuilt(parameters)

    def forward(self, observations: Tensor) -> Tensor:
        """Return features, (..., O) or (..., H, W, C) -> (..., features)."""
        standard: Tensor = self.standardise(observations)
        rows = standard.shape[: -len(self.shape)]
        features: Tensor = self._encoded(self.encoder, standard.reshape(-1, *self.shape))
        return features.reshape(*rows, self.features)

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
