from __future__ import annotations

import json
import subprocess
import time
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import optuna
import psutil
import pytest
from optuna.trial import TrialState

from cvl_pipeline.errors import InputError
from cvl_pipeline.io.owner import owner
from cvl_pipeline.testing.builders import dynamics_parameters, policy_parameters, readout_parameters
from cvl_pipeline.tuning.results import status_lines
from cvl_pipeline.tuning.storage import StudyLocation
from cvl_pipeline.tuning.study import (
    RETRIES,
    counts,
    find_study,
    is_dead,
    open_study,
    prepare,
    release_dead,
    signature,
)
from cvl_pipeline.tuning.worker import Specification, work
from tests.tuning.studies import make_specification, make_stages, make_tuning


def running(user_attrs: dict[str, Any]) -> optuna.trial.FrozenTrial:
    return optuna.create_trial(state=TrialState.RUNNING, user_attrs=user_attrs)


def test_trial_on_this_machine_is_dead_when_its_process_is() -> None:
    process = subprocess.Popen(["sleep", "60"])
    started = psutil.Process(process.pid).create_time() - psutil.boot_time()
    mine = {**owner(), "pid": process.pid, "started": started, "alive": 0.0, "id": "0"}
    assert not is_dead(running(mine), 60.0)
    assert is_dead(running({**mine, "started": mine["started"] - 100.0}), 60.0)  # the id was reused
    process.kill()
    process.wait()
    assert is_dead(running(mine), 60.0)


def test_trial_on_another_machine_is_dead_without_signs_of_life() -> None:
    theirs = {**owner(), "host": "another", "id": "0"}
    assert not is_dead(running({**theirs, "alive": time.time() - 50.0}), 60.0)
    assert is_dead(running({**theirs, "alive": time.time() - 70.0}), 60.0)


@pytest.mark.parametrize("host", [owner()["host"], "another"])
@pytest.mark.parametrize("known", range(5))
def test_trial_whose_worker_is_still_being_stored_is_alive(host: str, known: int) -> None:
    names = ["host", "pid", "started", "alive", "id"][:known]  # a worker stores them one by one
    values = {**owner(), "host": host, "alive": time.time(), "id": "0"}
    assert not is_dead(running({name: values[name] for name in names}), 60.0)


def dead_trial(study: optuna.Study, **user_attrs: Any) -> optuna.Trial:
    trial = study.ask()
    trial.suggest_float("contrastive_dynamics.temperature", 0.1, 1.0, log=True)
    for key, value in {**owner(), "pid": 2**22 + 1, "id": f"dead-{trial.number}", **user_attrs}.items():
        trial.set_user_attr(key, value)
    return trial


def test_point_of_an_interrupted_trial_is_retried_a_few_times(tmp_path: Path) -> None:
    tuning = make_tuning(space={"contrastive_dynamics.temperature": make_tuning().space[
        "contrastive_dynamics.temperature"]})  # fmt: skip
    specification = make_specification(tmp_path, tuning)
    study = open_study(specification.location, "name", tuning, 0)
    dead_trial(study)  # takes the queued defaults
    point = study.trials[0].params
    for retry in range(RETRIES):
        release_dead(study, tuning, specification.records)
        assert study.trials[-1].state == TrialState.WAITING
        assert counts(study) == (0, 0, 0)  # a retried trial has not failed
        again = dead_trial(study)
        assert study.trials[again.number].params == point
        assert study.trials[again.number].user_attrs["retries"] == retry + 1
        assert study.trials[again.number].user_attrs["defaults"]
    release_dead(study, tuning, specification.records)
    assert study.trials[-1].state == TrialState.FAIL
    assert counts(study) == (0, 0, 1)


def test_dead_trial_is_retried_once_even_if_two_workers_find_it(tmp_path: Path) -> None:
    tuning = make_tuning()
    specification = make_specification(tmp_path, tuning)
    first, second = (open_study(specification.location, "name", tuning, 0) for _ in range(2))
    dead_trial(first)
    second.get_trials()  # both have seen it running
    for study in (first, second):
        release_dead(study, tuning, specification.records)
    assert [trial.state for trial in second.get_trials()] == [TrialState.FAIL, TrialState.WAITING]


def test_recorded_result_of_a_dead_trial_is_kept(tmp_path: Path) -> None:
    tuning = make_tuning(trials=2)
    specification = make_specification(tmp_path, tuning)
    work(specification)
    study = open_study(specification.location, "name", tuning, 0)
    done = study.trials[1]
    trial = dead_trial(study)
    record = specification.records / f"{done.user_attrs['id']}.json"
    record.rename(specification.records / f"dead-{trial.number}.json")
    release_dead(study, tuning, specification.records)
    assert study.trials[-1].state == TrialState.COMPLETE
    assert study.trials[-1].values == done.values
    for key in ("measured", "seconds"):  # the worker had not told them yet
        assert study.trials[-1].user_attrs[key] == done.user_attrs[key]


def test_finished_trials_are_restored_if_the_storage_is_lost(tmp_path: Path) -> None:
    tuning = make_tuning(trials=3, measures=("contrastive_loss",))
    specification = make_specification(tmp_path, tuning)
    work(specification)
    old = open_study(specification.location, "name", tuning, 0).trials
    specification.location.journal.unlink()
    (specification.records / ".partial-1@here@x.json").mkdir()  # of a killed worker
    study = open_study(specification.location, "name", tuning, 0)
    wanted = signature(specification.stages, tuning, "data")
    prepare(study, wanted, tuning, specification.stages, specification.records)
    new = study.get_trials(states=(TrialState.COMPLETE,))
    assert [(t.params, t.values, t.user_attrs["measured"]) for t in new] == [
        (t.params, t.values, t.user_attrs["measured"]) for t in old
    ]
    assert len(study.trials) == 3  # the defaults are among them and are not queued again


def test_recorded_trial_whose_objective_is_not_a_number_is_not_restored(tmp_path: Path) -> None:
    tuning = make_tuning(trials=2)
    specification = make_specification(tmp_path, tuning)
    work(specification)
    path = next(iter(specification.records.iterdir()))
    path.write_text(json.dumps(json.loads(path.read_text()) | {"values": [float("nan")]}))
    specification.location.journal.unlink()
    study = open_study(specification.location, "name", tuning, 0)
    wanted = signature(specification.stages, tuning, "data")
    prepare(study, wanted, tuning, specification.stages, specification.records)
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE]


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        (
            {"objectives": ("return_mean",)},
            r"tuning\.objectives was \['returns_correlation'\], is \['return_mean'\]",
        ),
        ({"measures": ("success_rate",)}, r"tuning\.measures was \[\], is \['success_rate'\]"),
        (
            {"space": {"contrastive_dynamics.hidden": {"type": "categorical", "choices": [[4]]}}},
            r"tuning\.space\.contrastive_dynamics\.hidden was None, is .*; tuning\.space\.contrastive_dynamics\.temp",
        ),
    ],
)
def test_status_of_a_study_with_other_columns_is_refused(
    tmp_path: Path, changes: dict[str, Any], difference: str
) -> None:
    tuning = make_tuning(trials=1)
    specification = make_specification(tmp_path, tuning)
    work(specification)
    study = open_study(specification.location, "name", tuning, 0)
    assert status_lines(study, make_tuning(trials=9, seeds=3))[0] == "name: 1 complete"
    with pytest.raises(
        InputError, match=rf"'name' was started with other parameters \({difference}"
    ) as caught:
        status_lines(study, make_tuning(**changes))
    assert "\n" not in str(caught.value)


def make_lost(folder: Path) -> tuple[Specification, list[float | None]]:
    """Run a study and delete its storage; return the values of its trials too, whose records are left."""
    specification = make_specification(folder, make_tuning(trials=3))
    work(specification)
    values = [
        trial.value for trial in open_study(specification.location, "name", specification.tuning, 0).trials
    ]
    specification.location.journal.unlink()
    return specification, values


def prepared(specification: Specification) -> optuna.Study:
    """Open and prepare a study as a new run does."""
    stages, tuning = specification.stages, specification.tuning
    study = open_study(specification.location, "name", tuning, 0)
    prepare(study, signature(stages, tuning, "data"), tuning, stages, specification.records)
    return study


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", "3", '{"made_for": {}, "number": 0}'])
def test_damaged_record_is_named_before_others_are_restored(tmp_path: Path, content: str) -> None:
    specification, values = make_lost(tmp_path)
    (specification.records / "x.json").write_text(content)
    for _ in range(2):
        with pytest.raises(InputError, match=r"x\.json is damaged; delete it"):
            prepared(specification)
    (specification.records / "x.json").unlink()  # as the message says
    assert [trial.value for trial in prepared(specification).trials] == values


def test_restoring_that_was_interrupted_is_completed(tmp_path: Path) -> None:
    specification, values = make_lost(tmp_path)
    add = optuna.Study.add_trial
    added: list[optuna.trial.FrozenTrial] = []

    def once(study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
        if added:
            raise KeyboardInterrupt
        added.append(trial)
        add(study, trial)

    with patch.object(optuna.Study, "add_trial", once), pytest.raises(KeyboardInterrupt):
        prepared(specification)
    with pytest.raises(InputError, match=r"started with other parameters \(seed was 0, is 3\)"):
        prepared(replace(specification, stages=make_stages(seed=3)))
    for _ in range(2):  # each trial once
        assert [trial.value for trial in prepared(specification).trials] == values


def test_every_machine_restores_its_own_trials(tmp_path: Path) -> None:
    here = make_specification(tmp_path / "here", make_tuning(trials=2))
    work(here)
    there = make_specification(tmp_path / "there", make_tuning(trials=3))
    there = replace(there, location=here.location)
    work(there)
    values = [trial.value for trial in prepared(there).trials]
    here.location.journal.unlink()
    assert [trial.value for trial in prepared(here).trials] == values[:2]
    for _ in range(2):
        assert [trial.value for trial in prepared(there).trials] == values


def test_study_with_other_parameters_is_refused(tmp_path: Path) -> None:
    tuning = make_tuning()
    specification = make_specification(tmp_path, tuning)
    study = open_study(specification.location, "name", tuning, 0)
    stages = make_stages(seed=3)
    with pytest.raises(InputError, match=r"started with other parameters \(seed was 0, is 3\)"):
        prepare(study, signature(stages, tuning, "data"), tuning, stages, specification.records)
    with pytest.raises(InputError, match="the episodes was 'data', is 'others'"):
        prepare(study, signature(specification.stages, tuning, "others"), tuning, specification.stages,
                specification.records)  # fmt: skip
    other = make_tuning(objectives=("contrastive_loss",))
    with pytest.raises(InputError, match="optimises other objectives"):
        open_study(specification.location, "name", other, 0)


def test_parameters_that_change_no_trial_may_change_while_a_study_runs() -> None:
    stages, tuning = make_stages(), make_tuning()
    more = make_tuning(trials=9, workers=7, max_failures=5, startup_trials=3, grace_seconds=90.0)
    assert signature(stages, tuning, "") == signature(stages, more, "")
    others = make_stages(
        baselines={"iql": {}},
        value_report={"compared_transitions": 7},
        judging={"confidence": 0.9},
        evaluation={"episodes": 2, "workers": 3, "confidence": 0.9},
        contrastive_dynamics=dynamics_parameters(training={"devices": 2, "checkpoint_seconds": 5.0}),
    )
    assert signature(others, tuning, "") == signature(stages, tuning, "")
    names = signature(stages, tuning, "")
    for word in ("devices", "workers", "checkpoint", "baselines"):
        assert not any(word in name for name in names), word


@pytest.mark.parametrize(
    "changes",
    [
        {"evaluation": {"episodes": 3}},
        {"reward": "success"},
        {"policy_extraction": policy_parameters(state_value={"actions": 9})},
        {"contrastive_dynamics": dynamics_parameters(loss="nce")},
        {"value_readout": readout_parameters(references=7)},
    ],
)
def test_parameters_that_change_trials_are_in_the_signature(changes: dict[str, Any]) -> None:
    tuning = make_tuning()
    assert signature(make_stages(**changes), tuning, "") != signature(make_stages(), tuning, "")


def test_searched_parameters_are_in_the_signature_by_their_dimension() -> None:
    stages, name = make_stages(), "contrastive_dynamics.temperature"
    found = signature(stages, make_tuning(), "")
    assert name not in found
    assert found[f"tuning.space.{name}"]["high"] == 1.0
    other = make_stages(contrastive_dynamics=dynamics_parameters(temperature=0.7))
    assert signature(other, make_tuning(), "") == found


def test_missing_study_is_named(tmp_path: Path) -> None:
    stages = make_stages()
    location = StudyLocation(tmp_path / "journal.log")
    with pytest.raises(InputError, match="there is no study 'door-open-v3/dataset/study'"):
        find_study(location, stages, make_tuning())
    assert not list(tmp_path.iterdir())
