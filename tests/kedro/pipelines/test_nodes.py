from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from cvl_pipeline.environments.collection import episode_seeds
from cvl_pipeline.episodes.container import Rewards, Transitions
from cvl_pipeline.kedro.pipelines.contrastive_dynamics import nodes as contrastive_dynamics
from cvl_pipeline.kedro.pipelines.data_ingestion import nodes as data_ingestion
from cvl_pipeline.kedro.pipelines.evaluation import nodes as evaluation
from cvl_pipeline.kedro.pipelines.policy_extraction import nodes as policy_extraction
from cvl_pipeline.kedro.pipelines.value_readout import nodes as value_readout
from cvl_pipeline.kedro.workspace import Workspace, workspace
from cvl_pipeline.networks.actor import CategoricalActor, GaussianActor
from cvl_pipeline.networks.critic import ContrastiveCritic, CriticShape
from cvl_pipeline.objectives.best_of_n import BestOfN
from cvl_pipeline.testing.builders import (
    DATASET,
    dynamics_parameters,
    identity_normalisation,
    make_discrete_transitions,
    make_rewards,
    make_transitions,
    policy_parameters,
    readout_parameters,
    split_first,
    training_parameters,
)

NO_SUCCESS = torch.tensor(False)
LABELS = make_rewards(make_transitions([1], [False]))
"""Of the log. Its successes are not read, but that it reports them is."""
LOGGED = {"source": "dataset", "name": None}
SUCCESS = {"source": "success", "name": None}
REACH = DATASET | {"task": "reach-v3"}
PROTOCOL: dict[str, Any] = {"environment": None, "episode_steps": None, "goals": False, "confidence": 0.9}


def _rollouts() -> dict[str, tuple[Transitions, Rewards]]:
    """Two episodes of each of two policies."""
    ours, clone = make_transitions([3, 2], [False, True]), make_transitions([2, 4], [False, False], seed=1)
    successes = torch.tensor([False, True, True, False, False])
    return {
        "cvl": (ours, Rewards(torch.tensor([1.0, 2.0, 4.0, 0.5, 0.5]), successes)),
        "bc": (clone, Rewards(torch.full((6,), 10.0), torch.zeros(6, dtype=torch.bool))),
    }


def _tables(
    reward: dict[str, Any], dataset: dict[str, Any] = REACH, seed: int = 4
) -> dict[str, pd.DataFrame]:
    """The tables of both policies."""
    return {
        f"{name}_rollouts": evaluation.score(*rollouts, LABELS, dataset, None, False, reward, seed)
        for name, rollouts in _rollouts().items()
    }


def test_rollouts_are_scored_as_the_environment_did_unless_another_reward_is_in_force() -> None:
    ours, clone = _tables(LOGGED).values()
    assert ours["return"].tolist() == [7.0, 1.0]
    assert clone["return"].tolist() == [20.0, 40.0]
    assert (
        ours["episode_seed"].tolist() == clone["episode_seed"].tolist() == episode_seeds(4, "evaluation", 2)
    )
    # One per step at which the task counts as solved.
    ours, clone = _tables(SUCCESS).values()
    assert ours["return"].tolist() == [2.0, 0.0]
    assert ours["success"].tolist() == [True, False]
    assert clone["return"].tolist() == [0.0, 0.0]


def test_a_goal_decides_return_and_success_by_the_states_that_were_reached() -> None:
    goal = _rollouts()["cvl"][0].observations[6].tolist()  # the end of the second episode
    reward = {
        "source": "goal_distance", "indices": [0, 1, 2], "target": goal, "scale": 0.1, "tolerance": 0.01
    }  # fmt: skip
    ours, _ = _tables(reward).values()
    assert ours["success"].tolist() == [False, True]
    assert ours["return"][1] == pytest.approx(1.0, abs=0.2)


def test_goals_of_the_episodes_are_judged_by_the_environment_alone() -> None:
    transitions, rewards = _rollouts()["cvl"]
    table = evaluation.score(transitions, rewards, LABELS, REACH, None, True, SUCCESS, 4)
    assert table["return"].tolist() == [7.0, 1.0]
    assert table["success"].tolist() == [True, False]


def test_a_policy_that_never_succeeds_is_0_where_the_log_or_another_policy_shows_that_success_is_reported() -> (
    None
):
    transitions, rewards = _rollouts()["bc"]
    silent = replace(
        rewards, successes=torch.zeros_like(rewards.successes), success_reported=torch.tensor(False)
    )
    collected = {"source": "gymnasium", "task": "CartPole-v1"}
    table = evaluation.score(transitions, silent, LABELS, collected, None, False, SUCCESS, 4)
    assert table["success"].tolist() == [False, False]
    assert table["return"].tolist() == [0.0, 0.0]
    # A log of another environment shows nothing: neither success nor a reward made of it is known.
    unknown = evaluation.score(transitions, silent, LABELS, collected, "CartPole-v1", False, SUCCESS, 4)
    assert unknown["success"].isna().all()
    assert unknown["return"].isna().all()
    known = _tables(LOGGED)["cvl_rollouts"]
    behaviour = make_transitions([2, 2, 2], [False] * 3)
    metrics = _summarise(
        make_rewards(behaviour),
        behaviour,
        cvl_rollouts=known,
        bc_rollouts=known.assign(success=unknown["success"]),
    )
    assert (metrics["cvl.success_rate"], metrics["bc.success_rate"]) == (0.5, 0.0)
    # With success as the reward, the return is known then, too.
    metrics = _summarise(
        make_rewards(behaviour), behaviour, reward=SUCCESS, cvl_rollouts=known, bc_rollouts=unknown
    )
    assert (metrics["bc.success_rate"], metrics["bc.return_mean"]) == (0.0, 0.0)


TITLES = {"cvl": "CVL", "bc": "BC (control)"}


def _summarise(labels: Rewards, behaviour: Transitions, **changes: Any) -> dict[str, Any]:
    given: dict[str, Any] = {
        "dataset": REACH,
        "reward": LOGGED,
        "seed": 4,
        **PROTOCOL,
        **_tables(LOGGED),
        **changes,
    }
    train = behaviour.episodes - 1
    return evaluation.summarise(
        TITLES, transitions=behaviour, labels=labels, split=split_first(behaviour, train), **given
    )


def test_the_summary_judges_the_behaviour_by_the_same_labels() -> None:
    behaviour = make_transitions([2, 2, 2], [False] * 3)
    labels = Rewards(torch.full((6,), 0.25), torch.tensor([True, False, False, False, False, True]))
    metrics = _summarise(labels, behaviour, reward=SUCCESS)
    assert metrics["cvl.return_mean"] == 4.0
    assert metrics["bc.return_mean"] == 30.0
    assert metrics["behaviour.return_mean"] == pytest.approx(0.5)
    assert metrics["behaviour.success_rate"] == pytest.approx(2 / 3)
    assert metrics["episodes"] == 2
    assert metrics["behaviour_episodes"] == 3
    assert metrics["reward"] == "success"
    assert metrics["dataset"] == "reach-v3"
    assert metrics["confidence"] == 0.9
    assert metrics["methods"] == TITLES
    ends = ("", "_ci_low", "_ci_high")
    measures = {
        f"{name}.{metric}{end}"
        for name in (*TITLES, "behaviour")
        for metric in ("success_rate", "return_mean")
        for end in ends
    }
    assert metrics.keys() == measures | {
        "methods", "episodes", "behaviour_episodes", "task", "dataset", "reward", "seed", "environment",
        "confidence", "protocol",
    }  # fmt: skip


def test_only_returns_of_the_datasets_own_reward_have_a_normalised_score() -> None:
    behaviour = make_transitions([2, 2, 2], [False] * 3)
    labels = make_rewards(behaviour)
    hopper = {"source": "d4rl", "task": "hopper-medium-v2"}
    metrics = _summarise(labels, behaviour, dataset=hopper)
    assert {name for name in metrics if name.endswith("normalised_score")} == {
        f"{name}.normalised_score" for name in (*TITLES, "behaviour")
    }
    metrics = _summarise(labels, behaviour, dataset=hopper, reward=SUCCESS)
    assert not any(name.endswith("normalised_score") for name in metrics)


def test_measures_that_nothing_reports_are_null() -> None:
    behaviour = make_transitions([2, 2, 2], [False] * 3)
    labels = Rewards(torch.full((6,), 0.25), torch.zeros(6, dtype=torch.bool), NO_SUCCESS)
    metrics = _summarise(labels, behaviour)
    assert metrics["behaviour.success_rate"] is None
    assert metrics["behaviour.return_mean"] == pytest.approx(0.5)
    table = data_ingestion.tabulate(behaviour, labels, split_first(behaviour, 2), REACH)
    report = data_ingestion.report(table, behaviour, labels)
    assert report["success_rate"] is None
    assert report["return_mean"] == pytest.approx(0.5)
    missing = replace(labels, rewards=torch.full((6,), torch.nan))
    report = data_ingestion.report(
        data_ingestion.tabulate(behaviour, missing, split_first(behaviour, 2), REACH), behaviour, missing
    )
    assert report["return_mean"] is None
    assert report["transitions"] == 6
    assert (report["dropped_reward"], report["dropped_successes"]) == (None, None)


def test_the_data_report_counts_what_reading_dropped_and_changed() -> None:
    data = replace(
        make_transitions([2, 2, 2], [False] * 3),
        actions_out_of_bounds=torch.tensor(4), largest_excess=torch.tensor(0.5),
    )  # fmt: skip
    counts = (torch.tensor(7), torch.tensor(2), torch.tensor(-1.5), torch.tensor(3))
    rewards = Rewards(torch.zeros(6), torch.zeros(6, dtype=torch.bool), torch.tensor(True), *counts)
    table = data_ingestion.tabulate(data, rewards, split_first(data, 2), REACH)
    expected = {
        "dropped_steps": 7, "dropped_episodes": 2, "dropped_reward": -1.5, "dropped_successes": 3,
        "actions_out_of_bounds": 4, "largest_excess": 0.5,
    }  # fmt: skip
    report = data_ingestion.report(table, data, rewards)
    assert {name: report[name] for name in expected} == expected


def test_all_tables_and_the_summary_name_the_tasks_of_a_benchmark(monkeypatch: pytest.MonkeyPatch) -> None:
    rollouts = {}
    for name, (episodes, rewards) in _rollouts().items():
        # The last ten numbers are the one-hot of the task; the tasks take turns, as in the seeds.
        observations = torch.zeros(len(episodes.observations), 12)
        first = int(episodes.lengths[0]) + 1
        observations[:first, 2], observations[first:, 3] = 1.0, 1.0
        rollouts[name] = (replace(episodes, observations=observations), rewards)
    monkeypatch.setitem(globals(), "_rollouts", lambda: rollouts)
    benchmark = DATASET | {"task": "MT10"}
    tables = _tables(LOGGED, benchmark)
    for table in tables.values():
        assert table["task"].tolist() == ["reach-v3", "push-v3"]
        assert table["episode_seed"].tolist() == episode_seeds(4, "evaluation", 2, 10)
    behaviour, labels = rollouts["cvl"]
    table = data_ingestion.tabulate(behaviour, labels, split_first(behaviour, 1), benchmark)
    assert table["task"].tolist() == ["reach-v3", "push-v3"]
    metrics = _summarise(labels, behaviour, dataset=benchmark, **tables)
    for policy, rate in (("cvl", 1.0), ("bc", 0.0), ("behaviour", 1.0)):
        assert metrics[f"{policy}.success_rate.reach-v3"] == rate
        assert metrics[f"{policy}.success_rate.push-v3"] == 0.0


SMALL: dict[str, Any] = {"hidden": (8,), "training": training_parameters().model_dump(mode="json")}


@pytest.mark.parametrize(("objective", "discrete"), [("awr", False), ("best_of_n", True)])
def test_every_method_is_trained_with_what_it_needs(objective: str, discrete: bool) -> None:
    make = make_discrete_transitions if discrete else make_transitions
    data: Transitions = make([9, 6, 8], [True, False, False])
    episodes = (data, split_first(data, 2), identity_normalisation(data))
    torch.manual_seed(0)
    critic = ContrastiveCritic(
        CriticShape((3,), data.actions.shape[1], (8,), 4, "unit_norm", 0.5, False, 0.9, False), episodes[2]
    )
    labels = value_readout.label(data, make_rewards(data), LOGGED)
    exact = readout_parameters().model_dump(mode="json")
    readout = value_readout.read_out(critic, *episodes, labels, exact, 0)
    extraction = policy_parameters(objective=objective).model_dump(mode="json")
    policy, history = policy_extraction.extract(critic, readout, *episodes, labels, extraction, 0)
    actor = CategoricalActor if discrete else GaussianActor
    assert isinstance(policy, BestOfN if objective == "best_of_n" else actor)
    assert "validation/q_gain" in history
    clone, clone_history = policy_extraction.train_baseline(*episodes, {"method": "bc", **SMALL}, 0)
    assert isinstance(clone, actor)
    assert "validation/q_gain" not in clone_history
    for table in (history, clone_history):
        assert np.isfinite(table.to_numpy()).all()
    # The same extraction as a baseline, with critic and readout.
    again, _ = policy_extraction.train_baseline_with_critic(
        critic=critic, readout=readout, transitions=data, split=episodes[1], normalisation=episodes[2],
        labels=labels, parameters={"method": "cvl", "extraction": extraction}, seed=0,
    )  # fmt: skip
    for name, value in policy.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


def test_training_keeps_logs_and_checkpoints_in_the_workspace_of_the_node(tmp_path: Path) -> None:
    data = make_transitions([9, 6, 8], [True, False, False])
    assert workspace.get() == Workspace()
    token = workspace.set(Workspace(checkpoints=tmp_path / "checkpoints", logs=tmp_path / "logs"))
    contrastive_dynamics.train(
        data, split_first(data, 2), identity_normalisation(data), dynamics_parameters().model_dump(), 0
    )
    workspace.reset(token)
    assert [path.name for path in (tmp_path / "logs").rglob("metrics.csv")] == ["metrics.csv"]
    assert list((tmp_path / "checkpoints").rglob("*.ckpt"))  # a hook deletes them when the outputs are saved
