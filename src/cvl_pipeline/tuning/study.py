"""A study that several processes share and that outlives any of them."""

from __future__ import annotations

import json
import logging
import os
import platform
import time
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import optuna
import psutil
from optuna.exceptions import UpdateFinishedTrialError
from optuna.pruners import BasePruner, MedianPruner, NopPruner
from optuna.samplers import BaseSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from cvl_pipeline.errors import InputError
from cvl_pipeline.io.storage import shown
from cvl_pipeline.parameters import StageParameters
from cvl_pipeline.training.parameters import OPERATION
from cvl_pipeline.tuning.parameters import TuningParameters
from cvl_pipeline.tuning.space import defaults_as_drawn, distribution
from cvl_pipeline.tuning.storage import StudyLocation, open_storage

logger = logging.getLogger(__name__)

FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)
RETRIES = 3
"""Times that the point of an interrupted trial is tried again: one that kills its process always would be."""
MADE_FOR = "made_for"


def open_study(location: StudyLocation, name: str, tuning: TuningParameters, seed: int) -> Study:
    """Open or begin a study in its storage.

    Raises:
        InputError: the storage is damaged or cannot be reached, or holds a study of that name with other
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
    found = [direction.name.lower() for direction in study.directions]
    if found != tuning.directions:
        raise InputError(
            f"tuning.study: '{name}' in {location} optimises other objectives ({', '.join(found)}); give "
            "tuning.study another name"
        )
    return study


def study_name(stages: StageParameters, tuning: TuningParameters) -> str:
    """Name of a study in its storage, which may be shared by many: dataset, reward and study."""
    return "/".join((stages.dataset.folder, stages.reward.folder or "dataset", tuning.study))


def find_study(location: StudyLocation, stages: StageParameters, tuning: TuningParameters) -> Study:
    """A study that exists, to look at.

    Raises:
        InputError: there is none, or its storage cannot be read.
    """
    name = study_name(stages, tuning)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        if location.url is None and not location.journal.exists():
            raise KeyError(name)
        return optuna.load_study(study_name=name, storage=open_storage(location))
    except KeyError:
        raise InputError(
            f"there is no study '{name}' in {location}: begin it with kedro run --pipelines "
            "data_ingestion,tuning, with the same --env and --params"
        ) from None


def _sampler(tuning: TuningParameters, seed: int) -> BaseSampler:
    if tuning.sampler == "random":
        return RandomSampler(seed=seed)
    if tuning.sampler == "nsgaii":
        return NSGAIISampler(seed=seed, population_size=max(2, tuning.startup_trials))
    # constant_liar: points that other workers are at are thought bad, so that two do not try the same.
    return TPESampler(seed=seed, n_startup_trials=tuning.startup_trials, constant_liar=True)


def _pruner(tuning: TuningParameters) -> BasePruner:
    return MedianPruner(n_startup_trials=tuning.startup_trials) if tuning.pruner == "median" else NopPruner()


def signature(stages: StageParameters, tuning: TuningParameters, data: str) -> dict[str, Any]:
    """What the trials of one study must have in common to be compared, by name."""
    fixed: dict[str, Any] = {}

    def flatten(values: Mapping[str, Any], prefix: str) -> None:
        for key, value in values.items():
            name = f"{prefix}{key}"
            if isinstance(value, Mapping):
                flatten(value, f"{name}.")
            elif name not in tuning.space and key not in (*OPERATION, "workers"):
                fixed[name] = value

    flatten(stages.model_dump(mode="json"), "")
    space = {f"tuning.space.{name}": d.model_dump(mode="json") for name, d in tuning.space.items()}
    return {
        **fixed, **space, "tuning.objectives": list(tuning.objectives),
        "tuning.measures": list(tuning.measures), "tuning.seeds": tuning.seeds,
        "tuning.returns_discount": tuning.returns_discount, "the episodes": data,
    }  # fmt: skip


def prepare(
    study: Study, wanted: dict[str, Any], tuning: TuningParameters, stages: StageParameters, records: Path
) -> None:
    """See that the study is one of these parameters; begin a new one with what was lost, or the defaults.

    Raises:
        InputError: it was begun with other parameters.
    """
    # As JSON has it, so that lists compare with lists.
    wanted = json.loads(json.dumps(wanted))
    made_for = study.user_attrs.get(MADE_FOR)
    if made_for is None:
        study.set_user_attr(MADE_FOR, wanted)
        restore(study, records, wanted, tuning)
        defaults = defaults_as_drawn(tuning.space, stages)
        if defaults is not None and not study.get_trials(deepcopy=False):
            study.enqueue_trial(defaults, user_attrs={"defaults": True})
    elif made_for != wanted:
        other = sorted(name for name in {*made_for, *wanted} if made_for.get(name) != wanted.get(name))
        was = "; ".join(f"{n} was {made_for.get(n)!r}, is {wanted.get(n)!r}" for n in other[:3])
        raise InputError(
            f"tuning.study: '{study.study_name}' was begun with other parameters ({was}"
            f"{' and more' if len(other) > 3 else ''}), so its trials cannot be compared with new ones; give "
            "tuning.study another name"
        )
    release_dead(study, tuning, records)


def _read(record: Path) -> dict[str, Any]:
    try:
        values: dict[str, Any] = json.loads(record.read_text())
        values[MADE_FOR], values["number"]
    except (ValueError, TypeError, KeyError):
        raise InputError(f"{shown(record)} is damaged; delete it, and its trial will be done again") from None
    return values


def restore(study: Study, records: Path, wanted: dict[str, Any], tuning: TuningParameters) -> None:
    """Add the finished trials that were recorded for a study of the same parameters whose storage is gone."""
    # Hidden are folders that killed workers wrote in.
    found = [_read(path) for path in records.glob("[!.]*.json")]
    lost = sorted((r for r in found if r[MADE_FOR] == wanted), key=lambda record: record["number"])
    for record in lost:
        study.add_trial(
            optuna.create_trial(
                state=TrialState[record["state"]],
                values=record["values"],
                params=record["params"],
                distributions={name: distribution(tuning.space[name]) for name in record["params"]},
                user_attrs=record["user_attrs"],
                intermediate_values={int(step): v for step, v in record["intermediate_values"].items()},
            )
        )
    if lost:
        logger.info("Took up %d finished trials of '%s' from their records", len(lost), study.study_name)


def record_path(records: Path, attributes: Mapping[str, Any]) -> Path:
    """Where a trial is recorded: by an id of its own, for numbers begin anew in a new storage."""
    return records / f"{attributes['id']}.json"


def owner() -> dict[str, Any]:
    """Who this process is, to other processes and machines."""
    return {
        "host": platform.node(), "pid": os.getpid(), "started": psutil.Process().create_time()
    }  # fmt: skip


def is_dead(trial: FrozenTrial, grace_seconds: float) -> bool:
    """Whether nobody works on a running trial any more.

    On this machine the process is gone; on another, there was no sign of life for as long.
    """
    attributes = trial.user_attrs
    if "pid" not in attributes:  # begun a moment ago, or ended within that moment
        begun = trial.datetime_start
        return begun is None or (datetime.now() - begun).total_seconds() > grace_seconds
    if attributes["host"] == platform.node():
        try:
            return bool(abs(psutil.Process(attributes["pid"]).create_time() - attributes["started"]) > 1.0)
        except psutil.NoSuchProcess:
            return True
    return bool(time.time() - attributes["alive"] > grace_seconds)


def release_dead(study: Study, tuning: TuningParameters, records: Path) -> None:
    """End running trials whose process is gone: as finished, if they were, or else to be tried again."""
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        if not is_dead(trial, tuning.grace_seconds):
            continue
        path = record_path(records, trial.user_attrs) if "id" in trial.user_attrs else None
        done = json.loads(path.read_text()) if path is not None and path.exists() else None
        try:
            if done is not None:
                study.tell(trial.number, done["values"], state=TrialState[done["state"]])
                continue
            study.tell(trial.number, state=TrialState.FAIL)
        except (ValueError, UpdateFinishedTrialError):
            continue  # another worker was first
        retries = trial.user_attrs.get("retries", 0) + 1
        point = trial.params or trial.system_attrs.get("fixed_params")
        if retries <= RETRIES and point:
            kept = {key: value for key, value in trial.user_attrs.items() if key == "defaults"}
            study.enqueue_trial(point, user_attrs={**kept, "retries": retries, "retry_of": trial.number})


def counts(study: Study) -> tuple[int, int, int]:
    """Trials that are finished, running and failed; one interrupted and tried again is not a failure."""
    trials = study.get_trials(deepcopy=False)
    retried = {trial.user_attrs.get("retry_of") for trial in trials}
    finished = sum(trial.state in FINISHED for trial in trials)
    running = sum(trial.state == TrialState.RUNNING for trial in trials)
    failed = sum(
        trial.state == TrialState.FAIL and trial.number not in retried and not trial.user_attrs.get("surplus")
        for trial in trials
    )
    return finished, running, failed
