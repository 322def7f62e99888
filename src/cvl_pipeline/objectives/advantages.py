"""Advantages of logged actions: their Q less what the state is worth under other actions."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Generator, Tensor
from torch.nn import functional

from cvl_pipeline.episodes.container import Transitions
from cvl_pipeline.errors import look_up
from cvl_pipeline.networks.mlp import mlp
from cvl_pipeline.objectives.parameters import PolicyParameters
from cvl_pipeline.readout.q_function import QFunction
from cvl_pipeline.readout.references import CHUNK
from cvl_pipeline.training.seeds import stream_seed

Baseline = Callable[[QFunction, Transitions, Tensor, Tensor, PolicyParameters, int], Tensor]
"""V(s) where each of the given transitions starts, (M,), from Q, all transitions, the indices of those meant,
the Q of their actions, the parameters and the seed."""


def marginal_actions(
    q: QFunction,
    transitions: Transitions,
    index: Tensor,
    values: Tensor,
    parameters: PolicyParameters,
    seed: int,
) -> Tensor:
    """``V(s) = 1/M sum_m Q(s, a_m)`` with a_m logged anywhere in the data.

    Everything about Q that depends on the state alone (which goal, which episode: most of its variance)
    cancels exactly in ``Q(s, a) - V(s)``, which no regression of V on states that each occur once can
    promise. Discrete actions are not drawn: V is the mean over all of them, by their frequency in the data.
    ``values`` is unused.
    """
    if transitions.discrete:
        frequency = transitions.actions[index].mean(0)
        return torch.cat(
            [q.of_all_actions(transitions.states(part)) @ frequency for part in torch.split(index, CHUNK)]
        )
    generator = Generator(device=index.device).manual_seed(stream_seed(seed, "baseline", 0))
    total = torch.zeros(len(index), device=index.device)
    for _ in range(parameters.baseline_actions):
        drawn = torch.randint(len(index), (len(index),), generator=generator, device=index.device)
        total += q.of_transitions(transitions, index, index[drawn])[0]
    return total / parameters.baseline_actions


def fitted_value(
    q: QFunction,
    transitions: Transitions,
    index: Tensor,
    values: Tensor,
    parameters: PolicyParameters,
    seed: int,
) -> Tensor:
    """V(s) by least squares on the Q of the logged actions: its mean under the behaviour policy.

    Fitted for few steps on purpose (``value_steps``): every state of a continuous log occurs once, and a
    V that memorised them would leave no advantage.
    """
    device = values.device
    inputs = torch.cat(
        [q.critic.encode_observation(transitions.states(part)) for part in torch.split(index, CHUNK)]
    )
    mean, std = values.mean(), values.std().clamp(min=1e-8)
    targets = (values - mean) / std
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream_seed(seed, "baseline", 1))
        network = mlp(inputs.shape[1], parameters.hidden, 1).to(device)
    optimizer = torch.optim.Adam(network.parameters(), lr=parameters.training.learning_rate)
    generator = Generator(device=device).manual_seed(stream_seed(seed, "baseline", 2))
    batch = parameters.training.batch_size
    with torch.enable_grad():
        for _ in range(parameters.value_steps):
            drawn = torch.randint(len(inputs), (batch,), generator=generator, device=device)
            loss = functional.mse_loss(network(inputs[drawn]).squeeze(-1), targets[drawn])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    fitted: Tensor = network(inputs).squeeze(-1)
    return fitted * std + mean


BASELINES: dict[str, Baseline] = {"marginal_actions": marginal_actions, "fitted_value": fitted_value}


@torch.no_grad()
def advantages(
    q: QFunction, transitions: Transitions, index: Tensor, parameters: PolicyParameters, seed: int
) -> Tensor:
    """``A(s, a) = Q(s, a) - V(s)`` of logged actions, in units of its own standard deviation, (M,).

    Args:
        q: frozen, on the device of the transitions.
        transitions: all episodes.
        index: (M,) int64, the transitions that train.
        parameters: the stage's; ``baseline`` chooses V.
        seed: of the baseline's draws.

    Raises:
        InputError: unknown baseline.
    """
    baseline = look_up("baseline", parameters.baseline, BASELINES)
    values, _ = q.of_transitions(transitions, index)
    advantage = values - baseline(q, transitions, index, values, parameters, seed)
    return advantage / advantage.std(unbiased=False).clamp(min=1e-8)
