"""A network regressed on returns beside a readout, on worlds whose values are known."""

from __future__ import annotations

import dataclasses
import logging
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils import parameters_to_vector

from cvl_pipeline.episodes.container import Rewards, Split, Transitions
from cvl_pipeline.episodes.preparation import split_episodes
from cvl_pipeline.io.artifacts import load_artifact, save_artifact
from cvl_pipeline.networks.critic import ContrastiveCritic, CriticShape
from cvl_pipeline.networks.mlp import MLP
from cvl_pipeline.readout.build import build_readout
from cvl_pipeline.readout.q_function import QFunction
from cvl_pipeline.readout.readouts import ExactReadout
from cvl_pipeline.readout.regression import (
    RegressedReadout,
    mixture_weights,
    run,
    stacking_weights,
)
from cvl_pipeline.testing.builders import (
    identity_normalisation,
    make_rewards,
    make_transitions,
    readout_parameters,
)
from cvl_pipeline.testing.finite_mdp import FiniteMDP, garnet
from tests.readout.critics import small_critic
from tests.readout.laws import all_pairs, critic_of, log_law

FAST = {"steps": 400, "value_steps": 200, "hidden": (64,)}


@pytest.fixture(scope="module")
def mdp() -> FiniteMDP:
    return garnet(states=12, actions=3, branching=2, discount=0.8, rewards="signed", seed=4)


@pytest.fixture(scope="module")
def log(mdp: FiniteMDP) -> tuple[Transitions, Rewards]:
    return mdp.log_episodes(400, 50, seed=0)


def read_out(
    critic: ContrastiveCritic, log: tuple[Transitions, Rewards], **regression: object
) -> RegressedReadout:
    split = split_episodes(log[0], 0.05, 0)
    parameters = readout_parameters(references=None, regression=FAST | regression)
    readout = build_readout(critic, *log, split, parameters, seed=0)
    assert isinstance(readout, RegressedReadout)
    return readout


def ignorant_critic(mdp: FiniteMDP) -> ContrastiveCritic:
    """A critic whose phi is the same for all pairs."""
    shape = CriticShape((mdp.states,), mdp.actions, (4,), 4, "unit_norm", 0.25, False, mdp.discount, False)
    torch.manual_seed(0)
    critic = ContrastiveCritic(shape, identity_normalisation(mdp.log_episodes(1, 2, 0)[0]))
    last = critic.phi_network[-1]
    assert isinstance(last, torch.nn.Linear)
    torch.nn.init.zeros_(last.weight)
    return critic.requires_grad_(False)


def correlation(mdp: FiniteMDP, q: QFunction) -> float:
    values = q(*all_pairs(mdp)).detach().numpy()
    return float(np.corrcoef(values, mdp.q().ravel())[0, 1])


def test_where_the_critic_knows_nothing_the_regression_counts(
    mdp: FiniteMDP, log: tuple[Transitions, Rewards]
) -> None:
    critic = ignorant_critic(mdp)
    readout = read_out(critic, log)
    assert readout.mixture[2] > 0
    assert correlation(mdp, QFunction(critic, readout)) > 0.97


def test_where_the_critic_is_perfect_and_the_network_knows_nothing_the_readout_counts(
    mdp: FiniteMDP, log: tuple[Transitions, Rewards]
) -> None:
    critic = critic_of(log_law(mdp, log[0]), mdp.discount)
    readout = read_out(critic, log, steps=1, value_steps=1, learning_rate=1e-9)
    assert readout.weight == pytest.approx(1.0, abs=0.1)
    assert readout.alone.weight == 1.0
    assert abs(float(readout.mixture[2])) < 0.1
    assert correlation(mdp, QFunction(critic, readout)) > 0.99


def test_together_they_are_no_worse_than_either(mdp: FiniteMDP, log: tuple[Transitions, Rewards]) -> None:
    critic = critic_of(log_law(mdp, log[0]), mdp.discount)
    readout = read_out(critic, log)
    both = correlation(mdp, QFunction(critic, readout))
    alone = correlation(mdp, QFunction(critic, readout.alone))
    assert both > alone - 0.005
    assert both > 0.98


def test_held_out_rewards_are_not_read(transitions: Transitions, rewards: Rewards) -> None:
    split = Split(train=torch.tensor([0, 1, 2, 4]), validation=torch.tensor([3, 5]))
    changed = rewards.rewards.clone()
    changed[transitions.transition_index(split.validation)] = 1e3
    parameters = readout_parameters(
        references=None, regression={"steps": 3, "value_steps": 3, "hidden": (4,)}
    )
    first, second = (
        build_readout(
            small_critic(), transitions, Rewards(values, rewards.successes), split, parameters, seed=0
        )
        for values in (rewards.rewards, changed)
    )
    assert isinstance(first, RegressedReadout)
    assert isinstance(second, RegressedReadout)
    assert torch.equal(first.networks, second.networks)
    assert torch.equal(first.mixture, second.mixture)


@pytest.mark.parametrize("network_weight", [0.3, 0.0])
def test_nothing_is_judged_on_episodes_that_it_was_fitted_to(
    monkeypatch: pytest.MonkeyPatch, network_weight: float
) -> None:
    from cvl_pipeline.readout import build, fitting, references, regression

    fitted: list[set[int]] = []
    judged: list[set[int]] = []
    others: set[int] = set()
    of_references: list[set[int]] = []
    original, future_states = fitting._Networks, references.future_states

    class Watched(original):  # type: ignore[misc, valid-type]
        def train(self, *arguments: Any) -> None:
            fitted.append(set(data.episode_of(self._index).tolist()))
            original.train(self, *arguments)

        def outputs(self, rows: Tensor, actions: Tensor | None = None) -> Tensor:
            if actions is not None:  # otherwise they are parts of targets
                judged.append(set(data.episode_of(rows).tolist()))
                if not torch.equal(actions, rows):
                    others.update(data.episode_of(actions).tolist())
            return original.outputs(self, rows, actions)

    def watched(*arguments: Any) -> Any:
        of_references.append(set(arguments[3].tolist()))
        return future_states(*arguments)

    monkeypatch.setattr(fitting, "_Networks", Watched)
    monkeypatch.setattr(regression, "mixture_weights", lambda *_: (0.1, 0.6, network_weight))
    monkeypatch.setattr(build, "future_states", watched)
    data = make_transitions([5] * 11, [False] * 11)
    split = Split(train=torch.arange(10), validation=torch.tensor([10]))
    parameters = readout_parameters(
        references=None, regression={"steps": 4, "value_steps": 4, "hidden": (4,)}
    )
    build_readout(small_critic(), data, make_rewards(data), split, parameters, seed=0)
    assert len(judged[0]) == 2  # a fifth
    assert judged == [judged[0]] * len(judged)
    assert others.isdisjoint(judged[0])
    rest = set(range(10)) - judged[0]
    # When the weights are known, networks that have any go on with all episodes.
    assert fitted == [rest, rest] + [set(range(10))] * 2 * (network_weight > 0)
    assert of_references == [set(range(10)), rest]


@given(
    st.lists(st.floats(0.0, 3.0), min_size=2, max_size=2),
    st.floats(-2.0, 2.0),
    st.integers(0, 100),
)
def test_stacking_finds_non_negative_weights(weights: list[float], constant: float, seed: int) -> None:
    generator = np.random.default_rng(seed)
    estimates: NDArray[np.float64] = generator.standard_normal((60, 2))
    returns = constant + estimates @ np.array(weights)
    found = stacking_weights(estimates, returns, generator.random(60) + 0.1)
    np.testing.assert_allclose(found, [constant, *weights], atol=1e-6)


def test_errors_decide_the_ratio_and_returns_the_scale() -> None:
    """Between states the second estimate is right; between actions only the first is."""
    generator = np.random.default_rng(0)
    states = generator.standard_normal((4000, 1))
    advantages = generator.standard_normal((4000, 2))
    values = np.concatenate([0.1 * states, states], axis=1) + 0.1 * advantages
    errors = 0.05 * advantages[:, 0] + 0.02 * advantages[:, 1] + 0.05 * generator.standard_normal(4000)
    returns = 3.0 + 2.0 * states[:, 0]
    constant, first, second = mixture_weights(values, 0.1 * advantages, errors, returns, np.ones(4000))
    assert first / second == pytest.approx(2.5, rel=0.15)
    assert constant == pytest.approx(3.0, abs=0.05)
    combined = values @ np.array([first, second])
    assert np.polyfit(combined, returns, 1)[0] == pytest.approx(1.0, abs=0.01)


def test_if_no_advantage_predicts_the_errors_returns_decide() -> None:
    generator = np.random.default_rng(0)
    values = generator.standard_normal((500, 2))
    returns = values @ np.array([0.5, 1.5])
    found = mixture_weights(values, values, -values.sum(1), returns, np.ones(500))
    np.testing.assert_allclose(found, [0.0, 0.5, 1.5], atol=1e-9)


def test_a_harmful_estimate_gets_no_weight() -> None:
    generator = np.random.default_rng(0)
    estimates = generator.standard_normal((500, 2))
    returns = estimates[:, 0] - 0.5 * estimates[:, 1]
    constant, first, second = stacking_weights(estimates, returns, np.ones(500))
    assert second == 0.0
    assert first == pytest.approx(1.0, abs=0.1)
    assert abs(constant) < 0.1


def test_the_mean_of_networks_with_different_initial_weights_counts(
    mdp: FiniteMDP, log: tuple[Transitions, Rewards]
) -> None:
    critic = ignorant_critic(mdp)
    readout = read_out(critic, log, members=3)
    inputs = critic.inputs(*all_pairs(mdp)).float()
    outputs = torch.stack([run(network, readout.sizes, inputs) for network in readout.networks])
    assert len(outputs) == 3
    assert float((outputs[0] - outputs[1]).abs().max()) > 1e-3
    rewards = readout.mixture[0] + readout.mixture[2] * outputs.mean(0)
    with torch.no_grad():
        values = dataclasses.replace(readout, mixture=readout.mixture * torch.tensor([1.0, 0.0, 1.0]))
        torch.testing.assert_close(
            values.values(torch.zeros(len(inputs), 4), inputs), rewards / (1.0 - readout.discount)
        )


@pytest.mark.parametrize("hidden", [(), (5,), (6, 7)])
def test_networks_run_from_their_parameters_as_the_module_does(hidden: tuple[int, ...]) -> None:
    torch.manual_seed(1)
    network, inputs = MLP(3, hidden, 1), torch.randn(4, 2, 3)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter)
    weights = parameters_to_vector(network.parameters()).detach()
    torch.testing.assert_close(run(weights, (3, *hidden, 1), inputs), network(inputs).squeeze(-1).detach())


@pytest.mark.parametrize("conditioned", [False, True])
def test_a_regressed_readout_is_stored_and_differentiable(
    conditioned: bool,
    tmp_path: pytest.TempPathFactory,
    transitions: Transitions,
    rewards: Rewards,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    critic = small_critic(horizon_conditioning=conditioned).requires_grad_(False)
    split = Split(train=torch.arange(5), validation=torch.tensor([5]))
    parameters = readout_parameters(
        references=None, regression={"steps": 3, "value_steps": 3, "hidden": (4,)}
    )
    monkeypatch.setattr("cvl_pipeline.readout.regression.mixture_weights", lambda *_: (0.1, 0.6, 0.3))
    readout = build_readout(critic, transitions, rewards, split, parameters, seed=0)
    assert isinstance(readout, RegressedReadout)
    save_artifact(f"{tmp_path}/readout.safetensors", "readout", readout)
    loaded = load_artifact(f"{tmp_path}/readout.safetensors", "readout")
    assert isinstance(loaded, RegressedReadout)
    assert loaded.sizes == readout.sizes
    pairs = transitions.states()[:6], transitions.actions[:6].clone().requires_grad_()
    values = QFunction(critic, readout)(*pairs)
    assert torch.equal(QFunction(critic, loaded)(*pairs), values)
    (gradient,) = torch.autograd.grad(values.sum(), pairs[1])
    assert gradient.abs().min() > 0
    moved = QFunction(critic, readout).frozen("cpu").readout
    assert isinstance(moved, RegressedReadout)
    assert isinstance(moved.alone, ExactReadout)


def test_a_single_training_episode_is_not_regressed() -> None:
    data = make_transitions([9, 4], [False, False])
    split = Split(train=torch.tensor([0]), validation=torch.tensor([1]))
    parameters = readout_parameters(references=None, regression=FAST)
    readout = build_readout(small_critic(), data, make_rewards(data), split, parameters, seed=0)
    assert isinstance(readout, ExactReadout)


def test_equal_returns_are_not_regressed(transitions: Transitions, rewards: Rewards) -> None:
    split = split_episodes(transitions, 0.3, 0)
    equal = Rewards(torch.zeros(len(transitions)), rewards.successes)
    parameters = readout_parameters(references=None, regression=FAST)
    readout = build_readout(small_critic(), transitions, equal, split, parameters, seed=0)
    assert isinstance(readout, ExactReadout)


def test_a_log_whose_judged_returns_nothing_predicts_keeps_the_readout(
    monkeypatch: pytest.MonkeyPatch, transitions: Transitions, rewards: Rewards
) -> None:
    monkeypatch.setattr(
        "cvl_pipeline.readout.regression.mixture_weights", lambda *_: (float("nan"), 0.0, 0.0)
    )
    split = split_episodes(transitions, 0.3, 0)
    parameters = readout_parameters(
        references=None, regression={"steps": 1, "value_steps": 1, "hidden": (4,)}
    )
    readout = build_readout(small_critic(), transitions, rewards, split, parameters, seed=0)
    assert isinstance(readout, ExactReadout)


@pytest.mark.parametrize(
    ("readout_weight", "text"),
    [
        (0.6, "0.60 times the readout and 0.30 times the regression on returns"),
        (0.0, "0.30 times the regression on returns, without any share of the critic's values"),
    ],
)
def test_the_weights_are_logged(
    readout_weight: float,
    text: str,
    caplog: pytest.LogCaptureFixture,
    transitions: Transitions,
    rewards: Rewards,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        "cvl_pipeline.readout.regression.mixture_weights", lambda *_: (0.1, readout_weight, 0.3)
    )
    parameters = readout_parameters(
        references=None, regression={"steps": 1, "value_steps": 1, "hidden": (4,)}
    )
    with caplog.at_level(logging.INFO):
        build_readout(
            small_critic(), transitions, rewards, split_episodes(transitions, 0.3, 0), parameters, seed=0
        )
    assert text in caplog.messages[-1]
