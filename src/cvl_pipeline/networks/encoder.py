"""What every network does with observations first."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from cvl_pipeline.episodes.container import Normalisation
from cvl_pipeline.networks.mlp import Standardise

CHANNELS, IMAGE_FEATURES = 32, 128
SMALLEST = 6
"""Pixels of a side that convolutions do not halve any further."""


class ObservationEncoder(nn.Module):
    """Standardised vectors as they are, images through convolutions.

    Images, (..., H, W, C) uint8 as logs have them, are standardised by channel; convolutions of stride 2
    halve them until a side has no more than SMALLEST pixels; a linear layer, LayerNorm and tanh make features
    of one size and scale of what is left (Yarats et al. 2021, section 4.1).
    """

    def __init__(self, shape: tuple[int, ...], normalisation: Normalisation | None = None) -> None:
        """Build the layers.

        Args:
            shape: of one observation: (O,), or (H, W, C) of an image.
            normalisation: statistics; None leaves them to ``load_state_dict``.
        """
        super().__init__()
        self.standardise = Standardise(shape[-1])
        if normalisation is not None:
            self.standardise.fit(normalisation.observation_mean, normalisation.observation_std)
        self.convolutions: nn.Sequential | None = None
        self.features = shape[0]  # size of the output
        if len(shape) == 3:
            height, width, channels = shape
            layers: list[nn.Module] = []
            while min(height, width) > SMALLEST:
                layers += [nn.Conv2d(channels, CHANNELS, 3, stride=2, padding=1), nn.ReLU()]
                height, width, channels = math.ceil(height / 2), math.ceil(width / 2), CHANNELS
            self.features = IMAGE_FEATURES
            self.convolutions = nn.Sequential(
                *layers,
                nn.Flatten(),
                nn.Linear(height * width * channels, self.features),
                nn.LayerNorm(self.features),
                nn.Tanh(),
            )

    def forward(self, observations: Tensor) -> Tensor:
        """Features, (..., O) -> (..., O) or (..., H, W, C) -> (..., IMAGE_FEATURES)."""
        standard: Tensor = self.standardise(observations)
        if self.convolutions is None:
            return standard
        rows, image = standard.shape[:-3], standard.shape[-3:]
        channels_first = standard.reshape(-1, *image).permute(0, 3, 1, 2)
        features: Tensor = self.convolutions(channels_first.to(memory_format=torch.channels_last))
        return features.reshape(*rows, self.features)
