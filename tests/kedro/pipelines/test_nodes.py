from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cvl_pipeline.environments.collection import episode_seeds
from cvl_pipeline.environments.parameters import EvaluationParameters
from cvl_pipeline.episodes.container import Rewards, Transitions
from cvl_pipeline.kedro.pipelines.data_ingestion import nodes as data_ingestion
from cvl_pipeline.kedro.pipelines.evaluation import nodes as evaluation
from cvl_pipeline.kedro.pipelines.policy_extraction import nodes as policy_extraction
from cvl_pipeline.kedro.pipelines.value_readout import nodes as value_readout
from cvl_pipeline.networks.actor import CategoricalActor, GaussianActor
from cvl_pipeline.networks.critic import ContrastiveCritic, CriticShape
from cvl_pipeline.objectives.best_of_n import BestOfN
from cvl_pipeline.objectives.module import OBJECTIVES
from cvl_pipeline.readout.parameters import RewardParameters
from cvl_pipeline.sources.parameters import DatasetParameters
from cvl_pipeline.testing.builders import (
    DATASET,
    identity_normalisation,
    make_discrete_transitions,
    make_rewards,
    make_transitions,
    policy_parameters,
    readout_parameters,
    split_first,
)


def _reward(**changes: Any) -> RewardParameters:
    values: dict[str, Any] = {
        "source": "dataset", "name": None, "indices": None, "target": None, "scale": None, "tolerance": None
    }  # fmt: skip
    return RewardParameters(**(values | changes))


def _evaluation_inputs() -> dict[str, Any]:
    ours, clone = make_transitions([3, 2], [False, True]), make_transitions([2, 4], [False, False], seed=1)
    return {
        "transitions": ours,
        "rewards": Rewards(
            torch.tensor([1.0, 2.0, 4.0, 0.5, 0.5]), torch.tensor([False, True, True, False, False])
        ),
        "bc_transitions": clone,
        "bc_rewards": Rewards(torch.full((6,), 10.0), torch.zeros(6, dtype=torch.bool)),
        "dataset": DatasetParameters(**DATASET | {"task": "reach-v3"}),
        "parameters": EvaluationParameters(
            environment=None, episode_steps=None, episodes=2, confidence=0.9, workers=1
        ),
    }


def test_rollouts_are_scored_as_the_environment_did_unless_another_reward_is_in_force() -> None:
    inputs = _evaluation_inputs()
    ours, clone = evaluation.score(**inputs, reward=_reward(), seed=4)
    assert ours["return"].tolist() == [7.0, 1.0]
    assert clone["return"].tolist() == [20.0, 40.0]
    assert (
        ours["episode_seed"].tolist() == clone["episode_seed"].tolist() == episode_seeds(4, "evaluation", 2)
    )
    # Steps at which the task counts as solved.
    ours, clone = evaluation.score(**inputs, reward=_reward(source="success"), seed=4)
    assert ours["return"].tolist() == [2.0, 0.0]
    assert ours["success"].tolist() == [True, False]
    assert clone["return"].tolist() == [0.0, 0.0]


def test_a_goal_decides_return_and_success_by_the_states_that_were_reached() -> None:
    inputs = _evaluation_inputs()
    goal = inputs["transitions"].observations[6]  # where the second episode ends
    reward = _reward(
        source="goal_distance", indices=(0, 1, 2), target=tuple(goal.tolist()), scale=0.1, tolerance=0.01
    )
    ours, _ = evaluation.score(**inputs, reward=reward, seed=0)
    assert ours["success"].tolist() == [False, True]
    assert ours["return"][1] == pytest.approx(1.0, abs=0.2)


def test_the_summary_judges_the_behaviour_by_the_same_labels() -> None:
    inputs = _evaluation_inputs()
    ours, clone = evaluation.score(**inputs, reward=_reward(), seed=4)
    behaviour = make_transitions([2, 2, 2], [False] * 3)
    labels = Rewards(torch.full((6,), 0.25), torch.tensor([True, False, False, False, False, True]))
    metrics = evaluation.summarise(
        ours,
        clone,
        behaviour,
        labels,
        split_first(behaviour, 2),
        inputs["dataset"],
        _reward(source="success"),
        inputs["parameters"],
        4,
    )
    assert metrics["cvl.return_mean"] == 4.0
    assert metrics["bc.return_mean"] == 30.0
    assert metrics["behaviour.return_mean"] == pytest.approx(0.5)
    assert metrics["behaviour.success_rate"] == pytest.approx(2 / 3)
    assert metrics["episodes"] == 2
    assert metrics["behaviour_episodes"] == 3
    assert metrics["reward"] == "success"
    assert metrics["dataset"] == "reach-v3"
    assert metrics["confidence"] == 0.9


def test_of_several_tasks_every_table_and_the_summary_tell_each() -> None:
    inputs = _evaluation_inputs() | {"dataset": DatasetParameters(**DATASET | {"task": "MT10"})}
    for name in ("transitions", "bc_transitions"):
        # The last ten numbers are the one-hot of the task: the second one first, then the first.
        episodes = make_transitions([3, 2] if name == "transitions" else [2, 4], [False, False], 12)
        observations = torch.zeros_like(episodes.observations)
        first = int(episodes.lengths[0]) + 1
        observations[:first, 3], observations[first:, 2] = 1.0, 1.0
        inputs[name] = replace(episodes, observations=observations)
    ours, clone = evaluation.score(**inputs, reward=_reward(), seed=4)
    assert ours["task"].tolist() == clone["task"].tolist() == ["push-v3", "reach-v3"]
    assert ours["episode_seed"].tolist() == episode_seeds(4, "evaluation", 2, 10)
    behaviour, labels = inputs["transitions"], inputs["rewards"]
    table = data_ingestion.tabulate(behaviour, labels, split_first(behaviour, 1), inputs["dataset"])
    assert table["task"].tolist() == ["push-v3", "reach-v3"]
    metrics = evaluation.summarise(
        ours,
        clone,
        behaviour,
        labels,
        split_first(behaviour, 1),
        inputs["dataset"],
        _reward(),
        inputs["parameters"],
        4,
    )
    for policy, rate in (("cvl", 1.0), ("bc", 0.0), ("behaviour", 1.0)):
        assert metrics[f"{policy}.success_rate.push-v3"] == rate
        assert metrics[f"{policy}.success_rate.reach-v3"] == 0.0


@pytest.mark.parametrize("objective", sorted(OBJECTIVES))
@pytest.mark.parametrize("discrete", [False, True])
def test_extraction_gives_every_objective_what_it_needs_and_cloning_needs_nothing(
    tmp_path: Path, objective: str, discrete: bool
) -> None:
    make = make_discrete_transitions if discrete else make_transitions
    data: Transitions = make([9, 6, 8], [True, False, False])
    split, normalisation = split_first(data, 2), identity_normalisation(data)
    torch.manual_seed(0)
    critic = ContrastiveCritic(
        CriticShape((3,), data.actions.shape[1], (8,), 4, "unit_norm", 0.5, False, 0.9, False), normalisation
    )
    labels = value_readout.label(data, make_rewards(data), _reward())
    readout = value_readout.read_out(critic, data, labels, split, readout_parameters(), 0)
    parameters = policy_parameters(objective=objective)
    policy, history = policy_extraction.extract(
        critic, readout, data, labels, split, normalisation, parameters, 0, tmp_path, tmp_path
    )
    clone, clone_history = policy_extraction.clone(
        data, split, normalisation, parameters, 0, tmp_path, tmp_path
    )
    actor = CategoricalActor if discrete else GaussianActor
    assert isinstance(policy, BestOfN if objective == "best_of_n" else actor)
    assert isinstance(clone, actor)
    for table in (history, clone_history):
        assert np.isfinite(table.to_numpy()).all()
    assert "validation/q_gain" in history
    assert "validation/q_gain" not in clone_history
