"""An encoder of your own: random Fourier features of the observations.

The features approximate a Gaussian kernel (Rahimi and Recht, *Random Features for Large-Scale Kernel Machines*, NeurIPS
2007). From them, a network learns functions that vary quickly with the observation (Tancik et al., *Fourier Features
Let Networks Learn High Frequency Functions in Low Dimensional Domains*, NeurIPS 2020).

Run it in the project's folder; the critic and the policies each have an encoder:

    PYTHONPATH=examples kedro run --env smoke --params contrastive_dynamics.encoder=encoder_fourier:FourierFeatures,policy_extraction.encoder=encoder_fourier:FourierFeatures

docs/guides/add-an-encoder.md explains every line.
"""  # noqa: E501 (a command that you can copy)

from __future__ import annotations

import math

import torch
from pydantic import Field
from torch import Tensor

from cvl_pipeline.errors import InputError
from cvl_pipeline.networks.encoder import Encoder
from cvl_pipeline.networks.parameters import EncoderParameters


class FourierFeatures(Encoder):
    """The observation, and the cosine and sine of random projections of it."""

    class Parameters(EncoderParameters):
        """The settings of the encoder."""

        frequencies: int = Field(64, ge=1, description="Random projections; each gives a cosine and a sine.")
        bandwidth: float = Field(
            1.0, gt=0.0, description="Distance, in standard deviations of the data, at which features differ."
        )

    frequencies: Tensor

    def __init__(self, parameters: Parameters, shape: tuple[int, ...]) -> None:
        """Draw the projections; they are stored with the weights and never trained."""
        super().__init__(parameters, shape)
        if len(shape) != 1:
            raise InputError(f"encoder '{parameters.name}' takes vectors, not observations of shape {shape}")
        size, count = shape[0], parameters.frequencies
        self.register_buffer("frequencies", torch.randn(size, count) / parameters.bandwidth)
        self.features = size + 2 * count

    def forward(self, observations: Tensor) -> Tensor:
        """Return features, (B, O) -> (B, O + 2 frequencies)."""
        angles = observations @ self.frequencies
        scale = 1.0 / math.sqrt(angles.shape[-1])
        return torch.cat([observations, scale * angles.cos(), scale * angles.sin()], dim=-1)
