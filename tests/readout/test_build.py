from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field
from torch import Generator, Tensor

from cvl_pipeline.dynamics.module import train_dynamics
from cvl_pipeline.episodes.container import Rewards, Split, Transitions
from cvl_pipeline.errors import InputError
from cvl_pipeline.networks.critic import ContrastiveCritic, CriticShape
from cvl_pipeline.readout.build import ReadoutMethod, build_readout, exact_readout, horizon_quantiles
from cvl_pipeline.readout.parameters import READOUTS, ReadoutParameters
from cvl_pipeline.readout.q_function import QFunction
from cvl_pipeline.readout.readouts import ExactReadout, FeatureReadout, Readout
from cvl_pipeline.readout.references import References
from cvl_pipeline.testing.builders import (
    dynamics_parameters,
    make_data,
    readout_parameters,
    split_first,
)
from cvl_pipeline.testing.finite_mdp import ExactCritic, FiniteMDP, Floats, grid_world
from tests.readout.critics import small_critic
from tests.readout.laws import all_pairs, critic_of, expected_values, log_law


def _build(
    transitions: Transitions,
    rewards: Rewards,
    seed: int = 0,
    horizon_conditioning: bool = False,
    **changes: Any,
) -> Readout:
    critic = small_critic(horizon_conditioning=horizon_conditioning)
    split = split_first(transitions, 4)
    return build_readout(critic, transitions, rewards, split, readout_parameters(**changes), seed)


def _exact(transitions: Transitions, rewards: Rewards, seed: int = 0, **changes: Any) -> ExactReadout:
    readout = _build(transitions, rewards, seed, **changes)
    assert isinstance(readout, ExactReadout)
    return readout


def _everything(transitions: Transitions) -> Split:
    return Split(train=torch.arange(transitions.episodes), validation=torch.arange(0))


def test_all_states_of_training_are_references_unless_a_number_is_given(
    transitions: Transitions, rewards: Rewards
) -> None:
    # 16 transitions in the four training episodes, and the absorbing state.
    assert len(_exact(transitions, rewards).psi) == 17
    assert len(_exact(transitions, rewards, references=7).psi) == 7
    assert len(_exact(transitions, rewards, references=500).psi) == 500


def test_references_by_reward_differ_from_those_of_the_marginal(
    transitions: Transitions, rewards: Rewards
) -> None:
    sparse = Rewards(torch.where(torch.arange(len(transitions)) == 9, 1.0, 0.0), rewards.successes)
    shares = [
        float(
            (_exact(transitions, sparse, references=200, reference_distribution=law).rewards > 0.0)
            .float()
            .mean()
        )
        for law in ("marginal", "reward")
    ]
    assert shares[0] < 0.2
    assert shares[1] > 0.5


def test_references_are_compressed_to_the_given_number_of_prototypes(
    transitions: Transitions, rewards: Rewards
) -> None:
    readout = _exact(transitions, rewards, prototypes=3)
    assert len(readout.psi) == 3
    assert (readout.psi.norm(dim=1) < 1.0).all(), "means of points on the sphere"


def test_prototypes_are_made_for_the_temperature_of_the_critic(
    transitions: Transitions, rewards: Rewards
) -> None:
    everything, one = _exact(transitions, rewards), _exact(transitions, rewards, prototypes=1)
    weights = everything.log_weights.exp()
    mean = weights @ everything.psi
    spread = weights @ (everything.psi - mean).square().sum(1)
    np.testing.assert_allclose(one.psi[0], mean, rtol=1e-4, atol=1e-6)
    # See compress: the trace of the covariance over 2 D T^2.
    assert float(one.log_weights[0]) == pytest.approx(float(spread) / (2.0 * 4.0 * 0.25**2), rel=1e-4)


@pytest.mark.parametrize("self_normalised", [True, False])
@pytest.mark.parametrize("method", ["exact", "random_fourier", "positive_random"])
def test_the_readout_follows_the_parameters(
    transitions: Transitions, rewards: Rewards, method: str, self_normalised: bool
) -> None:
    features: dict[str, Any] = {} if method == "exact" else {"features": 32}
    readout = _build(transitions, rewards, method=method, self_normalised=self_normalised, **features)
    assert readout.self_normalised == self_normalised
    assert readout.discount == 0.9
    assert float(readout.temperature) == pytest.approx(0.25)
    assert len(readout.horizons) == 0
    if isinstance(readout, FeatureReadout):
        assert len(readout.xi) == 32
        assert len(readout.phases) == (32 if method == "random_fourier" else 0)
    assert isinstance(readout, ExactReadout) == (method == "exact")
    assert not any(value.requires_grad for value in vars(readout).values() if isinstance(value, Tensor))


def test_features_sum_over_the_given_number_of_references(transitions: Transitions, rewards: Rewards) -> None:
    """With a single reference, every value is its reward."""
    phi = small_critic().phi(transitions.states(), transitions.actions).detach()
    one = _build(transitions, rewards, method="positive_random", references=1).values(phi)
    assert float(one.std()) < 1e-3
    assert float(one[0]) * 0.1 in [
        pytest.approx(float(reward), rel=1e-3) for reward in [*rewards.rewards, 0.0]
    ]
    assert _build(transitions, rewards, method="positive_random").values(phi).std() > 1e-2


@pytest.mark.parametrize(
    "changes",
    [
        {"references": 9},
        {"references": 9, "reference_distribution": "reward"},
        {"prototypes": 3},
        {"method": "random_fourier"},
        {"method": "positive_random"},
    ],
    ids=str,
)
def test_the_seed_determines_the_readout(
    transitions: Transitions, rewards: Rewards, changes: dict[str, Any]
) -> None:
    first, again, other = (_build(transitions, rewards, seed, **changes) for seed in (0, 0, 1))
    phi = small_critic().phi(transitions.states(), transitions.actions).detach()
    assert torch.equal(first.values(phi), again.values(phi))
    assert not torch.equal(first.values(phi), other.values(phi))


def test_every_reference_has_the_reward_of_its_arrival_in_a_training_episode() -> None:
    mdp = grid_world()
    transitions, rewards = mdp.log_episodes(6, 40, seed=2)
    split = Split(train=torch.tensor([1, 3, 4]), validation=torch.tensor([0, 2, 5]))
    critic = critic_of(np.ones((9, 4, 10)), mdp.discount)
    # The reward also depends on the episode, so the test would notice references of held-out episodes.
    episode = transitions.episode_of(torch.arange(len(transitions)))
    marked = Rewards(rewards.rewards + 10.0 * episode, rewards.successes)
    readout = build_readout(critic, transitions, marked, split, readout_parameters(references=500), seed=0)
    assert isinstance(readout, ExactReadout)
    of_episode = (readout.rewards / 10.0).floor()
    assert set(of_episode.tolist()) == {1.0, 3.0, 4.0}
    arrival = torch.from_numpy(mdp.reward).float()[readout.psi.argmax(1)]
    np.testing.assert_allclose(readout.rewards - 10.0 * of_episode, arrival, atol=1e-5)


# A readout of the user's own.


class Averaged(ReadoutMethod):
    """Every action is worth the mean reward."""

    class Parameters(ReadoutParameters):
        factor: float = Field(1.0, gt=0.0)

    size = "one number"

    def build(
        self,
        critic: ContrastiveCritic,
        references: References,
        horizons: Tensor,
        discount: float,
        generator: Generator,
    ) -> Readout:
        mean = self.parameters.factor * (references.log_weights.exp() @ references.rewards)
        whole = exact_readout(critic, references, horizons, discount, self.parameters.self_normalised)
        return replace(whole, rewards=mean.expand(len(references.rewards)))


def test_a_readout_of_your_own_is_built(transitions: Transitions, rewards: Rewards) -> None:
    phi = small_critic().phi(transitions.states(), transitions.actions).detach()
    own = "tests.readout.test_build:Averaged"
    one, two = (_build(transitions, rewards, method=own, factor=factor).values(phi) for factor in (1.0, 2.0))
    assert float(one.std()) < 1e-5
    np.testing.assert_allclose(two, 2.0 * one, rtol=1e-5)


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (
            "tests.readout.test_build:HorizonCritic",
            "is not a subclass of cvl_pipeline.readout.build.ReadoutMethod",
        ),
        ("nowhere:Averaged", "cannot be imported"),
        ("exakt", "unknown readout 'exakt': did you mean exact"),
    ],
)
def test_a_class_that_is_no_readout_is_refused(method: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        READOUTS[method]


# Discounts and horizons.


def test_another_discount_than_the_critics_is_refused(transitions: Transitions, rewards: Rewards) -> None:
    with pytest.raises(
        InputError, match=r"value_readout\.discount is 0\.8, but the critic was trained for 0\.9"
    ):
        _build(transitions, rewards, discount=0.8)
    assert _build(transitions, rewards, discount=0.9).discount == 0.9


@pytest.mark.parametrize("discount", [None, 0.8, 0.99])
@pytest.mark.parametrize("method", ["exact", "positive_random"])
def test_a_critic_of_horizons_serves_any_discount(
    transitions: Transitions, rewards: Rewards, method: str, discount: float | None
) -> None:
    readout = _build(
        transitions, rewards, horizon_conditioning=True, discount=discount, horizons=5, method=method
    )
    assert readout.discount == (discount or 0.9)
    assert torch.equal(readout.horizons, horizon_quantiles(discount or 0.9, 5))


class HorizonCritic(ExactCritic):
    """The optimum of horizon-conditioned training, ``log p_k(z | s, a) / p(z)``, as a table."""

    def __init__(self, log_ratios: Floats, discount: float) -> None:
        """Store ``log_ratios[k - 1, s, a, z]``."""
        super().__init__(log_ratios[0], 0.5, discount)
        self.shape = CriticShape((9,), 4, (), 10, "raw", 0.5, False, discount, True)
        self.tables = torch.from_numpy(log_ratios).float()

    def phi(self, observations: Tensor, actions: Tensor, offsets: Tensor | None = None) -> Tensor:
        assert offsets is not None
        table = self.tables[offsets - 1, observations.argmax(-1), actions.argmax(-1)]
        return self.temperature * table


@pytest.mark.parametrize("discount", [0.6, 0.9])
def test_a_perfect_critic_of_horizons_reads_out_the_q_of_any_discount(discount: float) -> None:
    mdp = grid_world()
    transitions, rewards = mdp.log_episodes(30, 60, seed=0)
    marginal = log_law(mdp, transitions).sum((0, 1))
    steps, move = [mdp.step], np.einsum("sa,sat->st", mdp.policy, mdp.step)
    for _ in range(60):
        steps.append(steps[-1] @ move)
    laws = np.concatenate([np.stack(steps), np.zeros((61, 9, 4, 1))], axis=-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = np.where(laws > 0.0, np.log(laws) - np.log(marginal), -60.0)
    critic = HorizonCritic(ratios, mdp.discount)
    parameters = readout_parameters(discount=discount, horizons=200)
    readout = build_readout(critic, transitions, rewards, _everything(transitions), parameters, seed=0)
    with torch.no_grad():
        values = QFunction(critic, readout)(*all_pairs(mdp)).reshape(9, 4)
    exact = FiniteMDP(mdp.step, mdp.policy, mdp.reward, mdp.terminal, discount).q()
    assert np.abs(values.numpy() - exact).max() < 0.03 * exact.std()
    assert np.abs(mdp.q() - exact).max() > exact.std() or discount == mdp.discount


def test_horizons_are_equally_likely_offsets() -> None:
    # Half of all offsets are at most 7 at discount 0.9: 1 - 0.9^7 = 0.52.
    assert horizon_quantiles(0.9, 1).tolist() == [7]
    # The centres of the quarters of the distribution: 1/8, 3/8, 5/8, 7/8.
    assert horizon_quantiles(0.9, 4).tolist() == [2, 5, 10, 20]
    assert horizon_quantiles(0.9, 0).shape == (0,)
    assert horizon_quantiles(0.9, 3).dtype == torch.int64


@given(discount=st.floats(0.05, 0.999), count=st.integers(1, 64))
def test_horizons_are_offsets_in_ascending_order(discount: float, count: int) -> None:
    horizons = horizon_quantiles(discount, count)
    assert len(horizons) == count
    assert horizons[0] >= 1
    assert (horizons.diff() >= 0).all()


@pytest.mark.parametrize("discount", [0.3, 0.9, 0.99])
def test_means_over_horizons_are_those_of_the_geometric_law(discount: float) -> None:
    horizons = horizon_quantiles(discount, 4096).double()
    assert float(horizons.mean()) == pytest.approx(1.0 / (1.0 - discount), rel=0.01)
    for decay in (0.2, 0.95):
        expected = (1.0 - discount) * decay / (1.0 - discount * decay)
        assert float((decay**horizons).mean()) == pytest.approx(expected, rel=0.01)


# End to end.


@pytest.mark.parametrize("terminal", [False, True])
def test_sampled_references_give_the_values_of_the_log(terminal: bool) -> None:
    """Within the standard error of independent samples; it holds only if absorbed references have reward 0."""
    mdp = grid_world(terminal=terminal)
    transitions, rewards = mdp.log_episodes(400 if terminal else 40, 100, seed=1)
    assert bool(transitions.terminated.any()) == terminal
    law, count = log_law(mdp, transitions), 20_000
    critic = critic_of(law, mdp.discount)
    readout = build_readout(
        critic, transitions, rewards, _everything(transitions), readout_parameters(references=count), seed=0
    )
    assert isinstance(readout, ExactReadout)
    absorbed = readout.psi[:, -1] == 1.0
    assert bool(absorbed.any()) == terminal
    assert (readout.rewards[absorbed] == 0.0).all()
    assert (readout.rewards[~absorbed] > 0.0).all()
    with torch.no_grad():
        values = QFunction(critic, readout)(*all_pairs(mdp)).numpy()
    expected = expected_values(mdp, law).ravel()
    alive = np.isfinite(expected)
    assert alive.sum() == (~mdp.terminal).sum() * mdp.actions
    standard = _standard_errors(mdp, law, count).ravel()[alive]
    assert (np.abs(values - expected)[alive] < 5.0 * standard).all()
    # The bound is meaningful, because it is below the differences between pairs.
    assert 5.0 * np.median(standard) < 0.3 * expected[alive].std()


def _standard_errors(mdp: FiniteMDP, law: Floats, references: int) -> Floats:
    """Delta-method standard error of the self-normalised estimate of every Q(s, a), (S, A)."""
    reward, marginal = np.append(mdp.reward, 0.0), law.sum((0, 1))
    with np.errstate(divide="ignore", invalid="ignore"):
        given = law / law.sum(-1, keepdims=True)
        centred = reward - (given @ reward)[..., None]
        second = np.where(marginal > 0.0, (given * centred) ** 2 / marginal, 0.0).sum(-1)
    errors: Floats = np.sqrt(second / references) / (1.0 - mdp.discount)
    return errors


def test_contrastive_training_on_one_hot_states_recovers_q() -> None:
    mdp = grid_world()
    transitions, rewards = mdp.log_episodes(200, 200, seed=4)
    data = make_data(transitions, 190, rewards)
    critic, _ = train_dynamics(
        data.without_rewards(),
        dynamics_parameters(
            hidden=(64,),
            representation_size=16,
            temperature=0.5,
            training={"steps": 600, "batch_size": 400, "learning_rate": 1e-2, "validation_interval": 600},
        ),
        seed=0,
    )
    readout = build_readout(critic, transitions, rewards, data.split, readout_parameters(), seed=0)
    with torch.no_grad():
        q = QFunction(critic, readout)(*all_pairs(mdp)).double().numpy()
    exact_q = mdp.q().ravel()
    assert np.corrcoef(q, exact_q)[0, 1] > 0.9
    # Not only the ranking, but the values in units of Q.
    assert np.abs(q - exact_q).mean() < 0.5 * exact_q.std()
    # Actions within a state, from which the policy is extracted.
    differences = [
        values.reshape(9, 4) - values.reshape(9, 4).mean(1, keepdims=True) for values in (q, exact_q)
    ]
    assert np.corrcoef(differences[0].ravel(), differences[1].ravel())[0, 1] > 0.85
