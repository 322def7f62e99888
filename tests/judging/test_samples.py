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
    assert high - low == pytest.approx(2 * 1.96 * effects.std() / 50**0.5, rel=0.15)
    assert estimate(values, episodes, 0.95, 0) == estimate(values, episodes, 0.95, 0)


def test_an_interval_covers_the_difference_of_networks_and_weighs_long_episodes_more() -> None:
    values = torch.tensor([[1.0, 1.0, 1.0, 5.0], [3.0, 3.0, 3.0, 7.0]])
    mean, low, high = estimate(values, torch.tensor([4, 4, 4, 9]), 0.95, 0)
    assert mean == pytest.approx(3.0)
    assert (low, high) == (1.0, 7.0)


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
