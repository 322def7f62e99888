"""The searched space: which parameters, within which bounds, and what a point of it is as parameters."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import Trial

from cvl_pipeline.errors import InputError, unknown_name
from cvl_pipeline.parameters import RENAMED, StageParameters
from cvl_pipeline.schema import below, fields_at, merged, nested, operational_at, validated
from cvl_pipeline.tuning.objectives import OBJECTIVES
from cvl_pipeline.tuning.parameters import Categorical, Dimension, Int, TuningParameters

RULERS = ("seed", "reward", "evaluation", "dataset.name", "dataset.task", "dataset.source", "dataset.path")
"""What says which problem is solved and how it is judged, and so is never searched."""
STAGES = ("dataset", "data_ingestion", "contrastive_dynamics", "value_readout", "policy_extraction")
LAST = {"contrastive_dynamics": 2, "value_readout": 3, "evaluation": 4}
"""Place in STAGES of the last whose parameters change what an objective's stage reports."""


def with_values(stages: StageParameters, values: Mapping[str, Any]) -> StageParameters:
    """Replace some of the parameters, by full name.

    Where a value chooses another alternative, such as an objective, settings that it does not have are left out.

    Raises:
        InputError: a name that is none, or values that do not go together.
    """
    changed = merged(StageParameters, stages.model_dump(mode="json"), nested(values))
    return validated(StageParameters, changed, RENAMED)


def value_of(stages: StageParameters, name: str) -> Any:
    """Return the value of a parameter by its full name, as YAML has it; None if its choice lacks it."""
    value: Any = stages.model_dump(mode="json")
    for part in name.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def check_space(tuning: TuningParameters, stages: StageParameters) -> None:
    """Refuse a space that cannot be searched.

    Raises:
        InputError: a parameter that does not exist, must not be searched, or changes no objective; a value
            that its field refuses; objectives that cannot compare its points; a condition that depends on
            itself.
    """
    if not tuning.space:
        raise InputError(
            "tuning.space is empty: say what is searched, such as contrastive_dynamics.temperature"
        )
    reach = max(LAST[OBJECTIVES[name].stage] for name in tuning.objectives)
    for name, dimension in tuning.space.items():
        _check_name(name)
        stage = name.split(".")[0]
        if STAGES.index(stage) > reach:
            raise InputError(
                f"tuning.space: {name} changes none of tuning.objectives ({', '.join(tuning.objectives)})"
            )
        for objective in tuning.objectives:
            if below(name, OBJECTIVES[objective].incomparable):
                raise InputError(
                    f"tuning.space: trials that differ in {name} cannot be compared by {objective}: "
                    f"{OBJECTIVES[objective].why}; search it by another objective"
                )
        for other in dimension.when or {}:
            _check_name(other)
        conditions = {other: _first(wanted) for other, wanted in (dimension.when or {}).items()}
        for value in dimension.examples:
            _check_value(stages, name, value, conditions)
    _ordered(tuning.space)


def _first(wanted: Any) -> Any:
    return wanted[0] if isinstance(wanted, list | tuple) else wanted


def _check_value(stages: StageParameters, name: str, value: Any, conditions: Mapping[str, Any]) -> None:
    try:
        with_values(stages, {**conditions, name: value})
    except InputError as error:
        raise InputError(f"tuning.space: {name} cannot be {value!r}: {error}") from None


def _check_name(name: str) -> None:
    *parents, last = name.split(".")
    known = fields_at(StageParameters, parents)
    if last not in known:
        # Where the parents lead nowhere, the stages are what is known.
        names = [".".join([*parents, field]) for field in known] or list(STAGES)
        raise InputError(f"tuning.space: {unknown_name('parameter', name, names)}")
    if (
        below(name, RULERS)
        or operational_at(StageParameters, name.split("."))
        or fields_at(StageParameters, name.split("."))
    ):
        raise InputError(f"tuning.space: {name} is not a parameter that can be searched")


def _ordered(space: Mapping[str, Dimension]) -> list[str]:
    """Names in an order in which every condition is known before what depends on it."""
    order: list[str] = []
    while len(order) < len(space):
        ready = [
            name
            for name, dimension in space.items()
            if name not in order and all(o in order for o in dimension.when or {} if o in space)
        ]
        if not ready:
            raise InputError(f"tuning.space: conditions in a circle: {', '.join(set(space) - set(order))}")
        order += ready
    return order


def distribution(dimension: Dimension) -> BaseDistribution:
    """What Optuna draws from. A choice that is no plain value is drawn as its JSON."""
    if isinstance(dimension, Categorical):
        return CategoricalDistribution([_drawn(choice) for choice in dimension.choices])
    if isinstance(dimension, Int):
        return IntDistribution(dimension.low, dimension.high, log=dimension.log, step=dimension.step or 1)
    return FloatDistribution(dimension.low, dimension.high, log=dimension.log, step=dimension.step)


def suggest(trial: Trial, space: Mapping[str, Dimension], stages: StageParameters) -> dict[str, Any]:
    """A point of the space: values by full name, of those parameters whose conditions are met."""
    point: dict[str, Any] = {}
    for name in _ordered(space):
        dimension = space[name]
        if not _met(dimension, point, space, stages):
            continue
        drawn = distribution(dimension)
        if isinstance(drawn, CategoricalDistribution):
            point[name] = decoded(dimension, trial.suggest_categorical(name, drawn.choices))
        elif isinstance(drawn, IntDistribution):
            point[name] = trial.suggest_int(name, drawn.low, drawn.high, log=drawn.log, step=drawn.step)
        else:
            assert isinstance(drawn, FloatDistribution)
            point[name] = trial.suggest_float(name, drawn.low, drawn.high, log=drawn.log, step=drawn.step)
    return point


def decoded(dimension: Dimension, value: Any) -> Any:
    """A parameter's value, from what was drawn for it."""
    if not isinstance(dimension, Categorical):
        return value
    return next(choice for choice in dimension.choices if _drawn(choice) == value)


def defaults_as_drawn(space: Mapping[str, Dimension], stages: StageParameters) -> dict[str, Any] | None:
    """What would have to be drawn for the parameters as they are; None if the space leaves them out."""
    point: dict[str, Any] = {}
    drawn: dict[str, Any] = {}
    for name in _ordered(space):
        dimension = space[name]
        if not _met(dimension, point, space, stages):
            continue
        point[name] = value_of(stages, name)
        drawn[name] = _drawn(point[name])
        if not _inside(dimension, point[name]):
            return None
    return drawn


def _met(
    dimension: Dimension, point: Mapping[str, Any], space: Mapping[str, Dimension], stages: StageParameters
) -> bool:
    """Whether the conditions hold; what is searched but left out at this point has no value to compare."""
    for other, wanted in (dimension.when or {}).items():
        if other in space and other not in point:
            return False
        value = point[other] if other in point else value_of(stages, other)
        if value not in (wanted if isinstance(wanted, list | tuple) else [wanted]):
            return False
    return True


def _inside(dimension: Dimension, value: Any) -> bool:
    if isinstance(dimension, Categorical):
        return _drawn(value) in [_drawn(choice) for choice in dimension.choices]
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    steps = (value - dimension.low) / (dimension.step or 1.0)
    aligned = dimension.step is None or abs(steps - round(steps)) < 1e-9
    return dimension.low <= value <= dimension.high and aligned


def _drawn(choice: Any) -> Any:
    return choice if choice is None or isinstance(choice, bool | int | float | str) else json.dumps(choice)
