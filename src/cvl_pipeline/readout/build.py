"""Making the readout that the parameters ask for."""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor

from cvl_pipeline.episodes.container import Rewards, Split, Transitions
from cvl_pipeline.errors import InputError
from cvl_pipeline.networks.critic import ContrastiveCritic
from cvl_pipeline.readout.parameters import ReadoutParameters
from cvl_pipeline.readout.readouts import ExactReadout, Readout, feature_readout
from cvl_pipeline.readout.references import (
    References,
    compress,
    draw_references,
    future_states,
    represent,
)
from cvl_pipeline.training.seeds import stream_seed


@torch.no_grad()
def build_readout(
    critic: ContrastiveCritic,
    transitions: Transitions,
    labels: Rewards,
    split: Split,
    parameters: ReadoutParameters,
    seed: int,
) -> Readout:
    """Weigh the future states that training contrasted, with their rewards.

    Args:
        critic: the trained critic.
        transitions: all episodes; the references come from the training ones.
        labels: their rewards.
        split: which episodes train.
        parameters: the stage's.
        seed: of every draw.

    Raises:
        InputError: another discount than the critic's, which is not conditioned on the horizon.
    """
    discount = parameters.discount or critic.shape.discount
    if discount != critic.shape.discount and not critic.shape.horizon_conditioning:
        raise InputError(
            f"value_readout.discount is {discount}, but the critic was trained for {critic.shape.discount} "
            "alone; train it with contrastive_dynamics.horizon_conditioning=true to read out any discount"
        )
    generator = Generator().manual_seed(stream_seed(seed, "references", 0))
    states = future_states(transitions, labels, critic.shape.discount, split.train)
    if parameters.references is not None:
        by_reward = parameters.reference_distribution == "reward"
        states = draw_references(states, parameters.references, by_reward, generator)
    references = represent(critic, transitions, states)
    temperature = critic.temperature.detach().clone()
    if parameters.prototypes is not None:
        references = compress(references, parameters.prototypes, temperature, generator)
    horizons = horizon_quantiles(discount, parameters.horizons)
    if not critic.shape.horizon_conditioning:
        horizons = horizons[:0]
    if parameters.method == "exact":
        return exact_readout(critic, references, horizons, discount, parameters.self_normalised)
    return feature_readout(
        references, parameters.method, parameters.features, generator,
        temperature=temperature, horizons=horizons, discount=discount,
        self_normalised=parameters.self_normalised,
    )  # fmt: skip


def exact_readout(
    critic: ContrastiveCritic,
    references: References,
    horizons: Tensor,
    discount: float,
    self_normalised: bool = True,
) -> ExactReadout:
    """The exact readout over the given references."""
    return ExactReadout(
        temperature=critic.temperature.detach().clone(), horizons=horizons, discount=discount,
        self_normalised=self_normalised, psi=references.psi, rewards=references.rewards,
        log_weights=references.log_weights,
    )  # fmt: skip


def horizon_quantiles(discount: float, count: int) -> Tensor:
    """Offsets k whose equally weighted mean stands for ``(1 - gamma) sum_k gamma^(k-1)``, (H,) int64.

    The middles of ``count`` equally likely stretches of the geometric distribution.
    """
    u = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    return 1 + (torch.log1p(-u) / math.log(discount)).floor().long()
