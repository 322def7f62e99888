"""Construction of the readout from its parameters."""

from __future__ import annotations

import logging
import math
from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from torch import Generator, Tensor

from cvl_pipeline.episodes.container import Rewards, Split, Transitions
from cvl_pipeline.errors import InputError
from cvl_pipeline.networks.critic import ContrastiveCritic
from cvl_pipeline.readout.parameters import (
    READOUTS,
    ExactParameters,
    FeatureParameters,
    FourierParameters,
    PositiveParameters,
    ReadoutParameters,
)
from cvl_pipeline.readout.readouts import ExactReadout, Readout, feature_readout
from cvl_pipeline.readout.references import (
    References,
    compress,
    draw_references,
    future_states,
    represent,
)
from cvl_pipeline.readout.regression import regress
from cvl_pipeline.training.seeds import stream_seed

logger = logging.getLogger(__name__)

SELDOM = 1e-3
"""Share of the segments that reach so far, below which a critic has hardly learned from any."""


class ReadoutMethod(ABC):
    """A way to turn the critic and weighted reference states into values."""

    Parameters: ClassVar[type[ReadoutParameters]] = ReadoutParameters

    def __init__(self, parameters: Any) -> None:
        """Keep the parameters."""
        self.parameters = parameters

    @abstractmethod
    def build(
        self,
        critic: ContrastiveCritic,
        references: References,
        horizons: Tensor,
        discount: float,
        generator: Generator,
    ) -> Readout:
        """Make the readout.

        Args:
            critic: the trained critic.
            references: weighted reference states.
            horizons: (H,) int64, offsets over which a horizon-conditioned critic is averaged; else empty.
            discount: discount of the values.
            generator: random generator.
        """

    @property
    @abstractmethod
    def size(self) -> str:
        """Size of the readout for messages, such as ``64 features``."""


class Exact(ReadoutMethod):
    """The exact readout; see ``ExactReadout``."""

    Parameters = ExactParameters

    def build(
        self,
        critic: ContrastiveCritic,
        references: References,
        horizons: Tensor,
        discount: float,
        generator: Generator,
    ) -> Readout:
        """Keep the reference states, or compress them to cluster centres."""
        if self.parameters.prototypes is not None:
            temperature = critic.temperature.detach().clone()
            references = compress(references, self.parameters.prototypes, temperature, generator)
        return exact_readout(critic, references, horizons, discount, self.parameters.self_normalised)

    @property
    def size(self) -> str:
        """Number of prototypes or references."""
        if self.parameters.prototypes is not None:
            return f"{self.parameters.prototypes} prototypes"
        return f"{self.parameters.references or 'all'} references"


class RandomFeatures(ReadoutMethod):
    """A readout from random features; see ``FeatureReadout``."""

    Parameters = FeatureParameters
    fourier: ClassVar[bool]

    def build(
        self,
        critic: ContrastiveCritic,
        references: References,
        horizons: Tensor,
        discount: float,
        generator: Generator,
    ) -> Readout:
        """Sum the features of the reference states once."""
        return feature_readout(
            references, self.fourier, self.parameters.features, generator,
            temperature=critic.temperature.detach().clone(), horizons=horizons, discount=discount,
            self_normalised=self.parameters.self_normalised,
        )  # fmt: skip

    @property
    def size(self) -> str:
        """Number of features."""
        return f"{self.parameters.features} features"


class RandomFourier(RandomFeatures):
    """Random Fourier features, as in the paper."""

    Parameters = FourierParameters
    fourier = True


class PositiveRandom(RandomFeatures):
    """Positive orthogonal random features."""

    Parameters = PositiveParameters
    fourier = False


@torch.no_grad()
def build_readout(
    critic: ContrastiveCritic,
    transitions: Transitions,
    labels: Rewards,
    split: Split,
    parameters: ReadoutParameters,
    seed: int,
) -> Readout:
    """Build the readout over the logged future states and their rewards.

    Args:
        critic: the trained critic.
        transitions: all episodes; the reference states come from the training episodes.
        labels: rewards of all transitions.
        split: defines the training episodes.
        parameters: the stage's parameters.
        seed: seed of the sampling.

    Raises:
        InputError: the discount is shorter than the critic's, which is not conditioned on the horizon.
    """
    own, conditioned = critic.shape.discount, critic.shape.horizon_conditioning
    discount = parameters.discount or own
    if discount < own and not conditioned:
        raise InputError(
            f"value_readout.discount is {discount}, but the critic was trained for {own}, which is longer: raise "
            "value_readout.discount (null: the critic's), or train the critic with a shorter "
            "contrastive_dynamics.discount, or with horizon_conditioning=true, for any discount"
        )
    method = READOUTS.create(parameters)
    horizons = horizon_quantiles(discount, parameters.horizons if conditioned else 0)
    if conditioned and own ** float(horizons.max() - 1) < SELDOM:
        logger.warning(
            "value_readout: discount %g asks for values %d steps ahead, which a critic of "
            "contrastive_dynamics.discount %g has hardly seen: it orders actions, but the size of Q is unsure; raise "
            "that discount",
            discount, int(horizons.max()), own,
        )  # fmt: skip

    generator = Generator().manual_seed(stream_seed(seed, "references", 0))
    states = future_states(
        transitions, labels, own, split.train, None if conditioned else discount, parameters.self_normalised
    )
    if parameters.references is not None:
        by_reward = parameters.reference_distribution == "reward"
        states = draw_references(states, parameters.references, by_reward, generator)
    references = represent(critic, transitions, states)
    readout = method.build(critic, references, horizons, discount, generator)
    if parameters.regression is None:
        return readout
    return regress(critic, readout, transitions, labels, split, parameters.regression, seed)


def exact_readout(
    critic: ContrastiveCritic,
    references: References,
    horizons: Tensor,
    discount: float,
    self_normalised: bool = True,
) -> ExactReadout:
    """Build the exact readout over the given references."""
    return ExactReadout(
        temperature=critic.temperature.detach().clone(), horizons=horizons, discount=discount,
        self_normalised=self_normalised, psi=references.psi, rewards=references.rewards,
        log_weights=references.log_weights,
    )  # fmt: skip


def horizon_quantiles(discount: float, count: int) -> Tensor:
    """Offsets k, whose mean approximates the average with weights ``(1 - gamma) gamma^(k-1)``, (H,) int64.

    They are the medians of ``count`` equally likely parts of the geometric distribution.
    """
    u = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    return 1 + (torch.log1p(-u) / math.log(discount)).floor().long()
