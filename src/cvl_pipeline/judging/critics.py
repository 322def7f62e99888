"""Cross-fitting: the policy's actions judged by critics of episodes that it never learned from."""

from __future__ import annotations

import dataclasses

import torch
from torch import Generator, Tensor

from cvl_pipeline.judging.networks import ValueNetworks, bootstrap_weights, fit, fresh, joined
from cvl_pipeline.judging.parameters import JudgingParameters
from cvl_pipeline.judging.samples import Sample
from cvl_pipeline.networks.critic import ContrastiveCritic
from cvl_pipeline.readout.logged_returns import LoggedReturns
from cvl_pipeline.training.progress import progress_bar
from cvl_pipeline.training.seeds import stream_seed


def pair_inputs(critic: ContrastiveCritic, features: Tensor, actions: Tensor) -> Tensor:
    """Inputs of networks of Q, (N, F) and (N, A) -> (N, F + A)."""
    return torch.cat([features, critic.standardise_action(actions)], dim=-1)


@torch.no_grad()
def regress_critics(
    critic: ContrastiveCritic, held_out: Sample, discount: float, parameters: JudgingParameters, seed: int
) -> ValueNetworks:
    """Fit networks of Q of the behaviour to the lambda-returns of some episodes.

    As in ``readout.fitting``, V is regressed on returns first, and Q on the lambda-returns that follow from it,
    because a return credits an action with whatever its episode did later. Each of the networks has a bootstrap sample
    of the episodes.

    Args:
        critic: whose encoder the sample was encoded by, and whose discount limits lambda.
        held_out: the episodes.
        discount: of the values.
        parameters: sizes and steps.
        seed: of all draws.
    """
    log, rewards = held_out.encoded, held_out.rewards
    states, arrivals = log.states(), log.arrivals()
    pairs = pair_inputs(critic, states, log.actions)
    short = min(discount, critic.shape.discount)
    logged = LoggedReturns.of(log, rewards, discount, short, torch.arange(len(rewards)))
    logged = dataclasses.replace(logged, deviation=max(logged.deviation, 1e-8))
    episodes, networks = held_out.episodes, []

    with progress_bar() as progress:
        bar = progress.add_task("Regressing critics of held-out episodes", total=parameters.members)
        for member in range(parameters.members):
            generator = Generator().manual_seed(stream_seed(seed, "judging", 2 * member))
            weights = bootstrap_weights(episodes, generator)
            value = fresh(states.shape[1], parameters, stream_seed(seed, "judging", 2 * member + 1))
            targets = logged.standard(logged.returns)
            fit(
                value, states, targets.__getitem__, (weights * logged.shares).float(), parameters.critic_steps,
                parameters, generator,
            )  # fmt: skip
            targets = logged.standard(logged.followed(value(arrivals).squeeze(-1)))
            network = fresh(pairs.shape[1], parameters, stream_seed(seed, "judging", 2 * member + 1))
            fit(network, pairs, targets.__getitem__, weights, parameters.critic_steps, parameters, generator)
            networks.append(network)
            progress.advance(bar)
    return joined(
        networks, pairs.shape[1], parameters, mean=logged.mean, std=logged.deviation, discount=discount
    )
