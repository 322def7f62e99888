from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from cvl_pipeline.dynamics.module import train_dynamics
from cvl_pipeline.readout import exact
from cvl_pipeline.readout.exact import Readout, build_readout, state_action_values
from cvl_pipeline.readout.parameters import ReadoutParameters
from cvl_pipeline.trajectories.container import Rewards, Split, Transitions
from cvl_pipeline.trajectories.sampling import SegmentSampler
from tests.builders import dynamics_parameters, identity_normalisation
from benchmarks.finite_mdp import ExactCritic, FiniteMDP, grid_world, sampler_marginal

Floats = NDArray[np.float64]


def _readout(
    references: int, size: int = 6, seed: int = 0, temperature: float = 0.2, **changes: Any
) -> Readout:
    generator = torch.Generator().manual_seed(seed)
    values: dict[str, Any] = {
        "psi": torch.randn(references, size, generator=generator),
        "rewards": torch.rand(references, generator=generator) * 3.0 - 1.0,
        "temperature": torch.tensor(temperature),
        "discount": torch.tensor(0.9),
    }
    return Readout(**(values | changes))


def _queries(count: int, size: int = 6) -> torch.Tensor:
    return torch.randn(count, size, generator=torch.Generator().manual_seed(99))


def _unstreamed(readout: Readout, phi: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    logits = phi.double() @ readout.psi.double().T / readout.temperature.double()
    weights = logits.softmax(-1)
    values = weights @ readout.rewards.double() / (1.0 - readout.discount.double())
    return values, 1.0 / weights.square().sum(-1)


@pytest.mark.parametrize("chunk", [1, 2, 7, 49, 50, 51, 4096])
def test_streamed_values_equal_the_formula_whatever_the_chunk(
    monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    monkeypatch.setattr(exact, "CHUNK", chunk)
    readout, phi = _readout(50), _queries(11)
    values, sizes = readout.values_and_sample_size(phi)
    expected, expected_sizes = _unstreamed(readout, phi)
    np.testing.assert_allclose(values, expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(sizes, expected_sizes, rtol=1e-4)
    np.testing.assert_array_equal(readout.values(phi), values)


@pytest.mark.parametrize("chunk", [3, 4096])
def test_logits_far_beyond_the_range_of_exp_do_no_harm(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr(exact, "CHUNK", chunk)
    readout, phi = _readout(20, temperature=1e-3), _queries(5)  # logits of some thousands, either sign
    values, sizes = readout.values_and_sample_size(phi)
    expected, expected_sizes = _unstreamed(readout, phi)
    assert (phi @ readout.psi.T / 1e-3).abs().max() > 1000
    np.testing.assert_allclose(values, expected, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(sizes, expected_sizes, rtol=1e-3)


@pytest.mark.parametrize("chunk", [3, 4096])
def test_gradients_are_those_of_the_formula(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr(exact, "CHUNK", chunk)
    readout = _readout(20)
    phi, reference = _queries(5).requires_grad_(), _queries(5).double().requires_grad_()
    readout.values(phi).square().sum().backward()  # type: ignore[no-untyped-call]
    _unstreamed(readout, reference)[0].square().sum().backward()  # type: ignore[no-untyped-call]
    assert phi.grad is not None
    assert reference.grad is not None
    assert reference.grad.abs().max() > 1.0
    np.testing.assert_allclose(phi.grad, reference.grad, rtol=1e-3, atol=1e-3)


@given(
    references=st.integers(1, 40),
    seed=st.integers(0, 1000),
    temperature=st.floats(0.01, 10.0),
    chunk=st.integers(1, 41),
)
def test_values_lie_between_the_rewards_and_sample_sizes_between_one_and_all(
    references: int, seed: int, temperature: float, chunk: int
) -> None:
    readout = _readout(references, seed=seed, temperature=temperature)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exact, "CHUNK", chunk)
        values, sizes = readout.values_and_sample_size(_queries(7))
    slack = 1e-4
    assert (values >= readout.rewards.min() / 0.1 - slack).all()
    assert (values <= readout.rewards.max() / 0.1 + slack).all()
    assert (sizes >= 1.0 - slack).all()
    assert (sizes <= references * (1.0 + slack)).all()


def test_equal_logits_give_the_mean_reward_and_the_full_sample_size() -> None:
    readout = _readout(30)
    values, sizes = readout.values_and_sample_size(torch.zeros(3, 6))
    np.testing.assert_allclose(values, float(readout.rewards.mean()) / 0.1, rtol=1e-5)
    np.testing.assert_allclose(sizes, 30.0, rtol=1e-5)


def test_one_dominant_reference_gives_its_reward_and_a_sample_size_of_one() -> None:
    psi = torch.eye(6)
    readout = _readout(6, psi=psi)
    values, sizes = readout.values_and_sample_size(100.0 * psi)
    np.testing.assert_allclose(values, readout.rewards / 0.1, rtol=1e-5)
    np.testing.assert_allclose(sizes, 1.0, rtol=1e-5)


def test_a_constant_of_the_pair_in_the_logits_changes_nothing() -> None:
    # The last coordinate of psi is one, so that of phi adds a c(s, a) to all logits of the pair.
    psi = torch.cat([_readout(25).psi, torch.ones(25, 1)], dim=1)
    readout = _readout(25, psi=psi)
    plain = torch.cat([_queries(8), torch.zeros(8, 1)], dim=1)
    shifted = torch.cat([_queries(8), torch.linspace(-5.0, 5.0, 8)[:, None]], dim=1)
    np.testing.assert_allclose(readout.values(shifted), readout.values(plain), rtol=1e-4, atol=1e-4)


def test_scaling_and_shifting_the_rewards_scales_and_shifts_the_values() -> None:
    readout = _readout(25)
    changed = _readout(25, rewards=2.0 * readout.rewards + 0.5)
    expected = 2.0 * readout.values(_queries(8)) + 0.5 / 0.1
    np.testing.assert_allclose(changed.values(_queries(8)), expected, rtol=1e-4, atol=1e-4)


def test_pairs_in_batches_equal_pairs_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    mdp = grid_world()
    critic = _exact_critic(mdp, np.full(mdp.states, 1.0 / mdp.states))
    transitions, _ = mdp.log_episodes(2, 30, seed=0)
    readout = _readout(20, size=mdp.states + 1)
    pairs = transitions.states(), transitions.actions
    whole = state_action_values(critic, readout, *pairs)
    monkeypatch.setattr(exact, "CHUNK", 7)
    parts = state_action_values(critic, readout, *pairs)
    for one, other in zip(whole, parts, strict=True):
        assert one.shape == (60,)
        np.testing.assert_allclose(one, other, rtol=1e-5)


# From here on: a finite MDP, whose p_gamma and Q come from one linear solve.


def _exact_critic(mdp: FiniteMDP, marginal: Floats, temperature: float = 0.5) -> ExactCritic:
    """The log density ratio against ``marginal`` over (states, absorbing state)."""
    law = mdp.p_gamma()
    if len(marginal) == mdp.states:
        marginal = np.append(marginal, 0.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(marginal > 0.0, np.log(law) - np.log(marginal), 0.0)
    return ExactCritic(ratio, temperature, mdp.discount)


def _all_pairs(mdp: FiniteMDP) -> tuple[torch.Tensor, torch.Tensor]:
    states, actions = np.indices((mdp.states, mdp.actions)).reshape(2, -1)
    return torch.eye(mdp.states)[states], torch.eye(mdp.actions)[actions]


@pytest.mark.parametrize("terminal", [False, True])
def test_the_solve_itself_agrees_with_the_definition_of_q(terminal: bool) -> None:
    """Q = 1/(1 - gamma) E_{p_gamma} r, the identity that the method rests on, on this MDP."""
    mdp = grid_world(terminal=terminal)
    law = mdp.p_gamma()
    np.testing.assert_allclose(law.sum(-1), 1.0, rtol=1e-12)
    assert (law[..., -1].max() > 0.05) == terminal
    alive = ~mdp.terminal
    expected = law @ np.append(mdp.reward, 0.0) / (1.0 - mdp.discount)
    np.testing.assert_allclose(mdp.q()[alive], expected[alive], rtol=1e-10)


@pytest.mark.parametrize("terminal", [False, True])
def test_the_exact_log_ratio_reads_out_the_exact_q_over_all_references(terminal: bool) -> None:
    mdp = grid_world(terminal=terminal)
    outcomes = mdp.states + 1 if terminal else mdp.states
    # References that enumerate the outcomes in proportion to a marginal, whatever that marginal is.
    counts = np.random.default_rng(0).integers(1, 9, size=outcomes)
    counts = np.append(counts, np.zeros(mdp.states + 1 - outcomes, dtype=np.int64))
    critic = _exact_critic(mdp, counts / counts.sum())
    index = torch.repeat_interleave(torch.arange(mdp.states + 1), torch.from_numpy(counts))
    readout = Readout(
        psi=torch.eye(mdp.states + 1)[index],
        rewards=torch.from_numpy(np.append(mdp.reward, 0.0)).float()[index],
        temperature=torch.tensor(0.5),
        discount=torch.tensor(mdp.discount),
    )
    values, _ = state_action_values(critic, readout, *_all_pairs(mdp))
    alive = np.repeat(~mdp.terminal, mdp.actions)
    np.testing.assert_allclose(values[alive], mdp.q().ravel()[alive], rtol=1e-4)
    # The differences between actions are not within the tolerance.
    assert np.ptp(mdp.q(), axis=1).min() > 100 * 1e-4 * mdp.q().max()


def _standard_errors(mdp: FiniteMDP, marginal: Floats, references: int) -> Floats:
    """Delta-method standard error of the self-normalised estimate of every Q(s, a), (S * A,)."""
    law = mdp.p_gamma()
    reward = np.append(mdp.reward, 0.0)
    centred = reward - (law @ reward)[..., None]
    with np.errstate(divide="ignore", invalid="ignore"):
        second = np.where(marginal > 0.0, (law * centred) ** 2 / marginal, 0.0).sum(-1)
    errors: Floats = np.sqrt(second / references).ravel() / (1.0 - mdp.discount)
    return errors


@pytest.mark.parametrize("terminal", [False, True])
def test_references_drawn_by_the_sampler_read_out_the_exact_q(terminal: bool) -> None:
    """build_readout end to end; with terminal states this holds only if absorbed references are worth 0."""
    mdp = grid_world(terminal=terminal)
    transitions, rewards = mdp.log_episodes(400 if terminal else 40, 150, seed=1)
    assert bool(transitions.terminated.any()) == terminal
    everything = Split(train=torch.arange(transitions.episodes), validation=torch.arange(0))
    marginal = sampler_marginal(mdp, transitions)
    critic = _exact_critic(mdp, marginal)
    references = 100_000
    readout = build_readout(
        critic,
        transitions,
        rewards,
        everything,
        ReadoutParameters(references=references),
        seed=0,
    )
    absorbed = readout.psi[:, -1] == 1.0
    assert bool(absorbed.any()) == terminal
    assert (readout.rewards[absorbed] == 0.0).all()
    assert (readout.rewards[~absorbed] > 0.0).all()
    values, _ = state_action_values(critic, readout, *_all_pairs(mdp))
    alive = np.repeat(~mdp.terminal, mdp.actions)
    errors = np.abs(values.numpy() - mdp.q().ravel())[alive]
    standard = _standard_errors(mdp, marginal, references)[alive]
    assert (errors < 5.0 * standard).all()
    # The bound means something: it is far below the differences between pairs.
    assert 5.0 * standard.max() < 0.3 * mdp.q()[~mdp.terminal].std()


def test_every_reference_carries_the_reward_of_its_own_arrival() -> None:
    mdp = grid_world()
    transitions, rewards = mdp.log_episodes(6, 40, seed=2)
    split = Split(train=torch.tensor([1, 3, 4]), validation=torch.tensor([0, 2, 5]))
    critic = _exact_critic(mdp, np.full(mdp.states, 1.0 / mdp.states))
    # A reward that depends on the episode too: references of held-out episodes would show.
    episode = transitions.episode_of(torch.arange(len(transitions)))
    marked = Rewards(rewards.rewards + 10.0 * episode, rewards.successes)
    readout = build_readout(critic, transitions, marked, split, ReadoutParameters(references=500), seed=0)
    assert len(readout.psi) == 500
    of_episode = (readout.rewards / 10.0).floor()
    assert set(of_episode.tolist()) == {1.0, 3.0, 4.0}
    arrival = torch.from_numpy(mdp.reward).float()[readout.psi.argmax(1)]
    np.testing.assert_allclose(readout.rewards - 10.0 * of_episode, arrival, atol=1e-5)
    assert float(readout.temperature) == pytest.approx(0.5)
    assert float(readout.discount) == pytest.approx(0.9)


def test_the_seed_determines_the_references() -> None:
    mdp = grid_world()
    transitions, rewards = mdp.log_episodes(6, 40, seed=2)
    split = Split(train=torch.arange(5), validation=torch.tensor([5]))
    critic = _exact_critic(mdp, np.full(mdp.states, 1.0 / mdp.states))
    first, again, other = (
        build_readout(critic, transitions, rewards, split, ReadoutParameters(references=99), seed)
        for seed in (0, 0, 1)
    )
    assert torch.equal(first.psi, again.psi)
    assert torch.equal(first.rewards, again.rewards)
    assert not torch.equal(first.rewards, other.rewards)


def _distances(frequencies: Floats, law: Floats) -> Floats:
    distances: Floats = 0.5 * np.abs(frequencies - law).sum(-1)
    return distances


@pytest.mark.parametrize("terminal", [False, True])
def test_sampled_futures_follow_the_solved_p_gamma(terminal: bool) -> None:
    mdp = grid_world(terminal=terminal)
    transitions, _ = mdp.log_episodes(4000 if terminal else 30, 2000, seed=3)
    segments = SegmentSampler(transitions, mdp.discount).sample(400_000, torch.Generator().manual_seed(0))
    outcome = segments.futures.argmax(1).masked_fill(segments.absorbed, mdp.states).numpy()
    state, action = segments.observations.argmax(1).numpy(), segments.actions.argmax(1).numpy()
    counts = np.zeros((mdp.states, mdp.actions, mdp.states + 1))
    np.add.at(counts, (state, action, outcome), 1.0)
    alive = ~mdp.terminal
    totals = counts[alive].sum(-1)
    law = mdp.p_gamma()[alive]
    distance = float((_distances(counts[alive] / totals[..., None], law) * totals).sum() / totals.sum())
    # What counting offsets from zero would give: the present state with probability 1 - gamma.
    present = np.eye(mdp.states + 1)[: mdp.states][alive][:, None]
    shifted = (1.0 - mdp.discount) * present + mdp.discount * law
    assert distance < 0.02
    assert float(_distances(shifted, law).mean()) > 0.05


def test_contrastive_training_on_one_hot_states_recovers_q() -> None:
    mdp = grid_world()
    transitions, rewards = mdp.log_episodes(200, 200, seed=4)
    split = Split(train=torch.arange(190), validation=torch.arange(190, 200))
    critic, _ = train_dynamics(
        transitions,
        split,
        identity_normalisation(transitions),
        dynamics_parameters(
            hidden=(64,),
            representation_size=16,
            temperature=0.5,
            training={"steps": 600, "batch_size": 400, "learning_rate": 1e-2, "validation_interval": 300},
        ),
        seed=0,
    )
    readout = build_readout(critic, transitions, rewards, split, ReadoutParameters(references=8192), seed=0)
    values, _ = state_action_values(critic, readout, *_all_pairs(mdp))
    q, exact_q = values.numpy().astype(np.float64), mdp.q().ravel()
    assert np.corrcoef(q, exact_q)[0, 1] > 0.9
    # Not merely ranked: in the units of Q.
    assert np.abs(q - exact_q).mean() < 0.5 * exact_q.std()
    # Actions within a state, which is what a policy is extracted from.
    within = [np.corrcoef(q.reshape(9, 4)[s], mdp.q()[s])[0, 1] for s in range(9)]
    assert np.mean(within) > 0.8


def test_readout_moves_as_a_whole(transitions: Transitions) -> None:
    readout = _readout(5)
    moved = readout.to("cpu")
    for name in ("psi", "rewards", "temperature", "discount"):
        assert torch.equal(getattr(moved, name), getattr(readout, name))
