"""The file of a suite: what is compared with what."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from cvl_pipeline.environments.parameters import VideoParameters
from cvl_pipeline.errors import InputError, unknown_name
from cvl_pipeline.io.storage import shown
from cvl_pipeline.methods.base import METHODS
from cvl_pipeline.paths import UserPath
from cvl_pipeline.schema import LARGEST_SEED, Integers, Strict, Words, flattened, nested, validated
from cvl_pipeline.sources.simulated import PRESETS

FOLDER = "suites"
"""Folder of conf/ that holds the files."""
OWN = "cvl"
"""The method that every run trains."""
VARIANT = "__"
"""Stands between the names of a method and of a variant of its settings."""
LOGGED = "logged"
"""Stands for the preset where the episodes were not collected by the pipeline."""


def _unique(values: tuple[Any, ...]) -> tuple[Any, ...]:
    twice = sorted({str(value) for value in values if values.count(value) > 1})
    if twice:
        raise ValueError(f"{', '.join(twice)} is listed twice; remove one")
    return values


def _presets(values: tuple[str, ...]) -> tuple[str, ...]:
    for value in values:
        if value not in PRESETS:
            raise unknown_name("preset", value, list(PRESETS))
    return values


def _tasks(values: tuple[str, ...]) -> tuple[str, ...]:
    for value in values:
        _check_label(value)
    return values


def _check_label(value: str) -> None:
    if not re.fullmatch(r"[A-Za-z0-9][\w.\-]*", value):
        raise ValueError(f"'{value}' must consist of letters, digits, '-', '_' and '.'; it names a folder")


def _groups(value: Any) -> Any:
    """Make a list of lists of a plain list: all methods of a group are one run."""
    if isinstance(value, str):
        value = value.split()
    if (
        isinstance(value, list | tuple)
        and value
        and not any(isinstance(part, list | tuple) for part in value)
    ):
        return [value]
    return value


Tasks = Annotated[Words, AfterValidator(_tasks), AfterValidator(_unique)]
Presets = Annotated[Words, AfterValidator(_presets), AfterValidator(_unique)]
Seeds = Annotated[Integers, AfterValidator(_unique)]
Groups = Annotated[tuple[Words, ...], BeforeValidator(_groups)]


class Axes(Strict):
    """The axes of a suite: its cells are all their combinations."""

    tasks: Tasks = Field((), description="Tasks of the simulator, such as `reach-v3`.")
    presets: Presets = Field((), description="Presets of the collection, see docs/data.md. Empty: `mixed`.")
    seeds: Seeds = Field((), description="Seeds. Empty: 0.")
    datasets: dict[str, dict[str, Any]] = Field(
        {}, description="Instead of tasks: by a label, the parameters of a dataset, such as `dataset.source`."
    )

    @model_validator(mode="after")
    def _axes_fit(self) -> Axes:
        for label in self.datasets:
            _check_label(label)
        if self.tasks and self.datasets:
            raise ValueError("give tasks or datasets, not both")
        if self.datasets and self.presets:
            raise ValueError("presets are for tasks; write dataset.preset into the entry of a dataset")
        for seed in self.seeds:
            if not 0 <= seed <= LARGEST_SEED:
                raise ValueError(f"seeds: {seed} must be from 0 to {LARGEST_SEED}")
        return self


class Suite(Axes):
    """A suite: combinations of tasks, presets and seeds, and the methods that are compared on each.

    Lists are orders: all tasks, then the next group of methods, then the next preset, then the next seed.
    """

    description: str = Field("", description="One line on the purpose.")
    methods: Groups = Field(
        (("cvl", "bc"),),
        description="Methods, or groups of methods. The methods of a group are one run; the next group begins when all "
        "tasks have the first one. `<method>__<variant>` is a variant. CVL is always among them.",
    )
    own_methods: dict[str, str] = Field(
        {}, description="Methods of your own: `module:Class` by the name that the lists of methods have."
    )
    variants: dict[str, dict[str, dict[str, Any]]] = Field(
        {}, description="Other settings of methods, by method and name of the variant."
    )
    evaluation_episodes: int = Field(50, ge=1, description="Evaluation episodes of each policy.")
    budget: float = Field(1, gt=0, le=1000, description="Factor of all gradient steps, such as 0.1 or 10.")
    videos: VideoParameters | None = Field(
        None,
        description="Videos of the runs of the first seed, such as {size: 128}; the page shows each method's median "
        "episode. null: none.",
    )
    tuning_tasks: Tasks = Field(
        (),
        description="Tasks on which settings were chosen. The report also compares the methods without them.",
    )
    overrides: dict[str, Any] = Field({}, description="More parameters, by their full names. They win.")
    env: str | None = Field(None, description="Folder of conf/ with other settings, such as `smoke`.")
    threads: int | None = Field(
        None,
        ge=1,
        le=1024,
        description="Cores of a run. null: the cores, divided among the runs at once; one for each run without a GPU.",
    )
    data_root: UserPath | None = Field(
        None, description="Folder or URL of the data of all runs. null: `<data.root>/suites/<name>`."
    )
    records: UserPath | None = Field(
        None, description="Folder or URL of the records and the report. null: `<data_root>/records`."
    )
    sets: dict[str, Axes] = Field(
        {}, description="Named axes, one of which `--set` chooses; the first by default."
    )

    @model_validator(mode="after")
    def _names_exist(self) -> Suite:
        for name in self.names:
            self._check_method(name)
        for method, variants in self.variants.items():
            self._check_method(method)
            for variant in variants:
                if not re.fullmatch(r"[a-z0-9]+(_[a-z0-9]+)*", variant):
                    raise ValueError(
                        f"variants.{method}: '{variant}' must be lower-case letters, digits and '_'"
                    )
        _unique(self.names)
        if not all(self.methods) or not self.methods:
            raise ValueError("methods: there is an empty list; name at least one method, such as bc")
        return self

    def _check_method(self, name: str) -> None:
        method, _, variant = name.partition(VARIANT)
        if method not in METHODS.names and method not in self.own_methods:
            raise unknown_name("method", method, [*METHODS.names, *self.own_methods])
        known = self.variants.get(method, {})
        if variant and variant not in known:
            raise ValueError(
                f"methods: '{method}' has no variant '{variant}'; there are: {', '.join(known) or 'none'}"
            )

    @property
    def names(self) -> tuple[str, ...]:
        """All methods, in their order."""
        return tuple(name for group in self.methods for name in group)

    def chosen(self, axes: str | None, datasets: str | None = None, **changes: Any) -> Suite:
        """Return the suite with one of its sets, and with other axes or options.

        Args:
            axes: name of the set; None: the first, if there are any.
            datasets: labels of some of the suite's datasets, with spaces between; None: all.
            changes: fields; those that are None change nothing.

        Raises:
            InputError: there is no such set or dataset, a value is faulty, or no task is left.
        """
        for field, value in {"set": axes, "datasets": datasets, **changes}.items():
            # Such as a variable of a shell that is not set.
            if isinstance(value, str | Sequence) and not value:
                raise InputError(f"--{field.replace('_', '-')}: no value; give one, or leave the option out")
        if axes is not None and axes not in self.sets:
            raise InputError(f"--set: {unknown_name('set', axes, list(self.sets) or ['none'])}")
        name = axes or next(iter(self.sets), None)
        values = self.model_dump(exclude={"sets"})
        if name is not None:
            values |= {field: value for field, value in self.sets[name].model_dump().items() if value}
        values |= {field: value for field, value in changes.items() if value is not None}
        if datasets is not None:
            values["datasets"] = _some(values["datasets"], datasets.split())
        if not values["datasets"]:
            values["presets"] = values["presets"] or ("mixed",)
        values["seeds"] = values["seeds"] or (0,)
        suite = _validated(values, "options")
        if not suite.tasks and not suite.datasets:
            raise InputError("the suite has no tasks: give 'tasks' or 'datasets' a value, such as [reach-v3]")
        return suite


def _some(datasets: Mapping[str, Any], labels: Sequence[str]) -> dict[str, Any]:
    """Return the datasets with these labels, in the order of the labels.

    Raises:
        InputError: there is no such dataset, a label is given twice, or none is given.
    """
    if not datasets:
        raise InputError("--datasets: the suite has none; choose among its tasks with --tasks")
    if not labels:
        raise InputError(f"--datasets: name at least one: {', '.join(datasets)}")
    for label in labels:
        if label not in datasets:
            raise InputError(f"--datasets: {unknown_name('dataset', label, list(datasets))}")
    try:
        return {label: datasets[label] for label in _unique(tuple(labels))}
    except ValueError as error:
        raise InputError(f"--datasets: {error}") from None


def _validated(values: Mapping[str, Any], place: str) -> Suite:
    try:
        return validated(Suite, values)
    except InputError as error:
        raise InputError(f"{place}: {str(error).removeprefix('parameters: ')}") from None


class _Loader(yaml.SafeLoader):
    """Refuses a key that is written twice, where YAML takes the last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = [key.value for key, _ in node.value]
        for key, _ in node.value:
            if names.count(key.value) > 1:
                raise yaml.constructor.ConstructorError(
                    None, None, f"'{key.value}' is written twice; remove one", key.start_mark
                )
        return super().construct_mapping(node, deep)


def suite_names(conf: Path) -> list[str]:
    """Names of the suites in a folder of configuration."""
    return sorted(path.stem for path in (conf / FOLDER).glob("*.yml"))


def read_suite(conf: Path, name: str) -> Suite:
    """Read the file of a suite.

    Args:
        conf: folder of the configuration.
        name: of the suite.

    Raises:
        InputError: there is no such suite, or its file is faulty.
    """
    path = conf / FOLDER / f"{name}.yml"
    if name not in suite_names(conf):
        known = unknown_name("suite", name, suite_names(conf) or ["none"])
        raise InputError(f"{known}; a suite is a file {shown(conf / FOLDER)}/<name>.yml (docs/suites.md)")
    try:
        values = _Loader(path.read_text(encoding="utf-8")).get_single_data()
    except (yaml.YAMLError, ValueError) as error:  # ValueError: other bytes than UTF-8's, the 13th month
        raise InputError(f"{shown(path)} is not YAML in UTF-8: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise InputError(f"{shown(path)} must be a mapping, such as 'tasks: [reach-v3]'")
    for field in ("tasks", "presets", "seeds", "methods", "datasets"):
        if field in values and values[field] in (None, "", [], {}):
            raise InputError(
                f"{shown(path)}: '{field}' is {values[field]!r}: name at least one, or leave it out"
            )
    overrides = values.get("overrides")
    if isinstance(overrides, dict):
        try:
            values = {**values, "overrides": flattened(overrides)}
            nested(values["overrides"])
        except InputError as error:
            raise InputError(f"{shown(path)}: overrides: {str(error).removeprefix('parameters: ')}") from None
    suite = _validated(values, shown(path))
    if not suite.tasks and not suite.datasets and not any(s.tasks or s.datasets for s in suite.sets.values()):
        raise InputError(
            f"{shown(path)}: 'tasks' is missing: name at least one task, or a dataset in 'datasets'"
        )
    return suite
