"""Moving averages of random features during the critic's training, as in the paper."""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor

from cvl_pipeline.episodes.sampling import Segments
from cvl_pipeline.errors import InputError
from cvl_pipeline.networks.critic import ContrastiveCritic
from cvl_pipeline.readout.build import horizon_quantiles
from cvl_pipeline.readout.readouts import FeatureReadout, draw_directions, random_features


class MovingFeatures:
    """``xi <- decay xi + (1 - decay) mean F(psi(s')) r(s')`` over the batches of contrastive training.

    An observer of ``train_dynamics``: it receives the batches and changes nothing. It saves the pass over the
    data that a readout otherwise takes after training. In return, xi lags behind psi, and the reward is fixed
    before training. It is available to code only: in the pipeline, training sees no reward.
    """

    def __init__(
        self, rewards: Tensor, *, features: int, size: int, temperature: float, decay: float, seed: int
    ) -> None:
        """Sample random Fourier features.

        Args:
            rewards: rewards of all transitions, (N,).
            features: number of features, M.
            size: size of the representations, D.
            temperature: the critic's temperature; it must be fixed, because the features depend on it.
            decay: decay per training step, in [0, 1).
            seed: seed of the features.
        """
        generator = Generator().manual_seed(seed)
        self._rewards = rewards
        self._decay = decay
        self._temperature = torch.tensor(temperature)
        self._directions = draw_directions(features, size, self._temperature, False, generator)
        self._phases = torch.rand(features, generator=generator) * 2.0 * math.pi
        self._xi, self._normaliser = torch.zeros(2, features)
        self._weight = 0.0  # sum of the weights of the averages so far

    @torch.no_grad()
    def __call__(self, segments: Segments, psi: Tensor) -> None:
        """Update the averages with one batch."""
        if psi.device != self._xi.device:  # the training device is known only now
            for name, value in list(vars(self).items()):
                if isinstance(value, Tensor):
                    setattr(self, name, value.to(psi.device))
        rewards = self._rewards[segments.arrivals].masked_fill(segments.absorbed, 0.0)
        with torch.autocast(psi.device.type, enabled=False):  # bfloat16 is too coarse for the cosines
            features = random_features(psi.float(), self._directions, self._phases, self._temperature)
            self._xi.lerp_(rewards @ features / len(psi), 1.0 - self._decay)
            self._normaliser.lerp_(features.mean(0), 1.0 - self._decay)
        self._weight = self._decay * self._weight + 1.0 - self._decay

    def readout(
        self, critic: ContrastiveCritic, *, self_normalised: bool = True, horizons: int = 8
    ) -> FeatureReadout:
        """Return the readout for the trained critic.

        Args:
            critic: the critic whose training this object observed.
            self_normalised: see Readout.
            horizons: number of offsets over which a horizon-conditioned critic is averaged.

        Raises:
            InputError: the critic's temperature differs from that of the features.
        """
        if not math.isclose(float(critic.temperature.detach()), float(self._temperature), rel_tol=1e-4):
            raise InputError(
                f"the features were sampled for temperature {float(self._temperature):g}, but the critic "
                f"learned {float(critic.temperature.detach()):g}; train it with learned_temperature=false"
            )
        return FeatureReadout(
            temperature=self._temperature,
            horizons=horizon_quantiles(
                critic.shape.discount, horizons if critic.shape.horizon_conditioning else 0
            ),
            discount=critic.shape.discount, self_normalised=self_normalised, directions=self._directions,
            phases=self._phases, xi=self._xi / self._weight, normaliser=self._normaliser / self._weight,
        ).to(critic.temperature.device)  # fmt: skip
