from __future__ import annotations

import numpy as np
import pytest
import torch

from cvl_pipeline.judging.coverage import rank_of
from cvl_pipeline.judging.networks import bootstrap_weights
from cvl_pipeline.judging.samples import estimate


def test_an_interval_resamples_episodes_not_steps() -> None:
    generator = np.random.default_rng(0)
    effects = generator.standard_normal(50)
    values = torch.from_numpy(np.repeat(effects, 20))
    episodes = torch.arange(50).repeat_interleave(20)
    mean, low, high = estimate(values, episodes, 0.95, 0)
    assert mean == pytest.approx(effects.mean())
    assert low is not None
    assert high is not None
    assert high - low == pytest.approx(2 * 1.96 * effects.std() / 50**0.5, rel=0.15)
    assert estimate(values, episodes, 0.95, 0) == estimate(values, episodes, 0.95, 0)


@pytest.mark.parametrize("networks", [2, 4, 8])
def test_an_interval_covers_the_truth_as_often_as_it_says_if_networks_differ(networks: int) -> None:
    """The networks' errors are normal, and the episodes are all alike."""
    generator = torch.Generator().manual_seed(networks)
    covered = 0
    for _ in range(200):
        values = torch.randn(networks, 1, generator=generator).expand(networks, 12)
        _, low, high = estimate(values, torch.arange(12), 0.95, 0)
        assert low is not None
        assert high is not None
        covered += low <= 0.0 <= high
    assert covered >= 0.9 * 200


@pytest.mark.parametrize("networks", [1, 4])
def test_one_episode_has_no_interval(networks: int) -> None:
    values = torch.arange(3.0 * networks).reshape(networks, 3)
    own = estimate(values, torch.zeros(3, dtype=torch.int64), 0.95, 0)
    assert own.named("own") == {"own": values.mean().item(), "own_ci_low": None, "own_ci_high": None}


def test_steps_have_weights_and_another_mean_can_be_subtracted() -> None:
    values, episodes = torch.tensor([1.0, 1.0, 1.0, 5.0]), torch.tensor([4, 4, 4, 9])
    assert estimate(values, episodes, 0.95, 0).value == pytest.approx(2.0)
    weights = torch.tensor([1.0, 1.0, 1.0, 9.0])
    assert estimate(values, episodes, 0.95, 0, weights=weights).value == pytest.approx(4.0)
    less = torch.tensor([0.0, 0.0, 0.0, 2.0]), torch.tensor([0.0, 0.0, 1.0, 3.0])
    assert estimate(values, episodes, 0.95, 0, less=less).value == pytest.approx(0.5)
    alike = estimate(values, episodes, 0.95, 0, less=(values, torch.ones(4)))
    assert alike == pytest.approx((0.0, 0.0, 0.0))


def test_a_bootstrap_sample_has_as_many_episodes_and_all_steps_of_each() -> None:
    episodes = torch.tensor([3, 3, 5, 5, 5, 8])
    weights = bootstrap_weights(episodes, torch.Generator().manual_seed(0))
    per_episode = [float(weights[episodes == episode][0]) for episode in (3, 5, 8)]
    assert sum(per_episode) == 3.0
    assert torch.equal(weights[2:5], weights[2].expand(3))


def test_ranks_of_distances() -> None:
    logged = torch.arange(100.0)
    assert rank_of(logged, logged) == (0.5, 0.05)
    assert rank_of(logged + 1000.0, logged) == (1.0, 1.0)
    assert rank_of(torch.zeros(3), torch.zeros(5)) == (0.5, 0.0)
    assert rank_of(torch.tensor([-1.0]), logged) == (0.0, 0.0)
