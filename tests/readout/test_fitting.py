"""Networks of V and Q: what they are fitted to, and how far values travel."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from cvl_pipeline.episodes.container import Normalisation, Rewards, Split, Transitions
from cvl_pipeline.episodes.preparation import last_steps, split_episodes
from cvl_pipeline.networks.critic import ContrastiveCritic, CriticShape
from cvl_pipeline.readout import fitting, logged_returns
from cvl_pipeline.readout.build import build_readout
from cvl_pipeline.readout.parameters import RegressionParameters
from cvl_pipeline.readout.regression import RegressedReadout, run
from cvl_pipeline.testing.builders import (
    identity_normalisation,
    make_transitions,
    readout_parameters,
)
from cvl_pipeline.training.least_squares import fit_least_squares
from tests.readout.critics import small_critic


def test_a_critic_that_looks_further_ahead_than_the_values_gives_returns(
    monkeypatch: pytest.MonkeyPatch, transitions: Transitions, rewards: Rewards
) -> None:
    shorts: list[float] = []
    original = logged_returns.lambda_returns

    def watched(*arguments: Any) -> Tensor:
        shorts.append(arguments[4])
        return original(*arguments)

    monkeypatch.setattr(logged_returns, "lambda_returns", watched)
    parameters = readout_parameters(
        references=None, discount=0.8, regression={"steps": 1, "value_steps": 1, "hidden": (4,)}
    )
    critic = small_critic(discount=0.97, horizon_conditioning=True)
    build_readout(critic, transitions, rewards, split_episodes(transitions, 0.3, 0), parameters, seed=0)
    assert set(shorts) == {0.8}


def test_weight_decay_takes_weights_from_v_and_q(
    monkeypatch: pytest.MonkeyPatch, transitions: Transitions, rewards: Rewards
) -> None:
    sizes: list[float] = []
    original = fit_least_squares

    def watched(network: torch.nn.Module, *arguments: Any, **settings: Any) -> None:
        original(network, *arguments, **settings)
        sizes.append(float(sum(weights.square().sum() for weights in network.parameters())))

    monkeypatch.setattr(fitting, "fit_least_squares", watched)
    for decay in (0.0, 20.0):
        regression = {"steps": 30, "value_steps": 30, "hidden": (4,), "weight_decay": decay}
        parameters = readout_parameters(references=None, regression=regression)
        split = split_episodes(transitions, 0.3, 0)
        build_readout(small_critic(), transitions, rewards, split, parameters, seed=0)
    v, q, decayed_v, decayed_q = sizes
    assert decayed_v < 0.7 * v
    assert decayed_q < 0.7 * q


@pytest.mark.parametrize("rounds", [1, 2])
def test_images_are_encoded_once_and_networks_are_the_same(
    monkeypatch: pytest.MonkeyPatch, rounds: int
) -> None:
    torch.manual_seed(0)
    vectors = make_transitions([6, 5, 4], [False, True, False])
    pictures = torch.randint(0, 256, (len(vectors.observations), 8, 8, 3), dtype=torch.uint8)
    data = dataclasses.replace(vectors, observations=pictures)
    statistics = Normalisation(torch.full((3,), 100.0), torch.full((3,), 50.0), torch.zeros(2), torch.ones(2))
    shape = CriticShape((8, 8, 3), 2, (8,), 4, "unit_norm", 0.25, False, 0.9, False)
    critic = ContrastiveCritic(shape, statistics).requires_grad_(False).eval()
    encoded: list[int] = []
    critic.encode_observation.register_forward_hook(
        lambda _module, inputs, _output: encoded.append(len(inputs[0]))
    )
    parameters = RegressionParameters.model_validate(
        {"steps": 20, "value_steps": 20, "hidden": (4,), "batch_size": 16, "rounds": rounds}
    )
    index = torch.arange(11)  # of the first two episodes

    def fitted() -> list[Tensor]:
        log = logged_returns.LoggedReturns.of(data, torch.rand(len(data)), 0.9, 0.5, index)
        fit = fitting.ValueFit(critic, log, index, parameters, seed=0)
        with torch.no_grad():
            fit.fit()
        return [fit._value.vectors(), fit.action_value.vectors()]

    torch.manual_seed(1)
    networks = fitted()
    assert sum(encoded) == 1 + 13  # one for its size
    monkeypatch.setattr(fitting._States, "encode", lambda *_: None)
    torch.manual_seed(1)
    torch.testing.assert_close(fitted(), networks, rtol=1e-3, atol=1e-5)


def test_after_a_termination_nothing_follows_whatever_the_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    """Targets are standardised last: the state after a termination is worth nothing, not the mean."""
    seen: list[tuple[Tensor, Tensor]] = []
    original = fitting._Networks

    class Watched(original):  # type: ignore[misc, valid-type]
        def __init__(self, *arguments: Any) -> None:
            original.__init__(self, *arguments)
            seen.append((self._targets, self._weights))

        def of_arrivals(self, index: Tensor) -> Tensor:
            return torch.zeros(len(self._targets))

    monkeypatch.setattr(fitting, "_Networks", Watched)
    data = make_transitions([6] * 6, [True] * 6)
    rewards = Rewards(10.0 + torch.rand(36), torch.zeros(36, dtype=torch.bool))
    parameters = readout_parameters(
        references=None, regression={"steps": 1, "value_steps": 1, "hidden": (4,)}
    )
    split = Split(train=torch.arange(5), validation=torch.tensor([5]))
    build_readout(small_critic(), data, rewards, split, parameters, seed=0)
    (returns, _), (targets, _) = seen
    last = data.episode_starts[1:] - 1
    # The last step has its reward and nothing else, so both targets agree there.
    torch.testing.assert_close(targets[last], returns[last], rtol=1e-4, atol=1e-4)


def test_rounds_carry_values_through_pieces_of_episodes() -> None:
    """In a corridor of 16 cells with the reward at its end, no logged piece is longer than 4 steps."""
    cells, piece, pieces = 16, 4, 600
    generator = np.random.default_rng(0)
    moves = generator.choice([-1, 1], (pieces, piece))
    places = np.empty((pieces, piece + 1), dtype=np.int64)
    places[:, 0] = generator.integers(0, cells, pieces)
    for step in range(piece):
        places[:, step + 1] = (places[:, step] + moves[:, step]).clip(0, cells - 1)
    data = dataclasses.replace(
        make_transitions([piece] * pieces, [False] * pieces, observation_size=cells, action_size=1),
        observations=torch.eye(cells)[places.ravel()],
        actions=torch.from_numpy(moves.reshape(-1, 1)).float(),
    )
    rewarded = torch.from_numpy(places[:, 1:].ravel() == cells - 1)
    split = split_episodes(data, 0.05, 0)
    shape = CriticShape((cells,), 1, (4,), 4, "unit_norm", 0.25, False, 0.7, False)
    critic = ContrastiveCritic(shape, identity_normalisation(data)).requires_grad_(False)
    far = torch.eye(cells)[: cells - piece - 1]  # no piece from here reaches the reward

    def preferred(rounds: int | None) -> float:
        regression = {"steps": 500, "value_steps": 150, "rounds": rounds, "hidden": (64,)}
        parameters = readout_parameters(references=None, discount=0.95, regression=regression)
        readout = build_readout(critic, data, Rewards(rewarded.float(), rewarded), split, parameters, seed=0)
        assert isinstance(readout, RegressedReadout)
        forward, back = (
            torch.stack(
                [
                    run(network, readout.sizes, critic.inputs(far, torch.full((len(far), 1), move)).float())
                    for network in readout.networks
                ]
            ).mean(0)
            for move in (1.0, -1.0)
        )
        return float((forward > back).float().mean())

    assert preferred(1) < 0.8
    assert preferred(None) == 1.0  # the pieces are short, so there are several


def test_actions_are_ordered_by_the_next_logged_pair_where_operators_differ() -> None:
    """Two operators walk a corridor of six cells, each with an action of its own, which does not move them.

    The last cell rewards the first operator alone. No window has more than three steps, so an action of an early cell
    is better only because the same operator's action follows it. V of the next cell is the mean of both operators.
    """
    cells, gamma = 6, 0.9
    starts = [start for start in range(cells) for _ in range(2)]
    lengths = [min(3, cells - start) for start in starts]
    ends = [start + length for start, length in zip(starts, lengths, strict=True)]
    places = torch.cat([torch.arange(start, end + 1) for start, end in zip(starts, ends, strict=True)])
    operators = torch.tensor([1.0, -1.0]).repeat(cells).repeat_interleave(torch.tensor(lengths))
    data = dataclasses.replace(
        make_transitions(lengths, [end == cells for end in ends], observation_size=cells + 1, action_size=1),
        observations=torch.eye(cells + 1)[places],
        actions=operators.unsqueeze(1),
    )
    at = data.states().argmax(-1)
    rewards = ((at == cells - 1) & (operators > 0.0)).float()
    shape = CriticShape((cells + 1,), 1, (4,), 4, "unit_norm", 0.25, False, gamma, False)
    index = torch.arange(len(data))
    log = logged_returns.LoggedReturns.of(data, rewards, gamma, 0.0, index)
    fit = fitting.ValueFit(
        ContrastiveCritic(shape, identity_normalisation(data)).requires_grad_(False),
        log,
        index,
        RegressionParameters.model_validate(
            {"steps": 480, "value_steps": 120, "hidden": (32,), "members": 1}
        ),
        seed=0,
    )
    # Where a window ends, V follows, which is the same for both operators.
    inner = ~last_steps(data)
    expected = torch.zeros(cells)
    expected[-1] = 1.0 - gamma
    for cell in reversed(range(cells - 1)):
        expected[cell] = gamma * inner[at == cell].float().mean() * expected[cell + 1]
    first, second = (
        torch.stack([((at == cell) & (operators == action)).nonzero()[0, 0] for cell in range(cells)])
        for action in (1.0, -1.0)
    )
    with torch.no_grad():
        fit.fit()
        differences = log.deviation * (fit.action_value.outputs(first) - fit.action_value.outputs(second))
    torch.testing.assert_close(differences, expected, rtol=0.1, atol=0.003)


@pytest.mark.parametrize(("length", "logged"), [(3, (0.1 + 0.19 + 0.271) / 3.0), (200, 1.0)])
def test_the_readout_counts_less_in_logs_of_windows(length: int, logged: float) -> None:
    data = make_transitions([length] * 6, [False] * 6)
    index = torch.arange(len(data))
    fit = fitting.ValueFit(
        small_critic(),
        logged_returns.LoggedReturns.of(data, torch.ones(len(data)), 0.9, 0.5, index),
        index,
        RegressionParameters(readout_share=0.4),
        seed=0,
    )
    assert fit.readout_share == pytest.approx(0.4 * logged)
