"""The search space: its parameters, their bounds and conditions, and the points in it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import product
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
from cvl_pipeline.schema import below, fields_at, integers, merged, nested, operational_at, validated
from cvl_pipeline.tuning.objectives import OBJECTIVES
from cvl_pipeline.tuning.parameters import STAGES, Categorical, Dimension, Int, TuningParameters

PROBLEM = ("dataset.name", "dataset.task", "dataset.source", "dataset.path")
"""Parameters that define the problem. They cannot be searched."""
LAST = {"contrastive_dynamics": 2, "value_readout": 3, "evaluation": 4}
"""For the stage of an objective: index in STAGES of the last stage that affects it."""


def with_values(stages: StageParameters, values: Mapping[str, Any]) -> StageParameters:
    """Replace some of the parameters, by full name.

    If a value chooses another alternative, such as an objective, settings that it does not have are dropped.

    Raises:
        InputError: an unknown name, or incompatible values.
    """
    changed = merged(StageParameters, stages.model_dump(mode="json"), nested(values))
    return validated(StageParameters, changed, RENAMED)


def value_of(stages: StageParameters, name: str) -> Any:
    """Return a parameter by its full name, as a plain value; None if the chosen alternative does not have it."""
    value: Any = stages.model_dump(mode="json")
    for part in name.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def check_space(tuning: TuningParameters, stages: StageParameters) -> None:
    """Check that a space can be searched.

    Raises:
        InputError: a parameter that does not exist, cannot be searched, or affects no objective; an invalid
            value; an objective that cannot compare the points; conditions in a circle.
    """
    if not tuning.space:
        raise InputError(
            "tuning.space is empty: add a parameter to search, such as contrastive_dynamics.temperature"
        )
    reach = max(LAST[OBJECTIVES[name].stage] for name in tuning.objectives)
    for name, dimension in tuning.space.items():
        _check_name(name)
        stage = name.split(".")[0]
        if STAGES.index(stage) > reach:
            raise InputError(
                f"tuning.space: {name} affects none of tuning.objectives ({', '.join(tuning.objectives)})"
            )
        for objective in tuning.objectives:
            if below(name, OBJECTIVES[objective].incomparable):
                raise InputError(
                    f"tuning.space: {objective} cannot compare trials that differ in {name}: "
                    f"{OBJECTIVES[objective].why}; use another objective"
                )
        for other in dimension.when or {}:
            _check_name(other)
        when = {
            other: _values(other, wanted, tuning.space, stages)
            for other, wanted in (dimension.when or {}).items()
        }
        for values in product(*when.values()):
            for value in dimension.examples:
                _check_value(stages, name, value, dict(zip(when, values, strict=True)))
    _ordered(tuning.space)


def _values(name: str, wanted: Any, space: Mapping[str, Dimension], stages: StageParameters) -> Sequence[Any]:
    """The values that a condition on a parameter names: one, or a list of them.

    If the parameter's own values are lists, a list without lists in it is one of them.
    """
    own = [value_of(stages, name), *(space[name].examples if name in space else ())]
    several = isinstance(wanted, list | tuple)
    if not any(isinstance(value, list | tuple) for value in own):
        return wanted if several else [wanted]
    alternatives = (
        wanted if several and any(isinstance(value, list | tuple) for value in wanted) else [wanted]
    )
    return [integers(value) for value in alternatives]  # one number may stand for a list of one


def _check_value(stages: StageParameters, name: str, value: Any, conditions: Mapping[str, Any]) -> None:
    try:
        with_values(stages, {**conditions, name: value})
    except InputError as error:
        when = " and ".join(f"{other} is {wanted!r}" for other, wanted in conditions.items())
        place = f"{name} cannot be {value!r}{' when ' if when else ''}{when}"
        raise InputError(f"tuning.space: {place}: {error}") from None


def _check_name(name: str) -> None:
    if name in RENAMED:
        raise InputError(f"tuning.space: '{name}' is now '{RENAMED[name]}'")
    *parents, last = name.split(".")
    known = fields_at(StageParameters, parents)
    if last not in known:
        # If the parents do not exist, suggest the stages.
        names = [".".join([*parents, field]) for field in known] or list(STAGES)
        raise InputError(f"tuning.space: {unknown_name('parameter', name, names)}")
    if (
        name.split(".")[0] not in STAGES
        or below(name, PROBLEM)
        or operational_at(StageParameters, name.split("."))
        or fields_at(StageParameters, name.split("."))
    ):
        raise InputError(f"tuning.space: {name} cannot be searched")


def _ordered(space: Mapping[str, Dimension]) -> list[str]:
    """Names in an order in which every parameter follows those that its conditions name."""
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
    """Optuna's distribution. Choices that are not plain values are encoded as JSON."""
    if isinstance(dimension, Categorical):
        return CategoricalDistribution([_encoded(choice) for choice in dimension.choices])
    if isinstance(dimension, Int):
        return IntDistribution(dimension.low, dimension.high, log=dimension.log, step=dimension.step or 1)
    return FloatDistribution(dimension.low, dimension.high, log=dimension.log, step=dimension.step)


def suggest(trial: Trial, space: Mapping[str, Dimension], stages: StageParameters) -> dict[str, Any]:
    """Sample a point of the space: values, by full name, of the parameters whose conditions are met."""
    point: dict[str, Any] = {}
    for name in _ordered(space):
        dimension = space[name]
        if not _met(dimension, point, space, stages):
            continue
        d = distribution(dimension)
        if isinstance(d, CategoricalDistribution):
            point[name] = decoded(dimension, trial.suggest_categorical(name, d.choices))
        elif isinstance(d, IntDistribution):
            point[name] = trial.suggest_int(name, d.low, d.high, log=d.log, step=d.step)
        else:
            assert isinstance(d, FloatDistribution)
            point[name] = trial.suggest_float(name, d.low, d.high, log=d.log, step=d.step)
    return point


def decoded(dimension: Dimension, value: Any) -> Any:
    """Return a parameter's value from the value that Optuna stores."""
    if not isinstance(dimension, Categorical):
        return value
    return next(choice for choice in dimension.choices if _encoded(choice) == value)


def encoded_defaults(space: Mapping[str, Dimension], stages: StageParameters) -> dict[str, Any] | None:
    """Return the unchanged parameters as a point in Optuna's encoding; None if the space excludes them."""
    point: dict[str, Any] = {}
    encoded: dict[str, Any] = {}
    for name in _ordered(space):
        dimension = space[name]
        if not _met(dimension, point, space, stages):
            continue
        point[name] = value_of(stages, name)
        encoded[name] = _encoded(point[name])
        if not _inside(dimension, point[name]):
            return None
    return encoded


def _met(
    dimension: Dimension, point: Mapping[str, Any], space: Mapping[str, Dimension], stages: StageParameters
) -> bool:
    """Whether the conditions are met. A condition on a searched parameter without a value is not met."""
    for other, wanted in (dimension.when or {}).items():
        if other in space and other not in point:
            return False
        value = point[other] if other in point else value_of(stages, other)
        if value not in _values(other, wanted, space, stages):
            return False
    return True


def _inside(dimension: Dimension, value: Any) -> bool:
    if isinstance(dimension, Categorical):
        return _encoded(value) in [_encoded(choice) for choice in dimension.choices]
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    if not dimension.low <= value <= dimension.high:
        return False
    if isinstance(dimension, Int):  # the parameter may be a fraction, which Optuna would leave out
        return (value - dimension.low) % (dimension.step or 1) == 0
    steps = (value - dimension.low) / (dimension.step or 1.0)
    return dimension.step is None or abs(steps - round(steps)) < 1e-9


def _encoded(choice: Any) -> Any:
    return choice if choice is None or isinstance(choice, bool | int | float | str) else json.dumps(choice)
