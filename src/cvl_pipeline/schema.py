"""The building blocks of parameter models: strict models, choices with settings of their own, layers.

A *choice* is a field whose value decides which other fields exist, such as ``policy_extraction.objective``. Its
alternatives are the entries of a ``Registry``: one line per alternative, a class with a model ``Parameters``. A
class of your own is chosen as ``module:Class``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from difflib import get_close_matches
from numbers import Integral
from types import NoneType, UnionType
from typing import Annotated, Any, Generic, Literal, TypeVar, Union, get_args, get_origin

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    ValidationError,
    create_model,
)
from pydantic_core import CoreSchema, ErrorDetails, PydanticCustomError, core_schema

from cvl_pipeline.errors import InputError, unknown_name
from cvl_pipeline.imports import named, user_class

# Bounds far beyond any sensible value. They refuse slips of the keyboard before anything is allocated.
MOST_STEPS = 10**9
"""Largest number of anything that is done one after the other: gradient steps, intervals, trials."""
MOST_ROWS = 10**8
"""Largest number of drawn rows, such as reference states."""
MOST_UNITS = 2**16
"""Largest size of a layer, a representation or a set of choices."""
MOST_EPISODES = 10**7
MOST_PROCESSES = 2**16
LONGEST_EPISODE = 100_000
"""Steps of an episode."""
LARGEST_SEED = 2**32 - 1
LARGEST_INDEX = 2**31 - 1
MOST_ENTRIES = 10_000
"""Entries of a list of numbers."""

Model = TypeVar("Model", bound=BaseModel)
T = TypeVar("T")


def _take_literally(schema: Any) -> None:
    """Set all numbers and flags of a core schema to strict: no number is made of ``true``, ``1.0`` or ``"1"``."""
    if isinstance(schema, dict):
        if schema.get("type") in ("int", "float", "bool"):
            schema["strict"] = True
        for name, part in schema.items():
            if name not in ("default", "metadata"):
                _take_literally(part)
    elif isinstance(schema, list):
        for part in schema:
            _take_literally(part)


class Strict(BaseModel):
    """A frozen model that refuses unknown fields and values of another type, so that a typo never passes silently.

    The value that is checked is the value that is used: no number is made of ``true``, ``1.0`` or ``"1"``.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Accept only numbers as numbers and only flags as flags, in every field."""
        schema = handler(source)
        _take_literally(schema)
        return schema


def operational(default: Any, **options: Any) -> Any:
    """Declare a field that changes no result, such as the number of processes.

    Provenance and fingerprints leave such fields out.

    Args:
        default: the field's default.
        options: of ``pydantic.Field``, such as ``ge`` and ``description``.
    """
    return Field(default, json_schema_extra={"operational": True}, **options)


def listed(value: Any) -> Any:
    """Split a string at blanks; make a list of a single number."""
    if isinstance(value, str):
        return value.split()
    return [value] if isinstance(value, int | float) else value


def integers(value: Any) -> Any:
    """Split a string of whole numbers; make a list of a single number."""
    parts = listed(value)
    whole = isinstance(value, str) and all(re.fullmatch(r"[+-]?[0-9]+", part) for part in parts)
    return [int(part) for part in parts] if whole else parts


def _floats(value: Any) -> Any:
    parts = listed(value)
    with suppress(ValueError):
        return [float(part) for part in parts] if isinstance(value, str) else parts
    return parts


# Kedro's --params cannot carry a list. There, one string holds several values with spaces between them, and a
# single number stands for itself.
Integers = Annotated[
    tuple[Annotated[int, Field(ge=-LARGEST_INDEX, le=LARGEST_INDEX)], ...],
    BeforeValidator(integers),
    Field(max_length=MOST_ENTRIES),
]
Hidden = Annotated[
    tuple[Annotated[int, Field(ge=2, le=MOST_UNITS)], ...],
    BeforeValidator(integers),
    Field(max_length=64),
]
"""Sizes of hidden layers, first to last. A LayerNorm of one number is always the same."""
Floats = Annotated[tuple[float, ...], BeforeValidator(_floats), Field(max_length=MOST_ENTRIES)]
Words = Annotated[tuple[str, ...], BeforeValidator(listed)]


def check_seed(seed: Any) -> None:
    """Raise InputError unless a value is a seed: a whole number that fits NumPy's and torch's generators."""
    if isinstance(seed, bool) or not isinstance(seed, Integral) or not 0 <= int(seed) < 2**63:
        raise InputError(f"seed is {seed!r}: give a whole number from 0 to {LARGEST_SEED}")


class Registry(Generic[T]):
    """The alternatives of a choice, by name. Nothing else in the package knows these names."""

    def __init__(
        self,
        kind: str,
        field: str,
        base: str,
        entries: Mapping[str, str | tuple[str, type[Strict]]],
        *,
        functions: str | None = None,
    ) -> None:
        """Name the alternatives; none of them is imported yet.

        Args:
            kind: the kind of thing, for messages, such as ``objective``.
            field: the field that holds the name.
            base: ``module:Class`` that every alternative extends.
            entries: ``module:Class`` of each alternative by its name; the first one is the default. With its
                ``Parameters`` if the module is slow to import, so that parameters can be checked without it.
            functions: ``module:Class`` of the alternative that stands for a function of the user's own; None:
                ``module:Class`` names a class of the user's own.
        """
        self.kind, self.field = kind, field
        self._base, self._functions = base, functions
        self._entries = {name: part if isinstance(part, str) else part[0] for name, part in entries.items()}
        self._models = {name: part[1] for name, part in entries.items() if not isinstance(part, str)}

    @property
    def names(self) -> list[str]:
        """Names of the built-in alternatives, the default first."""
        return list(self._entries)

    def __getitem__(self, name: Any) -> type[T]:
        """Return the class of that name.

        Raises:
            InputError: unknown name, or ``module:Class`` that cannot be imported or does not extend the base.
        """
        if isinstance(name, str) and name in self._entries:
            entry: type[T] = named(self._entries[name])
            return entry
        if not isinstance(name, str) or not re.fullmatch(r"[^\W\d]\w*(\.\w+)*:\w+", name):
            error = unknown_name(self.kind, str(name), self.names)
            own = "module:function" if self._functions else "module:Class"
            raise InputError(f"{error} (or {own} for one of your own)")
        if self._functions is not None:
            function_entry: type[T] = named(self._functions)
            return function_entry
        base: type[T] = named(self._base)
        chosen = user_class(self.kind, name, base)
        self._name_in_parameters(chosen, name, base)
        return chosen

    def _name_in_parameters(self, chosen: Any, name: str, base: Any) -> None:
        """Let the parameters of a user's class, which may be those of a built-in alternative, take the class's name."""
        model: Any = chosen.Parameters
        package = base.__module__.partition(".")[0]
        built_in = [part for part in chosen.__mro__ if part.__module__.partition(".")[0] == package]
        allowed = tuple(part.Parameters for part in built_in if hasattr(part, "Parameters"))
        extends = isinstance(model, type) and issubclass(model, allowed)
        if not extends:
            raise InputError(
                f"{self.kind} '{name}': its Parameters must extend {base.Parameters.__name__}, not {model!r}"
            )
        info = model.model_fields[self.field]
        if get_origin(info.annotation) is Literal:  # of the built-in alternative that it extends
            field: Any = (str, Field(name, description=info.description))
            chosen.Parameters = create_model(
                "Parameters",
                __base__=model,
                __module__=chosen.__module__,
                __doc__=model.__doc__,
                **{self.field: field},
            )
            chosen.Parameters.__qualname__ = f"{chosen.__qualname__}.Parameters"  # for pickle

    def of(self, parameters: BaseModel) -> type[T]:
        """Return the class that parameters choose."""
        return self[getattr(parameters, self.field)]

    def module_of(self, parameters: BaseModel) -> str:
        """Return the module of the class that parameters choose; a built-in one is not imported."""
        entry = self._entries.get(getattr(parameters, self.field))
        return self.of(parameters).__module__ if entry is None else entry.partition(":")[0]

    def create(self, parameters: BaseModel) -> T:
        """Return an instance of the class that parameters choose, made from them."""
        chosen: Any = self.of(parameters)
        instance: T = chosen(parameters)
        if not hasattr(instance, "parameters"):
            raise InputError(
                f"{self.kind} '{getattr(parameters, self.field)}': its __init__ must call super().__init__(parameters)"
            )
        return instance

    def parameters(self, name: Any) -> type[Strict]:
        """Return the parameter model of an alternative."""
        if isinstance(name, str) and name in self._models:
            return self._models[name]
        chosen: Any = self[name]
        model: type[Strict] = chosen.Parameters
        return model

    def name_in(self, values: Any, default: str | None = None) -> Any:
        """Return the name that plain values choose: themselves, their field, or the default."""
        if isinstance(values, str):
            return values
        given = values.get(self.field) if isinstance(values, Mapping) else None
        return given if given is not None else default or self.names[0]

    def validate(self, values: Any, default: str | None = None) -> Strict:
        """Make the chosen alternative's parameters from plain values.

        Args:
            values: a mapping with the name among its fields, a bare name, or parameters, which are returned.
            default: name of the alternative where the values name none.

        Raises:
            ValueError: unknown alternative; ``pydantic.ValidationError`` on faulty settings.
        """
        if isinstance(values, Strict):
            return values
        if not isinstance(values, Mapping | str):
            raise PydanticCustomError("dict_type", "must be a mapping, or a bare name")
        name = self.name_in(values, default)
        try:
            model = self.parameters(name)
        except InputError as error:
            raise PydanticCustomError("choice", "{error}", {"error": str(error), "name": name}) from None
        settings = {} if isinstance(values, str) else dict(values)
        return model.model_validate({**settings, self.field: name})


@dataclass(frozen=True)
class Choice:
    """Annotates a field that is one alternative of a registry, or with ``mapping`` several of them by label.

    Attributes:
        registry: of the alternatives.
        mapping: the field maps labels to alternatives; a label that names an alternative chooses it.
        labels: what a label must match.
    """

    registry: Registry[Any]
    mapping: bool = False
    labels: str = r"[a-z][a-z0-9_]*"

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Validate by the registry; an alternative serialises itself."""
        return core_schema.no_info_plain_validator_function(
            self._validate_all if self.mapping else self.registry.validate
        )

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: Any) -> dict[str, Any]:
        """Describe every built-in alternative, for editors."""
        name = {"type": "string", "description": f"one of {', '.join(self.registry.names)}, or module:Class"}
        parts: list[dict[str, Any]] = []
        for alternative in self.registry.names:
            model: Any = self.registry.parameters(alternative)
            # With a reference, and in a union, Pydantic writes an alternative once, under `$defs`, for all fields.
            reference = re.sub(r"\W", "_", f"{self.registry.kind}_{alternative}")
            known: Any = {**model.__pydantic_core_schema__, "ref": reference}
            parts.append(handler(core_schema.union_schema([known])))
        one: dict[str, Any] = {"anyOf": [*parts, name, {"type": "object"}]}
        return {"type": "object", "additionalProperties": one} if self.mapping else one

    def _validate_all(self, values: Any) -> dict[str, Strict]:
        if not isinstance(values, Mapping):
            raise PydanticCustomError("dict_type", "must be a mapping from labels to settings")
        parts: dict[str, Strict] = {}
        faults: list[Any] = []
        for label, value in values.items():
            if value is None:  # how an environment leaves out an entry of conf/base
                continue
            try:
                if not re.fullmatch(self.labels, str(label)):
                    raise PydanticCustomError("label", "must be lower-case letters, digits and '_'")
                default = self.default_for(label)
                if isinstance(value, Mapping) and value.get(self.registry.field) is None and default is None:
                    raise PydanticCustomError(
                        "label",
                        "names no {kind}: set its {field} to one of {names}, or to module:Class",
                        {
                            "kind": self.registry.kind, "field": self.registry.field,
                            "names": ", ".join(self.registry.names),
                        },
                    )  # fmt: skip
                parts[label] = self.registry.validate(value, default)
            except ValidationError as error:
                faults += [
                    {"type": _custom(fault), "loc": (label, *fault["loc"]), "input": fault["input"]}
                    for fault in error.errors()
                ]
            except PydanticCustomError as error:
                faults.append({"type": error, "loc": (label,), "input": value})
        if faults:
            raise ValidationError.from_exception_data(self.registry.kind, faults)
        return parts

    def default_for(self, label: str) -> str | None:
        """Return the alternative that a label of a mapping chooses by itself."""
        return label if self.mapping and label in self.registry.names else None


def _custom(fault: ErrorDetails) -> PydanticCustomError:
    return PydanticCustomError(fault["type"], "{message}", {**fault.get("ctx", {}), "message": fault["msg"]})


def choice_of(model: type[BaseModel] | None, field: str) -> Choice | None:
    """Return the choice that a field of a model is, if it is one."""
    info = model.model_fields.get(field) if model is not None else None
    return next((part for part in info.metadata if isinstance(part, Choice)), None) if info else None


def submodel(model: type[BaseModel] | None, field: str, values: Any = None) -> type[BaseModel] | None:
    """Return the model of a field's value, given what the values choose; None if it is no model."""
    if model is None or field not in model.model_fields:
        return None
    choice = choice_of(model, field)
    if choice is not None and not choice.mapping:
        try:
            return choice.registry.parameters(choice.registry.name_in(values))
        except InputError:
            return None
    return group_of(model, field)


def group_of(model: type[BaseModel], field: str) -> type[BaseModel] | None:
    """Return the model that a field's type is, ``Model`` or ``Model | None``; None for any other type."""
    annotation = model.model_fields[field].annotation
    if get_origin(annotation) in (Union, UnionType):
        optional = [part for part in get_args(annotation) if part is not NoneType]
        annotation = optional[0] if len(optional) == 1 else None
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None


def merged(
    model: type[BaseModel] | None, lower: Mapping[str, Any], upper: Mapping[str, Any]
) -> dict[str, Any]:
    """Merge two layers of parameters, the upper one over the lower.

    If the upper layer chooses another alternative, only settings that mean the same in both are kept from the lower
    layer: fields that both inherit, with the same default. So ``policy_extraction.objective=ddpg_bc`` need not undo
    the file's ``beta``, and ``dataset.source=pointmaze`` has its own default ``task``, not the file's.

    Args:
        model: of the parameters; None: plain values that no model describes.
        lower: plain values, such as those of ``conf/base``.
        upper: plain values, such as those of an environment or ``--params``.
    """
    result = dict(lower)
    for name, value in upper.items():
        below = result.get(name)
        choice = choice_of(model, name)
        if choice is not None and choice.mapping and isinstance(value, Mapping):
            entries = dict(below) if isinstance(below, Mapping) else {}
            for label, part in value.items():
                entries[label] = _chosen(choice.registry, entries.get(label), part, choice.default_for(label))
            result[name] = entries
        elif choice is not None and not choice.mapping:
            result[name] = _chosen(choice.registry, below, value)
        elif isinstance(value, Mapping) and isinstance(below, Mapping):
            result[name] = merged(submodel(model, name), below, value)
        else:
            result[name] = value
    return result


def _chosen(registry: Registry[Any], lower: Any, upper: Any, default: str | None = None) -> Any:
    """Merge two layers of one choice."""
    if isinstance(upper, str):
        upper = {registry.field: upper}
    if isinstance(lower, str):
        lower = {registry.field: lower}
    if not isinstance(upper, Mapping) or not isinstance(lower, Mapping):
        return upper
    before = registry.name_in(lower, default)
    after = registry.name_in(upper, before)
    try:
        alternative = registry.parameters(after)
    except InputError:  # validation reports it
        return {**lower, **upper}
    if after != before:
        lower = {name: value for name, value in lower.items() if _is_shared(registry, before, after, name)}
        lower = {**lower, registry.field: after}
    return merged(alternative, lower, upper)


def _is_shared(registry: Registry[Any], before: Any, after: Any, field: str) -> bool:
    """Return whether a setting means the same in two alternatives: both inherit it and have the same default."""
    try:
        models = [registry.parameters(name) for name in (before, after)]
    except InputError:  # nothing is known of the former one
        return field in registry.parameters(after).model_fields
    if not all(field in model.model_fields for model in models):
        return False
    ancestors = [
        {base for base in model.__mro__ if field in getattr(base, "model_fields", {})} for model in models
    ]
    defaults = [model.model_fields[field].get_default(call_default_factory=False) for model in models]
    return bool(ancestors[0] & ancestors[1]) and defaults[0] == defaults[1]


def validated(
    model: type[Model], values: Mapping[str, Any], renamed: Mapping[str, str] | None = None
) -> Model:
    """Make a model from nested plain values.

    Args:
        model: to make.
        values: of its fields.
        renamed: new spelling of every old field, by full names.

    Raises:
        InputError: one line with every fault: the field's full name, its value, and the values it accepts.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        faults = "; ".join(_describe(model, values, detail, renamed or {}) for detail in error.errors())
        raise InputError(f"parameters: {faults}") from None


def _model_at(
    model: type[BaseModel], values: Any, path: Iterable[Any]
) -> tuple[type[BaseModel] | None, tuple[Registry[Any], Any] | None]:
    """Return the model that a path of field names leads to, and the choice it is an alternative of."""
    current: type[BaseModel] | None = model
    choice: tuple[Registry[Any], Any] | None = None
    labelled: Choice | None = None
    for part in path:
        value = values.get(part) if isinstance(values, Mapping) else None
        if labelled is not None:
            name = labelled.registry.name_in(value, labelled.default_for(str(part)))
            choice = (labelled.registry, name)
            try:
                current = labelled.registry.parameters(name)
            except InputError:
                current = None
            labelled = None
        else:
            field = choice_of(current, str(part))
            labelled = field if field is not None and field.mapping else None
            choice = (field.registry, field.registry.name_in(value)) if field and not labelled else None
            current = submodel(current, str(part), value)
        values = value
    return current, choice


def fields_at(model: type[BaseModel], path: Iterable[str]) -> list[str]:
    """Return the fields that a path leads to, those of every alternative of a choice; none if to no model."""
    return list(dict.fromkeys(name for current in _models_at(model, path) for name in current.model_fields))


def _models_at(model: type[BaseModel], path: Iterable[str]) -> list[type[BaseModel]]:
    """Return the models that a path of field names may lead to, those of every alternative of a choice."""
    models: list[type[BaseModel]] = [model]
    for part in path:
        following: list[type[BaseModel]] = []
        for current in models:
            choice = choice_of(current, part)
            if choice is not None and not choice.mapping:
                following += [choice.registry.parameters(name) for name in choice.registry.names]
            elif (inner := submodel(current, part)) is not None:
                following.append(inner)
        models = following
    return models


def operational_at(model: type[BaseModel], path: Iterable[str]) -> bool:
    """Return whether a path of field names leads to a field that changes no result."""
    *parents, last = path
    models = [current for current in _models_at(model, parents) if last in current.model_fields]
    return any(is_operational(current, last) for current in models)


def _below(model: type[BaseModel] | None, field: str) -> list[str]:
    """Name of a field in one of a model's own models, such as training.steps; none if no model has it."""
    if model is None:
        return []
    return [
        f"{name}.{field}" for name in model.model_fields
        if any(field in below.model_fields for below in _models_at(model, [name]))
    ][:1]  # fmt: skip


def _describe(
    model: type[BaseModel], values: Mapping[str, Any], detail: ErrorDetails, renamed: Mapping[str, str]
) -> str:
    *parents, last = detail["loc"] or ("",)
    name = ".".join(str(part) for part in detail["loc"])
    if detail["type"] == "extra_forbidden":
        if name in renamed:
            return f"'{name}' is now '{renamed[name]}'"
        reached, choice = _model_at(model, values, parents)
        known = list(reached.model_fields) if reached else []
        close = get_close_matches(str(last), known, n=1) or _below(reached, str(last))
        hint = f"did you mean '{close[0]}'? " if close else ""
        place = f"known with {choice[0].field} {choice[1]}" if choice else "known here"
        owners = _owners(choice[0], str(last)) if choice and not close else []
        hint += f"it belongs to {choice[0].field} {' or '.join(owners)}; " if choice and owners else ""
        return f"unknown field '{name}': {hint}{place}: {', '.join(known)}"
    if detail["type"] == "missing":
        return f"field '{name}' is missing"
    message = detail["msg"].removeprefix("Value error, ")
    text = f"{message[0].lower()}{message[1:]}"
    context = detail.get("ctx") or {}
    if detail["type"] == "choice" and isinstance(detail["input"], Mapping):  # name the field that chooses
        _, choice = _model_at(model, values, detail["loc"])
        field = f"{name}.{choice[0].field}" if choice else name
        return f"'{field}' is {context['name']!r}: {text}"
    if not name:  # about several stages together; the message names them
        return text
    if isinstance(detail["input"], dict) and detail["type"] == "string_type":
        return f"'{name}' is a mapping: {text}; put quotes around a text with braces"
    if isinstance(detail["input"], dict):  # a whole stage's values would bury the message
        return f"'{name}': {text}"
    return f"'{name}' is {detail['input']!r}: {text}"


def _owners(registry: Registry[Any], field: str) -> list[str]:
    """Names of the alternatives that have a field."""
    return [name for name in registry.names if field in registry.parameters(name).model_fields]


def flattened(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested plain values by their full names, such as ``reward.source``.

    Raises:
        InputError: a full name is there twice.
    """
    flat: dict[str, Any] = {}
    for name, value in values.items():
        full = f"{prefix}{name}"
        part = flattened(value, f"{full}.") if isinstance(value, Mapping) and value else {full: value}
        for twice in flat.keys() & part.keys():
            raise InputError(f"parameters: '{twice}' is given twice; remove one")
        flat |= part
    return flat


def nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return values by full name as nested mappings.

    Raises:
        InputError: a name has a value, and is also a group of others.
    """
    result: dict[str, Any] = {}
    for name, value in values.items():
        *parents, last = name.split(".")
        place = result
        for parent in parents:
            place = place.setdefault(parent, {})
            if not isinstance(place, dict):
                raise InputError(
                    f"parameters: '{name}' is {value!r}, but '{parent}' is {place!r} and has no fields; remove one"
                )
        if last in place:
            raise InputError(
                f"parameters: '{name}' is {value!r}, but fields of it are given, too; remove one"
            )
        place[last] = value
    return result


def _walk(parameters: BaseModel, prefix: str) -> Iterator[tuple[str, BaseModel, str]]:
    """Yield the full name, the model and the field of everything below parameters, models too."""
    for field in type(parameters).model_fields:
        value = getattr(parameters, field)
        full = f"{prefix}{field}"
        yield full, parameters, field
        if isinstance(value, BaseModel):
            yield from _walk(value, f"{full}.")
        elif isinstance(value, Mapping):
            for label, part in value.items():
                if isinstance(part, BaseModel):
                    yield from _walk(part, f"{full}.{label}.")


def is_operational(model: type[BaseModel], field: str) -> bool:
    """Return whether a field is declared to change no result."""
    extra = model.model_fields[field].json_schema_extra
    return isinstance(extra, dict) and bool(extra.get("operational"))


def operational_fields(parameters: BaseModel) -> set[str]:
    """Return the full names of all fields, and groups of fields, that change no result."""
    return {full for full, model, field in _walk(parameters, "") if is_operational(type(model), field)}


def effective(parameters: BaseModel) -> dict[str, Any]:
    """Return every field that may change a result, by its full name, as plain values."""
    without = operational_fields(parameters)
    values = flattened(parameters.model_dump(mode="json"))
    return {name: value for name, value in values.items() if not below(name, without)}


def chosen_modules(parameters: BaseModel) -> dict[str, str]:
    """Return the module of the class of every choice, by the full name of the field."""
    modules: dict[str, str] = {}
    for full, model, field in _walk(parameters, ""):
        choice = choice_of(type(model), field)
        value = getattr(model, field)
        if choice is not None and choice.mapping:
            modules |= {f"{full}.{label}": choice.registry.module_of(part) for label, part in value.items()}
        elif choice is not None:
            modules[full] = choice.registry.module_of(value)
    return modules


def below(name: str, groups: Iterable[str]) -> bool:
    """Return whether a parameter is one of the groups or in one of them."""
    return any(name == group or name.startswith(f"{group}.") for group in groups)
