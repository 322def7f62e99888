"""A network regressed on returns beside a readout, on worlds whose values are known."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.utils import parameters_to_vector

from cvl_pipeline.episodes.container import Rewards, Split, Transitions
from cvl_pipeline.episodes.preparation import split_episodes
from cvl_pipeline.io.artifacts import load_artifact, save_artifact
from cvl_pipeline.networks.critic import ContrastiveCritic, CriticShape
from cvl_pipeline.networks.mlp import MLP
from cvl_pipeline.readout.build import build_readout
from cvl_pipeline.readout.q_function import QFunction
from cvl_pipeline.readout.readouts import ExactReadout
from cvl_pipeline.readout.regression import RegressedReadout, calibration, run
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
    assert correlation(mdp, QFunction(critic, read_out(critic, log))) > 0.97


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_q_is_a_mean_by_shares_and_calibrated(
    share: float, mdp: FiniteMDP, log: tuple[Transitions, Rewards]
) -> None:
    critic = critic_of(log_law(mdp, log[0]), mdp.discount)
    readout = read_out(critic, log, readout_share=share)
    pairs = all_pairs(mdp)
    inputs = critic.inputs(*pairs).float()
    networks = torch.stack([run(network, readout.sizes, inputs) for network in readout.networks]).mean(0)
    alone = (1.0 - mdp.discount) * QFunction(critic, readout.alone)(*pairs)
    q = (1.0 - mdp.discount) * QFunction(critic, readout)(*pairs)
    basis = torch.stack([torch.ones_like(q), alone, networks], 1).double().detach().numpy()
    found, *_ = np.linalg.lstsq(basis, q.double().detach().numpy(), rcond=None)
    # Networks learn standardised returns, whose standard deviation is not in the readout.
    np.testing.assert_allclose(found, readout.mixture, rtol=0.01, atol=1e-4)
    exact = (1.0 - mdp.discount) * mdp.q().ravel()
    assert np.polyfit(q.detach().numpy(), exact, 1)[0] == pytest.approx(1.0, abs=0.1)


def test_together_they_are_no_worse_than_either(mdp: FiniteMDP, log: tuple[Transitions, Rewards]) -> None:
    critic = critic_of(log_law(mdp, log[0]), mdp.discount)
    readout = read_out(critic, log)
    both = correlation(mdp, QFunction(critic, readout))
    alone = correlation(mdp, QFunction(critic, readout.alone))
    assert both > alone - 0.005
    assert both > 0.98


def test_rewards_of_validation_episodes_are_not_read(transitions: Transitions, rewards: Rewards) -> None:
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


def test_networks_and_references_come_from_training_episodes(monkeypatch: pytest.MonkeyPatch) -> None:
    from cvl_pipeline.readout import build, fitting, references

    fitted: list[set[int]] = []
    of_references: list[set[int]] = []
    original, future_states = fitting._Networks, references.future_states

    class Watched(original):  # type: ignore[misc, valid-type]
        def train(self, *arguments: Any) -> None:
            fitted.append(set(data.episode_of(self._index).tolist()))
            original.train(self, *arguments)

    def watched(*arguments: Any) -> Any:
        of_references.append(set(arguments[3].tolist()))
        return future_states(*arguments)

    monkeypatch.setattr(fitting, "_Networks", Watched)
    monkeypatch.setattr(build, "future_states", watched)
    data = make_transitions([5] * 11, [False] * 11)
    split = Split(train=torch.arange(1, 10), validation=torch.tensor([0, 10]))
    parameters = readout_parameters(
        references=None, regression={"steps": 4, "value_steps": 4, "hidden": (4,)}
    )
    build_readout(small_critic(), data, make_rewards(data), split, parameters, seed=0)
    train = set(range(1, 10))
    assert fitted == [train, train]
    assert of_references == [train]


@given(st.floats(0.01, 100.0), st.floats(-2.0, 2.0), st.integers(0, 100))
def test_calibration_finds_the_line(slope: float, constant: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    values, weights = torch.rand(2, 60, generator=generator, dtype=torch.float64)
    found = calibration(values, constant + slope * values, weights + 0.1)
    np.testing.assert_allclose(found, [constant, slope], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("values", [[1.0, 2.0, 3.0], [1.0, 1.0, 1.0]], ids=["falling", "equal"])
def test_values_that_do_not_predict_returns_keep_their_scale_and_get_the_mean(values: list[float]) -> None:
    given_values = torch.tensor(values, dtype=torch.float64)
    returns = torch.tensor([3.0, 1.0, -1.0], dtype=torch.float64)
    constant, slope = calibration(given_values, returns, torch.ones(3, dtype=torch.float64))
    assert slope == 1.0
    assert constant + float(given_values.mean()) == pytest.approx(1.0)


def test_returns_without_weight_do_not_count() -> None:
    values, weights = torch.tensor([0.0, 1.0, 5.0]).double(), torch.tensor([1.0, 1.0, 0.0]).double()
    assert calibration(values, torch.tensor([1.0, 3.0, -9.0]).double(), weights) == (1.0, 2.0)


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
) -> None:
    critic = small_critic(horizon_conditioning=conditioned).requires_grad_(False)
    split = Split(train=torch.arange(5), validation=torch.tensor([5]))
    parameters = readout_parameters(
        references=None, regression={"steps": 3, "value_steps": 3, "hidden": (4,)}
    )
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


def test_equal_returns_are_not_regressed(transitions: Transitions, rewards: Rewards) -> None:
    split = split_episodes(transitions, 0.3, 0)
    equal = Rewards(torch.zeros(len(transitions)), rewards.successes)
    parameters = readout_parameters(references=None, regression=FAST)
    readout = build_readout(small_critic(), transitions, equal, split, parameters, seed=0)
    assert isinstance(readout, ExactReadout)
