"""Cloning of the best episodes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pandas as pd
import pytest
import torch

from cvl_pipeline.episodes.container import Rewards
from cvl_pipeline.episodes.data import EpisodeData
from cvl_pipeline.errors import InputError
from cvl_pipeline.methods.filtered_bc import FilteredBC
from cvl_pipeline.objectives.bc import BehaviourCloning
from cvl_pipeline.objectives.training import train_policy
from tests.methods.toys import make_episodes, method_parameters


def _labelled(
    returns: list[float], solved: list[bool], reported: bool = True
) -> tuple[EpisodeData, EpisodeData]:
    data = make_episodes()
    episodes = data.transitions.episode_of(torch.arange(len(data.transitions)))
    lengths = data.transitions.lengths
    rewards = Rewards(
        torch.tensor(returns)[episodes] / lengths[episodes],
        torch.tensor(solved)[episodes],
        torch.tensor(reported),
    )
    return data, data.with_rewards(rewards)


def _method(**settings: Any) -> FilteredBC:
    return FilteredBC(method_parameters("filtered_bc", **settings))


RETURNS = [3.0, 9.0, 1.0, 4.0, 9.5, 0.5]


@pytest.mark.parametrize("share", [0.01, 0.5, 0.51, 1.0])
def test_the_best_training_episodes_are_cloned(share: float) -> None:
    data, labelled = _labelled(RETURNS, [False] * 6)
    train = data.split.train.tolist()
    count = {0.01: 1, 0.5: len(train) // 2, 0.51: len(train) // 2 + 1, 1.0: len(train)}[share]
    best = sorted(sorted(train, key=lambda episode: -RETURNS[episode])[:count])
    assert _method(share=share).episodes(labelled).tolist() == best


def test_successes_are_cloned() -> None:
    solved = [True, False, True, True, True, True]
    data, labelled = _labelled(RETURNS, solved)
    expected = [episode for episode in data.split.train.tolist() if solved[episode]]
    assert _method(keep="success").episodes(labelled).tolist() == expected


@pytest.mark.parametrize("reported", [False, True])
def test_a_log_without_success_is_refused(reported: bool) -> None:
    _, labelled = _labelled(RETURNS, [not reported] * 6, reported)
    with pytest.raises(InputError, match="reports no success in a training episode"):
        _method(keep="success").train(labelled, 0)


def test_the_policy_is_that_of_cloning_the_episodes_alone() -> None:
    data, labelled = _labelled(RETURNS, [False] * 6)
    method = _method(share=0.5, training={"steps": 20})
    policy, history = method.train(labelled, 0)
    alone = replace(data, split=replace(data.split, train=method.episodes(labelled)))
    names = ("hidden", "encoder", "training")
    settings = {name: getattr(method.parameters, name) for name in names}
    expected = train_policy(alone, BehaviourCloning.Parameters(**settings), 0)
    pd.testing.assert_frame_equal(history, expected.history)
    torch.testing.assert_close(policy.state_dict(), expected.policy.state_dict(), rtol=0, atol=0)


def test_rewards_are_needed() -> None:
    with pytest.raises(InputError, match="needs rewards"):
        _method().train(make_episodes(rewards=False), 0)
