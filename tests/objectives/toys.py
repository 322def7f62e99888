"""Critics whose Q is known, readouts for them, and small trainings of policies."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cvl_pipeline.episodes.container import Rewards, Transitions
from cvl_pipeline.networks.critic import ContrastiveCritic, CriticShape
from cvl_pipeline.objectives.base import TrainedPolicy
from cvl_pipeline.objectives.training import PolicyExtraction, train_policy
from cvl_pipeline.readout.build import build_readout
from cvl_pipeline.readout.q_function import QFunction
from cvl_pipeline.readout.readouts import ExactReadout
from cvl_pipeline.testing.builders import (
    make_data,
    make_discrete_transitions,
    make_rewards,
    make_transitions,
    policy_parameters,
    readout_parameters,
    split_first,
)

DISCOUNT = 0.5

# Two references, equally likely, worth 1 and 0.
READOUT = ExactReadout(
    temperature=torch.tensor(1.0),
    horizons=torch.zeros(0, dtype=torch.int64),
    discount=DISCOUNT,
    self_normalised=True,
    psi=torch.eye(2),
    rewards=torch.tensor([1.0, 0.0]),
    log_weights=torch.full((2,), -math.log(2.0)),
)


class KnownCritic(ContrastiveCritic):
    """``f(s, a, first reference) = logit(s, a)``, zero for the second, so that Q = 2 sigmoid(logit)."""

    def __init__(self, action_size: int = 2) -> None:
        super().__init__(CriticShape((3,), action_size, (), 2, "raw", 1.0, False, DISCOUNT, False))
        with torch.no_grad():  # unused; the same in every critic, so that fingerprints are the same too
            for parameter in self.parameters():
                parameter.zero_()

    def logit(self, observations: Tensor, actions: Tensor) -> Tensor:
        """(..., O) and (..., A) -> (...)."""
        raise NotImplementedError

    def phi(self, observations: Tensor, actions: Tensor, offsets: Tensor | None = None) -> Tensor:
        logit = self.logit(observations, actions)
        return torch.stack([logit, torch.zeros_like(logit)], dim=-1)

    def psi(self, futures: Tensor, absorbed: Tensor) -> Tensor:
        """Every future state is like the first reference."""
        return torch.tensor([1.0, 0.0]).expand(*absorbed.shape, 2)


class LinearCritic(KnownCritic):
    """The logit is ``g s_0 + h a_0``."""

    def __init__(self, state_weight: float, action_weight: float) -> None:
        super().__init__()
        self.weights = (state_weight, action_weight)

    def logit(self, observations: Tensor, actions: Tensor) -> Tensor:
        return self.weights[0] * observations[..., 0] + self.weights[1] * actions[..., 0]


class TargetCritic(KnownCritic):
    """Q is highest at the action (0.5, -0.5), whatever the state."""

    TARGET = (0.5, -0.5)

    def logit(self, observations: Tensor, actions: Tensor) -> Tensor:
        return -(actions - torch.tensor(self.TARGET)).square().sum(-1)


class SignCritic(KnownCritic):
    """Of three discrete actions, the first is best where s_0 > 0 and the second where s_0 < 0."""

    def __init__(self) -> None:
        super().__init__(action_size=3)

    def logit(self, observations: Tensor, actions: Tensor) -> Tensor:
        return 2.0 * observations[..., 0] * (actions[..., 0] - actions[..., 1])

    @staticmethod
    def best(observations: Tensor) -> Tensor:
        """Index of the best action, (B,)."""
        return (observations[:, 0] < 0).long()


def q_of(critic: ContrastiveCritic) -> QFunction:
    return QFunction(critic, READOUT)


TRAIN = 4
"""Episodes of ``episodes`` that train; the other two are held out."""


def episodes(discrete: bool = False) -> Transitions:
    """Six random episodes of fifty steps, every second one of which terminates."""
    make = make_discrete_transitions if discrete else make_transitions
    return make([50] * 6, [False, True] * 3)


def known_q(transitions: Transitions) -> QFunction:
    """Q of which the best action is known: ``TargetCritic.TARGET`` or ``SignCritic.best``."""
    return q_of(SignCritic() if transitions.discrete else TargetCritic())


def network_q(transitions: Transitions, conditioned: bool = False, **changes: Any) -> QFunction:
    """Q of an untrained critic with networks, and of a readout built from it, whose parameters ``changes`` are."""
    torch.manual_seed(0)
    size = transitions.actions.shape[1]
    critic = ContrastiveCritic(CriticShape((3,), size, (8,), 4, "unit_norm", 0.5, True, 0.9, conditioned))
    parameters = readout_parameters(**changes)
    split, labels = split_first(transitions, TRAIN), make_rewards(transitions)
    return QFunction(critic, build_readout(critic, transitions, labels, split, parameters, 0))


def make_module(
    transitions: Transitions, values: QFunction | None = None, **changes: Any
) -> PolicyExtraction:
    """An objective's training before its first step; with the known Q by default."""
    module = PolicyExtraction(
        make_data(transitions, TRAIN, make_rewards(transitions)),
        policy_parameters(**changes),
        0,
        values or known_q(transitions),
    )
    module.on_fit_start()
    return module


def train(
    transitions: Transitions, objective: str, checkpoints: Path | None = None, **changes: Any
) -> TrainedPolicy:
    """Train by an objective with the known Q; every reward is 1."""
    ones = Rewards(torch.ones(len(transitions)), torch.zeros(len(transitions), dtype=torch.bool))
    return train_policy(
        make_data(transitions, TRAIN, ones),
        policy_parameters(objective=objective, **changes),
        0,
        values=known_q(transitions) if objective != "bc" else None,
        checkpoints=checkpoints,
    )


def loss_of(module: PolicyExtraction, batch: Any = None) -> tuple[float, dict[str, Tensor]]:
    """Loss and metrics of a batch; by default of all training transitions."""
    if batch is None:
        batch = torch.arange(len(module.objective.setting.train_index))
    loss, metrics = module.training_loss(batch)
    return float(loss.detach()), metrics


def training_transitions(transitions: Transitions) -> tuple[Tensor, Tensor]:
    """States and actions of the training episodes, (M, O) and (M, A)."""
    index = transitions.transition_index(torch.arange(TRAIN))
    return transitions.states(index), transitions.actions[index]


def distance(policy: nn.Module, transitions: Transitions) -> float:
    """Mean squared distance of the policy's actions from the best one."""
    with torch.no_grad():
        actions = policy(transitions.states())
        return float((actions - torch.tensor(TargetCritic.TARGET)).square().mean())


def hits(policy: nn.Module, transitions: Transitions) -> float:
    """Share of states in which the policy takes the best discrete action."""
    with torch.no_grad():
        chosen = policy(transitions.states()).argmax(1)
    return float((chosen == SignCritic.best(transitions.states())).double().mean())
