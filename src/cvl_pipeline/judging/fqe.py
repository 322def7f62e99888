"""Fitted Q evaluation: temporal differences on the policy's own actions (Le, Voloshin and Yue 2019)."""

from __future__ import annotations

import copy

import torch
from torch import Generator, Tensor

from cvl_pipeline.episodes.preparation import goes_on, observed_returns
from cvl_pipeline.judging.critics import pair_inputs
from cvl_pipeline.judging.networks import ValueNetworks, bootstrap_weights, fit, fresh, joined
from cvl_pipeline.judging.parameters import JudgingParameters
from cvl_pipeline.judging.samples import Sample
from cvl_pipeline.methods.off_policy import follow
from cvl_pipeline.networks.critic import ContrastiveCritic
from cvl_pipeline.training.progress import progress_bar
from cvl_pipeline.training.seeds import stream_seed

TURNS = 5.0
"""Least product of the target's rate, the steps and 1 - gamma: exp(-5) of the first error is left at the end."""


@torch.no_grad()
def fit_q_of_policy(
    critic: ContrastiveCritic,
    log: Sample,
    next_actions: Tensor,
    discount: float,
    parameters: JudgingParameters,
    seed: int,
) -> tuple[ValueNetworks, float]:
    """Fit Q of a policy: ``Q(s, a) = r + gamma Q'(s', pi(s'))``, with a slowly moving copy Q'.

    Nothing follows a termination. At the end of a truncated episode, the last observation is known, so Q' follows
    there as everywhere. A mean of rewards cannot leave their range, so targets are kept within it; without this, Q of
    actions that the log lacks can grow without end.

    Args:
        critic: whose encoder the sample was encoded by.
        log: the episodes.
        next_actions: (N, A), the policy's actions in the states that transitions lead to.
        discount: gamma.
        parameters: sizes and steps.
        seed: of all draws.

    Returns:
        The networks, and the share of the transitions for which what follows had to be kept within the range.
    """
    encoded, followed = log.encoded, goes_on(log.encoded)
    pairs = pair_inputs(critic, encoded.states(), encoded.actions)
    following = pair_inputs(critic, encoded.arrivals(), next_actions)
    # The unit is that of returns: rewards may all be equal, and what follows a termination differs from them.
    returns = (1.0 - discount) * observed_returns(log.rewards, encoded, discount)  # as mean rewards
    mean, std = float(log.rewards.mean()), max(float(returns.std(correction=0)), 1e-8)
    # The part of the target that is still missing at the end shrinks with rate * steps * (1 - discount).
    rate = min(1.0, max(parameters.target_rate, TURNS / (parameters.fqe_steps * (1.0 - discount))))
    rewards = (log.rewards - mean) / std
    nothing = -mean / std  # the value zero, after a termination
    ends = [nothing] if not followed.all() else []
    low, high = min([float(rewards.min()), *ends]), max([float(rewards.max()), *ends])
    networks, clipped = [], 0.0
    with progress_bar() as progress:
        bar = progress.add_task("Fitted Q evaluation", total=parameters.members)
        for member in range(parameters.members):
            generator = Generator().manual_seed(stream_seed(seed, "judging", 1000 + 2 * member))
            network = fresh(pairs.shape[1], parameters, stream_seed(seed, "judging", 1001 + 2 * member))
            target = copy.deepcopy(network).requires_grad_(False)

            def targets(
                rows: Tensor, network: torch.nn.Module = network, target: torch.nn.Module = target
            ) -> Tensor:
                follow(target, network, rate)
                after = target(following[rows]).squeeze(-1).clamp(low, high)
                after = torch.where(followed[rows], after, nothing)
                return (1.0 - discount) * rewards[rows] + discount * after

            weights = bootstrap_weights(log.episodes, generator)
            fit(network, pairs, targets, weights, parameters.fqe_steps, parameters, generator)
            networks.append(network)
            reached = network(following).squeeze(-1)[followed]
            outside = (reached < low) | (reached > high)
            clipped += float(outside.float().mean()) / parameters.members if len(outside) else 0.0
            progress.advance(bar)
    fitted = joined(networks, pairs.shape[1], parameters, mean=mean, std=std, discount=discount)
    return fitted, clipped
