"""Advantages of logged actions: Q of the readout less a state value fitted to it."""

from __future__ import annotations

import torch
from torch import Generator, Tensor
from torch.nn import functional

from cvl_pipeline.networks.mlp import mlp
from cvl_pipeline.policies.parameters import PolicyParameters
from cvl_pipeline.training.seeds import stream_seed
from cvl_pipeline.trajectories.container import Normalisation


def advantages(
    observations: Tensor,
    values: Tensor,
    normalisation: Normalisation,
    parameters: PolicyParameters,
    seed: int,
) -> Tensor:
    """``A(s, a) = Q(s, a) - V(s)`` in units of its own standard deviation, (N,).

    V minimises the squared error to Q over the logged actions, so it is the mean of Q under the
    behaviour policy. It is fitted for few steps on purpose: every state of a continuous log occurs
    once, and a V that memorised them would leave no advantage.

    Args:
        observations: (N, O).
        values: (N,), Q of the logged actions.
        normalisation: statistics of the observations.
        parameters: the stage's.
        seed: of V's initial weights and batches.
    """
    device = values.device
    inputs = (observations - normalisation.observation_mean.to(device)) / (
        normalisation.observation_std.to(device)
    )
    targets = (values - values.mean()) / values.std().clamp(min=1e-8)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream_seed(seed, "initialisation", 2))
        network = mlp(inputs.shape[1], parameters.hidden, 1).to(device)
    optimizer = torch.optim.Adam(network.parameters(), lr=parameters.training.learning_rate)
    generator = Generator(device=device).manual_seed(stream_seed(seed, "initialisation", 3))
    with torch.enable_grad():
        for _ in range(parameters.value_steps):
            index = torch.randint(
                len(inputs), (parameters.training.batch_size,), generator=generator, device=device
            )
            loss = functional.mse_loss(network(inputs[index]).squeeze(-1), targets[index])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
    with torch.no_grad():
        advantage = targets - network(inputs).squeeze(-1)
    return advantage / advantage.std().clamp(min=1e-8)
