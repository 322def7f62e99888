from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from cvl_pipeline.errors import InputError
from cvl_pipeline.networks.actor import ActorShape, GaussianActor
from cvl_pipeline.rollouts import episodes as module
from cvl_pipeline.rollouts.collection import episode_seeds
from cvl_pipeline.rollouts.environments import MetaWorldEnvironment
from cvl_pipeline.rollouts.episodes import Episode
from cvl_pipeline.rollouts.evaluation import ActorPolicy, evaluate_metaworld, rollout_table


def _actor() -> GaussianActor:
    torch.manual_seed(0)
    return GaussianActor(ActorShape(39, 4, (16,)))


def _evaluate(workers: int, episodes: int = 3) -> pd.DataFrame:
    return evaluate_metaworld(
        _actor(), "reach-v3", episodes=episodes, episode_steps=5, seed=2, workers=workers, name="test"
    )


def test_a_row_is_the_episode_that_its_seed_and_the_mode_of_the_policy_determine() -> None:
    table = _evaluate(workers=1)
    assert table["episode_seed"].tolist() == episode_seeds(2, "evaluation", 3)
    environment, actor = MetaWorldEnvironment("reach-v3", 5), _actor()
    for row in table.itertuples():
        observation, _ = environment.reset(seed=int(str(row.episode_seed)))
        total = 0.0
        for _ in range(5):
            with torch.no_grad():
                action = actor(torch.from_numpy(observation.astype(np.float32)))
            observation, reward, *_ = environment.step(action.numpy())
            total += float(reward)
        # One forward pass for all episodes rounds differently from one for each.
        assert table.loc[int(str(row.Index)), "return"] == pytest.approx(total, rel=1e-4)
    assert table["length"].tolist() == [5, 5, 5]


def test_processes_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BATCH", 2)  # two batches of few simulations
    pd.testing.assert_frame_equal(_evaluate(1, episodes=4), _evaluate(2, episodes=4), check_exact=True)


def test_acting_is_deterministic_and_needs_no_gradient() -> None:
    policy = ActorPolicy(_actor())
    observations = [np.random.default_rng(i).normal(size=39) for i in range(3)]
    policy.start([1, 2, 3])
    first = policy.act(observations, [0, 1, 2])
    policy.start([4, 5, 6])
    assert np.array_equal(first, policy.act(observations, [0, 1, 2]))
    assert len(first) == 3
    assert np.abs(first).max() <= 1.0


def test_success_counts_at_any_step_and_returns_are_not_discounted() -> None:
    solved = Episode([np.zeros(1)] * 4, [np.zeros(1)] * 3, [1.0, 2.0, 4.0], [False, True, False])
    failed = Episode([np.zeros(1)] * 2, [np.zeros(1)], [0.5], [False])
    table = rollout_table([7, 9], [solved, failed])
    assert table["episode_seed"].tolist() == [7, 9]
    assert table["return"].tolist() == [7.0, 0.5]
    assert table["success"].tolist() == [True, False]
    assert table["length"].tolist() == [3, 1]


def test_an_unknown_task_is_refused() -> None:
    with pytest.raises(InputError, match=r"did you mean .*reach-v3"):
        evaluate_metaworld(_actor(), "reech-v3", episodes=2, episode_steps=5, seed=0, workers=1, name="test")
