from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from scipy import stats

from cvl_pipeline import api
from cvl_pipeline.dynamics.job import CriticJob
from cvl_pipeline.dynamics.module import TrainedCritic, train_dynamics
from cvl_pipeline.episodes.container import Rewards, Split
from cvl_pipeline.episodes.data import EpisodeData
from cvl_pipeline.episodes.preparation import observed_returns
from cvl_pipeline.errors import InputError
from cvl_pipeline.readout.build import build_readout
from cvl_pipeline.readout.diagnostics import returns_correlation
from cvl_pipeline.readout.q_function import QFunction
from cvl_pipeline.sources.environment import environment_for
from cvl_pipeline.testing.builders import DATASET, make_rewards, make_transitions
from cvl_pipeline.training import launch
from cvl_pipeline.tuning import trial
from cvl_pipeline.tuning.trial import Bench
from tests.tuning.studies import make_log, make_stages

OFFLINE = ("contrastive_loss", "mutual_information_bound", "returns_correlation")


def bench(folder: Path, *searched: str) -> Bench:
    stages = make_stages()
    return Bench(make_log(stages), stages, searched, 0.9, folder / "shared", 1)


def trained() -> tuple[EpisodeData, Rewards, QFunction, TrainedCritic]:
    """Run the stages by themselves."""
    stages = make_stages()
    data = make_log(stages)
    assert data.rewards is not None
    critic = train_dynamics(data, stages.contrastive_dynamics, 0)
    readout = build_readout(
        critic.critic, data.transitions, data.rewards, data.split, stages.value_readout, 0
    )
    return data, data.rewards, QFunction(critic.critic, readout), critic


def test_measured_numbers_are_those_of_the_stages(tmp_path: Path) -> None:
    data, rewards, q, (_, history) = trained()
    transitions = data.transitions
    measured = bench(tmp_path).measure({}, 0, OFFLINE)
    assert measured["contrastive_loss"] == history["validation/loss"].iloc[-1]
    assert measured["mutual_information_bound"] == history["validation/mutual_information_bound"].iloc[-1]
    index = transitions.transition_index(data.split.validation)
    episodes = transitions.episode_of(index)
    left = transitions.episode_starts[episodes + 1] - index
    kept = index[transitions.terminated[episodes] | (1.0 - 0.9 ** left.double() >= 0.25)]
    assert 2 < len(kept) < len(index)
    values, _ = q.of_transitions(transitions, kept)
    returns = observed_returns(rewards.rewards, transitions, 0.9)[kept]
    assert measured["returns_correlation"] == stats.spearmanr(values, returns).statistic


def test_too_short_held_out_episodes_for_the_discount_are_refused() -> None:
    data, rewards, q, _ = trained()
    truncated = (~data.transitions.terminated).nonzero().flatten()[:1]
    split = Split(train=data.split.train, validation=truncated)
    with pytest.raises(InputError, match=r"lower tuning\.returns_discount"):
        returns_correlation(q, data.transitions, rewards, split, 0.99999)


def test_common_parts_of_trials_are_trained_once(tmp_path: Path) -> None:
    judge = bench(tmp_path, "policy_extraction.beta")
    jobs = []

    def counted(job: launch.Job, *arguments: Any) -> Any:
        jobs.append(job.name)
        return original(job, *arguments)

    original = launch.train
    with patch.object(launch, "train", counted):
        for beta in (1.0, 2.0, 1.0):
            judge.measure({"policy_extraction.beta": beta}, 0, ("returns_correlation",))
        assert jobs == ["critic"]
        other = judge.measure({"contrastive_dynamics.temperature": 0.5}, 0, OFFLINE)
        assert jobs == ["critic"] * 2
        assert other != judge.measure({}, 1, OFFLINE)
        assert jobs == ["critic"] * 3


def test_critic_never_sees_the_rewards(tmp_path: Path) -> None:
    seen = []

    def record(job: CriticJob, *arguments: Any) -> Any:
        seen.append(job.artifacts().keys())
        raise FloatingPointError("enough")

    with patch.object(launch, "train", record), pytest.raises(FloatingPointError):
        bench(tmp_path).measure({}, 0, OFFLINE)
    assert [set(kinds) for kinds in seen] == [{"transitions", "split", "normalisation"}]


def test_policy_of_a_point_is_evaluated_in_the_environment_once(tmp_path: Path) -> None:
    stages = make_stages(dataset=DATASET | {"task": "reach-v3"})
    transitions, rewards = api.ingest(stages.dataset, stages.seed, 1)
    data = EpisodeData.prepare(transitions, rewards, stages.data_ingestion, stages.seed)
    judge = Bench(data, stages, ("policy_extraction.beta",), 0.9, tmp_path, 1)
    names = ("success_rate", "return_mean")
    first = judge.measure({"policy_extraction.beta": 1.0}, 0, names)
    assert list(first) == list(names)
    assert 0.0 <= first["success_rate"] <= 1.0
    with (
        patch.object(api, "roll_out", side_effect=AssertionError("rolled out again")),
        patch.object(launch, "train", side_effect=AssertionError("trained again")),
    ):
        assert judge.measure({"policy_extraction.beta": 1.0}, 0, names) == first
        with pytest.raises(AssertionError, match="trained again"):
            judge.measure({"policy_extraction.beta": 2.0}, 0, names)


@pytest.mark.parametrize(("reward", "known"), [("dataset", True), ("success", False)])
def test_success_that_nothing_reports_is_not_a_number(tmp_path: Path, reward: str, known: bool) -> None:
    transitions = make_transitions([3, 4], [False, True])
    silent = replace(make_rewards(transitions), success_reported=torch.tensor(False))
    judge = replace(bench(tmp_path), stages=make_stages(reward=reward))
    place = replace(environment_for(judge.stages.dataset, judge.stages.evaluation), made_the_log=False)
    with (
        patch.object(api, "roll_out", return_value=(transitions, silent)),
        patch.object(trial, "environment_for", return_value=place),
    ):
        measured = judge.measure({}, 0, ("success_rate", "return_mean"))
        assert judge.measure({}, 0, ("success_rate", "return_mean")).keys() == measured.keys()  # as stored
    assert math.isnan(measured["success_rate"])
    assert math.isnan(measured["return_mean"]) != known


def test_a_policy_that_never_succeeds_is_0_where_the_log_of_its_simulator_reports_success(
    tmp_path: Path,
) -> None:
    transitions = make_transitions([3, 4], [False, True])
    silent = replace(
        make_rewards(transitions),
        successes=torch.zeros(7, dtype=torch.bool), success_reported=torch.tensor(False),
    )  # fmt: skip
    with patch.object(api, "roll_out", return_value=(transitions, silent)):
        assert bench(tmp_path).measure({}, 0, ("success_rate",)) == {"success_rate": 0.0}


def test_episodes_are_prepared_again_if_the_space_changes_them(tmp_path: Path) -> None:
    stages = make_stages()
    judge = Bench(make_log(stages), stages, ("data_ingestion.std_floor",), 0.9, tmp_path, 1)
    usual = judge.measure({}, 0, ("contrastive_loss",))
    assert judge.measure({"data_ingestion.std_floor": 10.0}, 0, ("contrastive_loss",)) != usual


def test_contradictory_values_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="learned_temperature needs unit_norm"):
        bench(tmp_path).measure(
            {"contrastive_dynamics.representation": "raw", "contrastive_dynamics.learned_temperature": True},
            0, OFFLINE,
        )  # fmt: skip


def test_training_whose_result_could_not_be_stored_is_resumed(tmp_path: Path) -> None:
    judge = bench(tmp_path)
    with (
        patch.object(trial, "save_artifact", side_effect=OSError("No space left on device")),
        pytest.raises(OSError, match="No space"),
    ):
        judge.measure({}, 0, ("contrastive_loss",))
    assert list((tmp_path / "shared").rglob("*.unfinished/*/last.ckpt"))
    judge.measure({}, 0, ("contrastive_loss",))
    assert not list((tmp_path / "shared").glob("*.unfinished"))


def test_failed_training_leaves_nothing_to_resume(tmp_path: Path) -> None:
    def stop(_: object) -> None:
        raise FloatingPointError("stop")

    with pytest.raises(FloatingPointError, match="stop"):
        bench(tmp_path).measure({}, 0, OFFLINE, stop)
    assert not list((tmp_path / "shared").glob("*.unfinished"))
    assert not list((tmp_path / "shared").glob("*.safetensors"))
