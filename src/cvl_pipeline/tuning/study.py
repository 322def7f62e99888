"""The study: its storage is shared by several processes and outlives them."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.pruners import BasePruner, MedianPruner, NopPruner
from optuna.samplers import BaseSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState

from cvl_pipeline.errors import InputError
from cvl_pipeline.io.owner import is_alive
from cvl_pipeline.io.storage import shown
from cvl_pipeline.parameters import StageParameters
from cvl_pipeline.schema import below, effective
from cvl_pipeline.tuning.parameters import TuningParameters
from cvl_pipeline.tuning.space import distribution, encoded_defaults
from cvl_pipeline.tuning.storage import StudyLocation, open_storage

logger = logging.getLogger(__name__)

FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)
RETRIES = 3
"""Retries of an interrupted trial: a point may kill its process every time."""
MADE_FOR = "made_for"
SPACE = "tuning.space."
SUCCESS_UNKNOWN = "success_unknown"
"""Attribute of a trial to which the environment never mentioned success, which therefore counts as 0."""
UNUSED = ("baselines", "value_report", "judging", "evaluation.confidence")
"""Parameters that no trial reads, so that they may change while a study runs."""


def open_study(location: StudyLocation, name: str, tuning: TuningParameters, seed: int) -> Study:
    """Open or create a study in its storage.

    Raises:
        InputError: the storage is damaged, cannot be reached, or contains a study of that name with other
            objectives.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        storage=open_storage(location),
        study_name=name,
        directions=tuning.directions,  # type: ignore[arg-type]
        load_if_exists=True,
        sampler=_sampler(tuning, seed),
        pruner=_pruner(tuning),
    )
    directions = [direction.name.lower() for direction in study.directions]
    if directions != tuning.directions:
        raise InputError(
            f"tuning.study: '{name}' in {location} optimises other objectives ({', '.join(directions)}); "
            "give tuning.study another name"
        )
    return study


def study_name(stages: StageParameters, tuning: TuningParameters) -> str:
    """Name of a study in its storage, which many studies may share: dataset, reward and study."""
    return "/".join((stages.dataset.folder, stages.reward.folder or "dataset", tuning.study))


def find_study(location: StudyLocation, stages: StageParameters, tuning: TuningParameters) -> Study:
    """Open an existing study to read it.

    Raises:
        InputError: there is no such study, or its storage cannot be read.
    """
    name = study_name(stages, tuning)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        if location.url is None and not location.journal.exists():
            raise KeyError(name)
        return optuna.load_study(study_name=name, storage=open_storage(location))
    except KeyError:
        raise InputError(
            f"there is no study '{name}' in {location}: start it with kedro run --pipelines "
            "data_ingestion,tuning, with the same --env and --params"
        ) from None


def _sampler(tuning: TuningParameters, seed: int) -> BaseSampler:
    if tuning.sampler == "random":
        return RandomSampler(seed=seed)
    if tuning.sampler == "nsgaii":
        return NSGAIISampler(seed=seed, population_size=max(2, tuning.startup_trials))
    # constant_liar assumes bad results for points in progress, so that two workers do not try the same.
    return TPESampler(seed=seed, n_startup_trials=tuning.startup_trials, constant_liar=True)


def _pruner(tuning: TuningParameters) -> BasePruner:
    return MedianPruner(n_startup_trials=tuning.startup_trials) if tuning.pruner == "median" else NopPruner()


def signature(stages: StageParameters, tuning: TuningParameters, data: str) -> dict[str, Any]:
    """Properties, by name, that all trials of a study must share to be comparable."""
    fixed = {
        name: value for name, value in effective(stages).items()
        if name not in tuning.space and not below(name, UNUSED)
    }  # fmt: skip
    return {
        **fixed, **_columns(tuning), "tuning.seeds": tuning.seeds,
        "tuning.returns_discount": tuning.returns_discount, "the episodes": data,
    }  # fmt: skip


def _columns(tuning: TuningParameters) -> dict[str, Any]:
    """Properties that say which parameters and numbers a trial has."""
    space = {f"{SPACE}{name}": dimension.model_dump(mode="json") for name, dimension in tuning.space.items()}
    return {
        **space, "tuning.objectives": list(tuning.objectives), "tuning.measures": list(tuning.measures)
    }  # fmt: skip


def check_readable(study: Study, tuning: TuningParameters) -> None:
    """Raise InputError if the study's trials have other parameters or other numbers than ``tuning`` says."""
    made_for, wanted = study.user_attrs.get(MADE_FOR, {}), _columns(tuning)
    columns = {name: value for name, value in made_for.items() if name in wanted or name.startswith(SPACE)}
    if made_for:
        _check_same(study, columns, json.loads(json.dumps(wanted)))


def _check_same(study: Study, made_for: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    other = sorted(name for name in {*made_for, *wanted} if made_for.get(name) != wanted.get(name))
    if other:
        differences = "; ".join(f"{n} was {made_for.get(n)!r}, is {wanted.get(n)!r}" for n in other[:3])
        raise InputError(
            f"tuning.study: '{study.study_name}' was started with other parameters ({differences}"
            f"{' and more' if len(other) > 3 else ''}), so its trials cannot be compared with new ones; give "
            "the same parameters, or give tuning.study another name"
        )


def prepare(
    study: Study, wanted: dict[str, Any], tuning: TuningParameters, stages: StageParameters, records: Path
) -> None:
    """Check the study's parameters, add recorded trials that it lacks, and start a new study with the defaults.

    Every machine has the records of its own trials, so each of them completes a study whose storage was lost.

    Raises:
        InputError: the study was started with other parameters, or a record is damaged; nothing is changed then.
    """
    # As in JSON, so that lists are compared with lists.
    wanted = json.loads(json.dumps(wanted))
    attributes = study.user_attrs
    if MADE_FOR in attributes:
        _check_same(study, attributes[MADE_FOR], wanted)
    lost = _lost(study, records, wanted, tuning)
    # First, so that no process with other parameters starts the study while this one restores it.
    study.set_user_attr(MADE_FOR, wanted)
    for trial in lost:
        study.add_trial(trial)
    if lost:
        logger.info("Restored %d finished trials of '%s' from their records", len(lost), study.study_name)
    defaults = encoded_defaults(tuning.space, stages)
    if defaults is not None and not study.get_trials(deepcopy=False):
        study.enqueue_trial(defaults, user_attrs={"defaults": True})
    release_dead(study, tuning, records)


def _read(record: Path) -> dict[str, Any]:
    try:
        values: dict[str, Any] = json.loads(record.read_text())
        for key in (MADE_FOR, "number", "state", "values", "params", "user_attrs", "intermediate_values"):
            values[key]
        values["user_attrs"]["id"]
    except (ValueError, TypeError, KeyError):
        raise InputError(f"{shown(record)} is damaged; delete it to run its trial again") from None
    return values


def _lost(study: Study, records: Path, wanted: dict[str, Any], tuning: TuningParameters) -> list[FrozenTrial]:
    """Return the recorded finished trials with the same parameters that the study does not have."""
    # Hidden names are temporary folders of killed workers.
    every = [_read(path) for path in records.glob("[!.]*.json")]
    # Older versions recorded a trial whose objective was not a number, before Optuna refused it.
    valid = [r for r in every if r[MADE_FOR] == wanted and not any(map(math.isnan, r["values"] or ()))]
    known = {trial.user_attrs.get("id") for trial in study.get_trials(deepcopy=False)}
    lost = [record for record in valid if record["user_attrs"]["id"] not in known]
    return [
        optuna.create_trial(
            state=TrialState[record["state"]],
            values=record["values"],
            params=record["params"],
            distributions={name: distribution(tuning.space[name]) for name in record["params"]},
            user_attrs=record["user_attrs"],
            intermediate_values={int(step): v for step, v in record["intermediate_values"].items()},
        )
        for record in sorted(lost, key=lambda record: record["number"])
    ]


def record_path(records: Path, attributes: Mapping[str, Any]) -> Path:
    """Path of a trial's record, named by the trial's own id: a new storage restarts the numbers."""
    return records / f"{attributes['id']}.json"


def is_dead(trial: FrozenTrial, grace_seconds: float) -> bool:
    """Whether no process works on a running trial any more.

    On this machine, its process is gone; on another, it gave no sign of life for ``grace_seconds``.
    """
    attributes = trial.user_attrs
    if "id" not in attributes:  # the last one; it has just started, or its process has just ended
        begun = trial.datetime_start
        return begun is None or (datetime.now() - begun).total_seconds() > grace_seconds
    if (alive := is_alive(attributes)) is not None:
        return not alive
    return bool(time.time() - attributes["alive"] > grace_seconds)


def release_dead(study: Study, tuning: TuningParameters, records: Path) -> None:
    """End running trials whose process is gone: as finished if recorded so, else failed, to be retried."""
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        if not is_dead(trial, tuning.grace_seconds):
            continue
        path = record_path(records, trial.user_attrs) if "id" in trial.user_attrs else None
        done = _read(path) if path is not None and path.exists() else None
        try:
            if done is not None:
                # The worker was killed after it wrote the record, maybe before it told the storage.
                for key in ("measured", "seconds"):
                    if key in done["user_attrs"]:
                        Trial(study, trial._trial_id).set_user_attr(key, done["user_attrs"][key])
                study.tell(trial.number, done["values"], state=TrialState[done["state"]])
                continue
            study.tell(trial.number, state=TrialState.FAIL)
        except (ValueError, UpdateFinishedTrialError):
            continue  # another worker was faster
        retries = trial.user_attrs.get("retries", 0) + 1
        point = trial.params or trial.system_attrs.get("fixed_params")
        if retries <= RETRIES and point:
            defaults = {key: value for key, value in trial.user_attrs.items() if key == "defaults"}
            study.enqueue_trial(point, user_attrs={**defaults, "retries": retries, "retry_of": trial.number})


def check_success(study: Study, tuning: TuningParameters) -> None:
    """Raise InputError if the environment has mentioned success to none of enough trials.

    It may mention success only when the task is solved, so one trial that never hears of it has not succeeded. If no
    trial does, the environment probably never reports success, and 0 for all of them would be false.
    """
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    silent = all(trial.user_attrs.get(SUCCESS_UNKNOWN) for trial in complete)
    if silent and len(complete) >= min(tuning.trials, tuning.max_failures + 1):
        raise InputError(
            f"tuning: the environment reported success in none of {len(complete)} trials, so success cannot be "
            "measured; use return_mean or a reward that defines success, with another tuning.study, or raise "
            "tuning.trials and tuning.max_failures to go on"
        )


def counts(study: Study) -> tuple[int, int, int]:
    """Numbers of finished, running and failed trials; an interrupted, retried trial is not a failure."""
    trials = study.get_trials(deepcopy=False)
    retried = {trial.user_attrs.get("retry_of") for trial in trials}
    finished = sum(trial.state in FINISHED for trial in trials)
    running = sum(trial.state == TrialState.RUNNING for trial in trials)
    failed = sum(
        trial.state == TrialState.FAIL and trial.number not in retried and not trial.user_attrs.get("surplus")
        for trial in trials
    )
    return finished, running, failed
