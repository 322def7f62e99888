from __future__ import annotations

from pathlib import Path
from unittest.mock import patch

import pytest
from scipy import stats

from cvl_pipeline.dynamics.module import train_dynamics
from cvl_pipeline.episodes.container import Split
from cvl_pipeline.episodes.preparation import fit_normalisation, observed_returns, split_episodes
from cvl_pipeline.errors import InputError
from cvl_pipeline.readout.build import build_readout
from cvl_pipeline.readout.diagnostics import returns_correlation
from cvl_pipeline.readout.q_function import QFunction
from cvl_pipeline.sources.load import load
from cvl_pipeline.sources.parameters import DatasetParameters
from cvl_pipeline.testing.builders import DATASET
from cvl_pipeline.training import launch
from cvl_pipeline.tuning.trial import Bench, Log
from tests.tuning.studies import make_log, make_stages

OFFLINE = ("contrastive_loss", "mutual_information_bound", "returns_correlation")


def bench(folder: Path, *searched: str) -> Bench:
    stages = make_stages()
    return Bench(make_log(stages), stages, searched, 0.9, folder / "shared", 1)


def test_the_numbers_are_those_that_the_stages_report(tmp_path: Path) -> None:
    stages = make_stages()
    log = make_log(stages)
    found = bench(tmp_path).measure({}, 0, OFFLINE)
    inputs = {"transitions": log.transitions, "split": log.split, "normalisation": log.normalisation}
    critic, history = launch.train(
        train_dynamics, "critic", stages.contrastive_dynamics, 0, tmp_path / "c", None, inputs
    )
    readout = build_readout(critic, log.transitions, log.rewards, log.split, stages.value_readout, 0)
    assert found["contrastive_loss"] == history["validation/loss"].iloc[-1]
    assert found["mutual_information_bound"] == history["validation/mutual_information_bound"].iloc[-1]
    index = log.transitions.transition_index(log.split.validation)
    episodes = log.transitions.episode_of(index)
    left = log.transitions.episode_starts[episodes + 1] - index
    kept = index[log.transitions.terminated[episodes] | (1.0 - 0.9 ** left.double() >= 0.25)]
    assert 2 < len(kept) < len(index)
    values, _ = QFunction(critic, readout).of_transitions(log.transitions, kept)
    returns = observed_returns(log.rewards.rewards, log.transitions, 0.9)[kept]
    assert found["returns_correlation"] == stats.spearmanr(values, returns).statistic


def test_a_discount_that_no_held_out_episode_is_long_enough_for(tmp_path: Path) -> None:
    stages = make_stages()
    log = make_log(stages)
    critic, _ = launch.train(
        train_dynamics, "critic", stages.contrastive_dynamics, 0, tmp_path / "c", None,
        {"transitions": log.transitions, "split": log.split, "normalisation": log.normalisation},
    )  # fmt: skip
    readout = build_readout(critic, log.transitions, log.rewards, log.split, stages.value_readout, 0)
    truncated = (~log.transitions.terminated).nonzero().flatten()[:1]
    split = Split(train=log.split.train, validation=truncated)
    with pytest.raises(InputError, match=r"lower tuning\.returns_discount"):
        returns_correlation(QFunction(critic, readout), log.transitions, log.rewards, split, 0.99999)


def test_what_trials_have_in_common_is_made_once(tmp_path: Path) -> None:
    judge = bench(tmp_path, "policy_extraction.beta")
    trained = []

    def counted(function: object, makes: str, *arguments: object) -> object:
        trained.append(makes)
        return original(function, makes, *arguments)  # type: ignore[arg-type]

    original = launch.train
    with patch.object(launch, "train", counted):
        for beta in (1.0, 2.0, 1.0):
            judge.measure({"policy_extraction.beta": beta}, 0, ("returns_correlation",))
        assert trained == ["critic"]
        other = judge.measure({"contrastive_dynamics.temperature": 0.5}, 0, OFFLINE)
        assert trained == ["critic"] * 2
        assert other != judge.measure({}, 1, OFFLINE)
        assert trained == ["critic"] * 3


def test_the_policy_of_a_point_is_judged_in_the_environment_and_kept(tmp_path: Path) -> None:
    stages = make_stages(dataset=DatasetParameters(**DATASET | {"task": "reach-v3"}))
    transitions, rewards = load(stages.dataset, stages.seed, 1)
    split = split_episodes(transitions, 0.3, stages.seed)
    log = Log(transitions, rewards, split, fit_normalisation(transitions, split, 1e-3))
    judge = Bench(log, stages, ("policy_extraction.beta",), 0.9, tmp_path, 1)
    names = ("success_rate", "return_mean")
    first = judge.measure({"policy_extraction.beta": 1.0}, 0, names)
    assert list(first) == list(names)
    assert 0.0 <= first["success_rate"] <= 1.0
    with (
        patch("cvl_pipeline.tuning.trial.evaluate", side_effect=AssertionError("ran again")),
        patch.object(launch, "train", side_effect=AssertionError("trained again")),
    ):
        assert judge.measure({"policy_extraction.beta": 1.0}, 0, names) == first


def test_episodes_are_made_anew_where_the_space_reaches_them(tmp_path: Path) -> None:
    stages = make_stages()
    judge = Bench(make_log(stages), stages, ("data_ingestion.std_floor",), 0.9, tmp_path, 1)
    usual = judge.measure({}, 0, ("contrastive_loss",))
    assert judge.measure({"data_ingestion.std_floor": 10.0}, 0, ("contrastive_loss",)) != usual


def test_values_that_do_not_go_together_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="learned_temperature needs unit_norm"):
        bench(tmp_path).measure(
            {"contrastive_dynamics.representation": "raw", "contrastive_dynamics.learned_temperature": True},
            0, OFFLINE,
        )  # fmt: skip


def test_what_failed_leaves_nothing_to_resume(tmp_path: Path) -> None:
    def stop(_: object) -> None:
        raise FloatingPointError("stop")

    with pytest.raises(FloatingPointError, match="stop"):
        bench(tmp_path).measure({}, 0, OFFLINE, stop)
    assert not list((tmp_path / "shared").glob("*.unfinished"))
    assert not list((tmp_path / "shared").glob("*.safetensors"))
