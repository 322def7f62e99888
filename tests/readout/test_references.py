from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import normalize

from cvl_pipeline.episodes.container import Rewards, Transitions
from cvl_pipeline.episodes.sampling import SegmentSampler
from cvl_pipeline.readout import references as module
from cvl_pipeline.readout.build import exact_readout
from cvl_pipeline.readout.q_function import QFunction
from cvl_pipeline.readout.readouts import ExactReadout
from cvl_pipeline.readout.references import (
    References,
    all_references,
    compress,
    draw_references,
    future_states,
    labels,
    return_weight,
)
from cvl_pipeline.testing.builders import make_rewards, make_transitions
from cvl_pipeline.testing.finite_mdp import grid_world
from tests.readout.critics import small_critic
from tests.readout.laws import all_pairs, critic_of, log_law

HOT = torch.tensor(1e6)
"""A temperature at which all logits are almost equal."""


def _seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _references(count: int, size: int = 4, seed: int = 0, clusters: int = 8) -> References:
    """References with unequal probabilities around a few centres on the unit sphere; rewards depend on psi."""
    generator = _seeded(seed)
    centres = normalize(torch.randn(clusters, size, generator=generator), dim=-1)
    chosen = torch.randint(clusters, (count,), generator=generator)
    psi = normalize(centres[chosen] + 0.25 * torch.randn(count, size, generator=generator), dim=-1)
    weights = torch.rand(count, generator=generator) + 0.2
    return References(psi, psi[:, 0] + 1.0, (weights / weights.sum()).log())


def _values(references: References, phi: Tensor, temperature: float) -> Tensor:
    readout = ExactReadout(
        torch.tensor(temperature), torch.zeros(0, dtype=torch.int64), 0.9, True,
        references.psi, references.rewards, references.log_weights,
    )  # fmt: skip
    return readout.values(phi)


def _error(values: Tensor, exact: Tensor) -> float:
    return float((values - exact).square().mean().sqrt() / exact.std())


# All references.


@given(
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=6),
    ends=st.lists(st.booleans(), min_size=6, max_size=6),
    discount=st.floats(0.05, 0.99),
)
def test_probabilities_of_all_references_sum_to_one(
    lengths: list[int], ends: list[bool], discount: float
) -> None:
    terminated = ends[: len(lengths)]
    data = make_transitions(lengths, terminated)
    references = all_references(small_critic(discount), data, make_rewards(data))
    assert len(references) == len(data) + any(terminated)
    assert float(references.log_weights.double().exp().sum()) == pytest.approx(1.0, abs=1e-5)


def test_probabilities_are_the_frequencies_of_the_sampler(transitions: Transitions, rewards: Rewards) -> None:
    count = 400_000
    segments = SegmentSampler(transitions, 0.9).sample(count, _seeded())
    outcome = torch.where(segments.absorbed, len(transitions), segments.arrivals)
    frequencies = torch.bincount(outcome, minlength=len(transitions) + 1).double() / count
    probabilities = all_references(small_critic(), transitions, rewards).log_weights.double().exp()
    assert probabilities[-1] > 0.2, "the absorbing state is among them"
    standard = (probabilities * (1.0 - probabilities) / count).sqrt()
    assert ((frequencies - probabilities).abs() < 5.0 * standard).all()
    # The bound is small enough to distinguish the first states of an episode.
    assert probabilities[1] - probabilities[0] > 20.0 * standard[1]


@pytest.mark.parametrize("terminal", [False, True])
def test_probabilities_are_those_of_the_log_counted_pair_by_pair(terminal: bool) -> None:
    mdp = grid_world(terminal=terminal)
    transitions, rewards = mdp.log_episodes(20, 15, seed=0)
    law = log_law(mdp, transitions)
    references = all_references(critic_of(law, mdp.discount), transitions, rewards)
    counted = np.zeros(mdp.states + 1)
    np.add.at(counted, references.psi.argmax(1).numpy(), references.log_weights.double().exp().numpy())
    np.testing.assert_allclose(counted, law.sum((0, 1)), rtol=1e-4, atol=1e-9)
    assert (counted[-1] > 0.0) == terminal


def test_every_reference_has_the_psi_and_the_reward_of_its_arrival(
    transitions: Transitions, rewards: Rewards
) -> None:
    critic = small_critic()
    references = all_references(critic, transitions, rewards)
    starts = transitions.episode_starts.tolist()
    # The state after every transition: all observations of an episode except the first.
    arrivals = [
        transitions.observations[start + e + 1 : end + e + 1]
        for e, (start, end) in enumerate(pairwise(starts))
    ]
    alive = torch.zeros(len(transitions), dtype=torch.bool)
    np.testing.assert_allclose(
        references.psi[:-1], critic.psi(torch.cat(arrivals), alive).detach(), rtol=1e-6, atol=1e-6
    )
    assert torch.equal(references.rewards[:-1], rewards.rewards)
    anything = torch.full((1, 3), 7.0)
    absorbing = critic.psi(anything, torch.ones(1, dtype=torch.bool))[0].detach()
    np.testing.assert_allclose(references.psi[-1], absorbing, rtol=1e-6, atol=1e-6)  # from another batch
    assert references.rewards[-1] == 0.0
    assert not references.psi.requires_grad


def test_without_a_termination_there_is_no_absorbing_state() -> None:
    data = make_transitions([4, 6], [False, False])
    assert len(all_references(small_critic(), data, make_rewards(data))) == 10


def test_references_do_not_depend_on_the_chunk(
    monkeypatch: pytest.MonkeyPatch, transitions: Transitions, rewards: Rewards
) -> None:
    whole = all_references(small_critic(), transitions, rewards)
    monkeypatch.setattr(module, "CHUNK", 4)
    parts = all_references(small_critic(), transitions, rewards)
    np.testing.assert_allclose(parts.psi, whole.psi, rtol=1e-6, atol=1e-6)


# Labels for a longer discount of the values.


@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    ends=st.lists(st.booleans(), min_size=4, max_size=4),
    discount=st.floats(0.05, 0.9),
    further=st.floats(0.0, 0.95),
)
def test_labels_are_rewards_mixed_with_the_mean_reward_that_follows(
    lengths: list[int], ends: list[bool], discount: float, further: float
) -> None:
    gamma = discount + further * (0.99 - discount)
    data = make_transitions(lengths, ends[: len(lengths)])
    rewards = make_rewards(data).rewards
    weight = (gamma - discount) / (gamma * (1.0 - discount))
    expected = []
    for episode, length in enumerate(lengths):
        start = int(data.episode_starts[episode])
        for position in range(length):
            following = rewards[start + position : start + length].double()
            powers = gamma ** torch.arange(len(following)).double()
            total = 1.0 / (1.0 - gamma) if ends[episode] else float(powers.sum())
            mean = float(following @ powers) / total
            expected.append((1.0 - weight) * float(rewards[start + position]) + weight * mean)
    np.testing.assert_allclose(labels(data, rewards, discount, gamma), expected, rtol=1e-4, atol=1e-6)


def test_labels_of_the_same_discount_are_the_rewards(transitions: Transitions, rewards: Rewards) -> None:
    assert labels(transitions, rewards.rewards, 0.9, 0.9) is rewards.rewards


@pytest.mark.parametrize("terminal", [False, True])
@pytest.mark.parametrize("discount", [0.02, 0.5, 0.85, 0.9])
def test_a_short_critic_and_exact_returns_give_the_values_of_a_longer_discount(
    terminal: bool, discount: float
) -> None:
    """The identity behind the labels, with p_c and the expected return of every state from linear systems."""
    mdp = grid_world(terminal=terminal)  # discount 0.9
    law = replace(mdp, discount=discount).p_gamma()
    value = np.where(mdp.terminal, 0.0, (mdp.policy * mdp.q()).sum(1))
    weight = return_weight(discount, mdp.discount)
    label = (1.0 - weight) * mdp.reward + weight * (1.0 - mdp.discount) * (mdp.reward + mdp.discount * value)
    values = law @ np.append(label, 0.0) / (1.0 - mdp.discount)
    np.testing.assert_allclose(values[~mdp.terminal], mdp.q()[~mdp.terminal], rtol=1e-10)


@pytest.mark.parametrize("terminal", [False, True])
def test_states_shortly_before_the_end_of_the_log_count_less(terminal: bool) -> None:
    data = make_transitions([4], [terminal])
    critic = small_critic(0.5)
    plain = all_references(critic, data, make_rewards(data)).log_weights.exp()
    longer = all_references(critic, data, make_rewards(data), value_discount=0.9).log_weights.exp()
    weight = return_weight(0.5, 0.9)
    shares = torch.ones(5) if terminal else 1.0 - 0.9 ** torch.arange(4, 0, -1)
    expected = plain * (1.0 - weight + weight * shares[: len(plain)])
    np.testing.assert_allclose(longer, expected / expected.sum(), rtol=1e-5)
    assert torch.equal(longer, plain) == terminal


def test_values_of_a_short_critic_and_a_long_log_are_q() -> None:
    """With the library's sampler, references and readout, and the critic that fits the log exactly."""
    mdp = grid_world(terminal=True)
    transitions, rewards = mdp.log_episodes(4000, 200, seed=2)
    short = replace(mdp, discount=0.5)
    critic = critic_of(log_law(short, transitions), short.discount)
    references = all_references(critic, transitions, rewards, value_discount=mdp.discount)
    readout = exact_readout(critic, references, torch.zeros(0), mdp.discount)
    values = QFunction(critic, readout)(*all_pairs(mdp)).detach().reshape(mdp.states, mdp.actions).numpy()
    exact = mdp.q()[~mdp.terminal]
    assert np.sqrt(((values[~mdp.terminal] - exact) ** 2).mean()) < 0.05 * exact.std()


@pytest.mark.parametrize("normalised", [False, True])
def test_a_constant_reward_has_the_same_value_everywhere_in_a_truncated_log(normalised: bool) -> None:
    """Time is the state, so states near the end of the log are seen from their own anchors alone."""
    steps, short, long = 20, 0.8, 0.95
    data = make_transitions([steps] * 3, [False] * 3, observation_size=steps + 1)
    data = replace(data, observations=torch.eye(steps + 1).repeat(3, 1))
    rewards = make_rewards(data)
    ones = replace(rewards, rewards=torch.ones(len(data)))
    states = future_states(data, ones, short, None, long, by_share=normalised)
    marginal = torch.zeros(steps + 1, dtype=torch.float64)
    plain = future_states(data, ones, short)
    marginal.index_add_(0, (plain.arrivals % steps) + 1, plain.log_weights.exp().double())
    for time in (0, steps // 2, steps - 1):
        reached = torch.arange(time + 1, steps + 1)
        law = torch.zeros(steps + 1, dtype=torch.float64)
        law[reached] = short ** (reached - time - 1).double()
        ratio = (law / law.sum() / marginal.clamp(min=1e-12))[(states.arrivals % steps) + 1]
        weights = states.log_weights.exp().double() * ratio
        total = weights.sum() if normalised else 1.0
        assert float((weights * states.rewards).sum() / total) == pytest.approx(1.0, rel=1e-4)


# Sampled references.


def _draws(everything: References, count: int, by_reward: bool, repeats: int) -> list[References]:
    generator = _seeded(5)
    return [draw_references(everything, count, by_reward, generator) for _ in range(repeats)]


def _sparse(count: int = 60) -> References:
    """A reward or penalty in a few rarely reached states."""
    everything = _references(count)
    rewards = torch.zeros(count)
    rewards[[7, 23, 41]] = torch.tensor([2.0, -1.0, 3.0])
    return References(everything.psi, rewards, everything.log_weights)


@pytest.mark.parametrize("by_reward", [False, True])
def test_weighted_sums_over_drawn_references_are_unbiased(by_reward: bool) -> None:
    """Means of the weight, psi and psi times reward, like the sums of a readout."""
    everything, repeats = _sparse(), 2500

    def sums(references: References) -> Tensor:
        columns = [
            torch.ones(len(references), 1),
            references.psi,
            references.psi * references.rewards[:, None],
        ]
        return references.log_weights.exp() @ torch.cat(columns, dim=1)

    found = torch.stack([sums(drawn) for drawn in _draws(everything, 12, by_reward, repeats)]).double()
    standard = found.std(0) / math.sqrt(repeats)
    assert ((found.mean(0) - sums(everything)).abs() < 4.5 * standard + 1e-6).all()
    assert (5.0 * standard[1:] < 0.1 * everything.psi.std()).all(), "the bound means something"


def test_references_drawn_from_the_marginal_weigh_the_same() -> None:
    drawn = draw_references(_references(50), 20, False, _seeded())
    assert len(drawn) == 20
    np.testing.assert_allclose(drawn.log_weights, -math.log(20), rtol=1e-5)


def test_no_reference_drawn_by_reward_weighs_more_than_twice_one_of_the_marginal() -> None:
    drawn = draw_references(_sparse(), 200, True, _seeded())
    assert (drawn.log_weights.exp() <= 2.0 / 200 * (1.0 + 1e-5)).all()
    rewarded = drawn.rewards != 0.0
    assert 0.5 <= float(rewarded.float().mean()) < 0.65, "half of them, plus the share from the marginal"
    assert (drawn.log_weights[rewarded] < drawn.log_weights[~rewarded].min()).all()


def test_drawing_by_reward_errs_less_where_few_states_have_one() -> None:
    everything, temperature = _sparse(400), 0.25
    phi = normalize(torch.randn(50, 4, generator=_seeded(3)), dim=-1)
    exact = _values(everything, phi, temperature)
    errors = {
        by_reward: np.mean(
            [
                _error(_values(drawn, phi, temperature), exact)
                for drawn in _draws(everything, 64, by_reward, 40)
            ]
        )
        for by_reward in (False, True)
    }
    assert errors[True] < 0.5 * errors[False]


def test_without_any_reward_there_is_nothing_to_draw_by() -> None:
    everything = _references(50)
    everything = References(everything.psi, torch.zeros(50), everything.log_weights)
    by_reward, marginal = (draw_references(everything, 20, choice, _seeded()) for choice in (True, False))
    assert torch.equal(by_reward.psi, marginal.psi)
    assert torch.equal(by_reward.log_weights, marginal.log_weights)


def test_more_references_can_be_drawn_than_there_are() -> None:
    everything = _references(5)
    drawn = draw_references(everything, 100_000, False, _seeded())
    of_each = (drawn.psi[:, None] == everything.psi).all(-1).double().mean(0)
    # Systematic resampling: each count is within one of its expectation.
    np.testing.assert_allclose(of_each, everything.log_weights.double().exp(), atol=2e-5)


def test_the_generator_determines_the_draw() -> None:
    first, again, other = (draw_references(_references(50), 20, False, _seeded(seed)) for seed in (1, 1, 2))
    assert torch.equal(first.psi, again.psi)
    assert not torch.equal(first.psi, other.psi)


# Prototypes.


@pytest.mark.parametrize("count", [1, 5, 40])
def test_prototypes_keep_the_total_weight_the_mean_psi_and_the_mean_reward(count: int) -> None:
    references = _references(300)
    # The correction for the spread of a cluster vanishes if the logits are almost equal.
    prototypes = compress(references, count, HOT, _seeded())
    assert len(prototypes) == count
    before, after = references.log_weights.exp(), prototypes.log_weights.exp()
    assert float(after.sum()) == pytest.approx(1.0, abs=1e-5)
    np.testing.assert_allclose(after @ prototypes.psi, before @ references.psi, atol=1e-5)
    assert float(after @ prototypes.rewards) == pytest.approx(float(before @ references.rewards), abs=1e-5)


@pytest.mark.parametrize("count", [60, 61, 1000])
def test_references_stay_unchanged_if_there_are_no_more_than_prototypes(count: int) -> None:
    references = _references(60)
    assert compress(references, count, torch.tensor(0.1), _seeded()) is references


def test_a_prototype_weighs_more_by_the_spread_of_its_cluster() -> None:
    psi = torch.tensor([[1.0, 0.5], [1.0, -0.5], [0.0, 0.0], [2.0, 0.0]])
    references = References(psi, torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.full((4,), math.log(0.25)))
    prototype = compress(references, 1, torch.tensor(0.5), _seeded())
    np.testing.assert_allclose(prototype.psi, [[1.0, 0.0]], atol=1e-6)
    np.testing.assert_allclose(prototype.rewards, [2.5], rtol=1e-6)
    # Variances 0.5 and 0.125 around the mean, over 2 D T^2 = 1.
    np.testing.assert_allclose(prototype.log_weights, [0.625], rtol=1e-5)


@pytest.mark.parametrize("seed", range(6))
def test_clusters_contain_neighbours(seed: int) -> None:
    # Along one ray, so that they differ only in distance, for any initial centres.
    psi = torch.tensor([[1.0, 0.0], [1.2, 0.0], [3.0, 0.0], [3.4, 0.0]])
    references = References(psi, torch.tensor([1.0, 2.0, 5.0, 7.0]), torch.full((4,), math.log(0.25)))
    prototypes = compress(references, 2, HOT, _seeded(seed))
    order = prototypes.rewards.argsort()
    np.testing.assert_allclose(prototypes.psi[order], [[1.1, 0.0], [3.2, 0.0]], rtol=1e-5)
    np.testing.assert_allclose(prototypes.rewards[order], [1.5, 6.0], rtol=1e-5)


@pytest.mark.parametrize("temperature", [0.1, 0.25])
def test_prototypes_err_less_than_as_many_drawn_references(temperature: float) -> None:
    references = _references(2000, size=16)
    phi = references.psi[torch.randperm(2000, generator=_seeded(1))[:200]]
    exact = _values(references, phi, temperature)

    def mean_error(make: list[References]) -> float:
        return float(np.mean([_error(_values(made, phi, temperature), exact) for made in make]))

    compressed = [compress(references, 64, torch.tensor(temperature), _seeded(seed)) for seed in range(3)]
    drawn = [draw_references(references, 64, False, _seeded(seed)) for seed in range(3)]
    assert mean_error(compressed) < 0.9 * mean_error(drawn)


def test_the_weight_of_the_spread_makes_the_normaliser_right() -> None:
    references, temperature = _references(2000, size=16), torch.tensor(0.25)
    phi = normalize(torch.randn(200, 16, generator=_seeded(1)), dim=-1)
    prototypes = compress(references, 32, temperature, _seeded())
    plain = compress(references, 32, HOT, _seeded())  # the same clusters without the correction

    def log_normaliser(some: References) -> Tensor:
        return (phi @ some.psi.T / temperature + some.log_weights).logsumexp(1)

    exact = log_normaliser(references)
    assert torch.equal(plain.psi, prototypes.psi)
    assert (log_normaliser(prototypes) - exact).abs().mean() < 0.3 * (
        log_normaliser(plain) - exact
    ).abs().mean()


def test_centres_that_no_reference_is_nearest_to_are_left_out() -> None:
    # Two points, a hundred times each, so most initial centres are duplicates.
    psi = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).repeat(100, 1)
    rewards = torch.tensor([1.0, 3.0]).repeat(100)
    references = References(psi, rewards, torch.full((200,), -math.log(200)))
    prototypes = compress(references, 10, torch.tensor(0.1), _seeded())
    assert len(prototypes) == 2
    assert sorted(prototypes.rewards.tolist()) == pytest.approx([1.0, 3.0])
    np.testing.assert_allclose(prototypes.log_weights.exp(), 0.5, rtol=1e-5)
    assert torch.isfinite(prototypes.psi).all()


def test_prototypes_do_not_depend_on_the_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    references = _references(100)
    whole = compress(references, 7, torch.tensor(0.25), _seeded())
    monkeypatch.setattr(module, "CHUNK", 9)
    parts = compress(references, 7, torch.tensor(0.25), _seeded())
    np.testing.assert_allclose(parts.psi, whole.psi, rtol=1e-5, atol=1e-6)
