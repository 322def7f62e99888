"""What a suite runs: cells, and the parameters and order of their runs."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from cvl_pipeline.errors import InputError
from cvl_pipeline.parameters import StageParameters
from cvl_pipeline.schema import flattened
from cvl_pipeline.suites.parameters import FOLDER, LOGGED, OWN, VARIANT, Suite

VIDEOS = "evaluation.videos"
"""Parameter of the videos, which decides no result."""
AXES = {"seed": "seeds", "dataset.task": "tasks", "dataset.preset": "presets"}
"""Parameters that say which cell a run is, and the option of each."""


@dataclass(frozen=True, order=True)
class Cell:
    """One entry of the table: all methods are trained and evaluated on the same data."""

    seed: int
    preset: str
    task: str
    budget: float = 1

    @property
    def name(self) -> str:
        """Name of its record, and of its folder of data."""
        return f"{self.task}_{self.preset}_seed{self.seed}_x{self.budget:g}"


@dataclass(frozen=True)
class Unit:
    """A run of the pipeline: a group of methods in a cell.

    Attributes:
        cell: the cell.
        group: number of the group.
        methods: of the group.
        after: name of the unit that makes what this one shares: the dataset, the critic. None for the first group.
    """

    cell: Cell
    group: int
    methods: tuple[str, ...]
    after: str | None

    @property
    def name(self) -> str:
        """A name that no other unit of the suite has."""
        return f"{self.cell.name}.{self.group}" if self.group else self.cell.name


@dataclass(frozen=True)
class Plan:
    """What all units have in common. Workers on other machines get it.

    Attributes:
        name: of the suite.
        suite: with the axes that were chosen.
        steps: gradient steps of CVL's critic, regression and policy, by parameter.
        given: parameters of ``--params``, by their full names. They win over the suite's.
        root: folder or URL of the data of all cells.
        records: folder or URL of the records.
        project: the project's folder.
        threads: cores of a run.
        keep: whether the data of a finished cell is kept.
    """

    name: str
    suite: Suite
    steps: Mapping[str, int]
    given: Mapping[str, Any]
    root: str
    records: str
    project: Path
    threads: int = 1
    keep: bool = True

    @property
    def methods(self) -> tuple[str, ...]:
        """All methods, CVL first."""
        return tuple(dict.fromkeys([OWN, *self.suite.names]))

    @property
    def overrides(self) -> dict[str, Any]:
        """Parameters that win over those that the plan makes, except the place of the data.

        Those of ``steps`` are in the plan's own already, with the budget.
        """
        given = {**self.suite.overrides, **self.given}
        return {
            name: value for name, value in given.items() if not _is_place(name) and name not in self.steps
        }

    @property
    def data(self) -> dict[str, Any]:
        """Parameters of the place of the data, those of a group ``data``."""
        given = {**self.suite.overrides, **self.given}
        return {name: value for name, value in given.items() if _is_place(name)}

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks, or the names of the datasets."""
        return self.suite.tasks or tuple(self.suite.datasets)

    @property
    def presets(self) -> tuple[str, ...]:
        """The presets; LOGGED alone for datasets."""
        return self.suite.presets or (LOGGED,)

    def cells(self) -> list[Cell]:
        """List the cells: all presets and tasks of a seed before the next seed."""
        suite = self.suite
        return [
            Cell(seed, preset, task, suite.budget)
            for seed in suite.seeds for preset in self.presets for task in self.tasks
        ]  # fmt: skip

    def units(self) -> list[Unit]:
        """List the units in their order: all tasks of a preset before the next group of methods."""
        suite, units = self.suite, []
        for seed in suite.seeds:
            for preset in self.presets:
                for group, methods in enumerate(suite.methods):
                    for task in self.tasks:
                        cell = Cell(seed, preset, task, suite.budget)
                        before = Unit(cell, group - 1, (), None).name if group else None
                        units.append(Unit(cell, group, tuple(dict.fromkeys((OWN, *methods))), before))
        return units

    def settings(self, cell: Cell) -> dict[str, Any]:
        """Parameters of a cell that decide the results of all methods."""
        if cell.preset == LOGGED:
            settings = {**flattened(self.suite.datasets[cell.task]), "seed": cell.seed}
        else:
            settings = {"dataset.task": cell.task, "seed": cell.seed}
            if cell.preset != "mixed":  # the default of every source
                settings["dataset.preset"] = cell.preset
        settings["evaluation.episodes"] = self.suite.evaluation_episodes
        settings |= dict(self.steps) | self.overrides
        return {name: value for name, value in settings.items() if not name.startswith(VIDEOS)}

    def videos(self, cell: Cell) -> dict[str, Any]:
        """Parameters of a cell's videos; only runs of the first seed have any."""
        settings = self.suite.videos
        if settings is None or cell.seed != self.suite.seeds[0] or VIDEOS in self.overrides:
            return {}
        return {f"{VIDEOS}.{name}": value for name, value in settings.model_dump().items()}

    def baselines(self, methods: Sequence[str]) -> dict[str, Any]:
        """Parameters that choose methods beside CVL, each with the steps of all of CVL's networks."""
        chosen: dict[str, Any] = {} if "bc" in methods else {"baselines.bc": None}  # conf/base has it
        for name in methods:
            chosen |= {
                f"baselines.{name}.{field}": value for field, value in self.method_settings(name).items()
            }
        return chosen

    def method_settings(self, name: str) -> dict[str, Any]:
        """Parameters of a method beside CVL, by the names that they have in its entry; CVL itself has none."""
        if name == OWN:
            return {}
        method, _, variant = name.partition(VARIANT)
        entry: dict[str, Any] = {"method": self.suite.own_methods.get(method, method)}
        if method != OWN:  # a variant of CVL's extraction, from the critic at hand
            entry["training.steps"] = sum(self.steps.values())
        return entry | flattened(self.suite.variants[method][variant] if variant else {})

    def parameters(self, cell: Cell, methods: Sequence[str]) -> dict[str, Any]:
        """All parameters of a run, by their full names, except where its data is."""
        return self.settings(cell) | self.baselines(methods) | self.videos(cell) | self.overrides

    def data_root(self, cell: Cell) -> str:
        """Folder or URL of a cell's data."""
        return f"{self.root}/{cell.name}"

    def place(self, cell: Cell) -> dict[str, Any]:
        """Parameters that say where a cell's data is."""
        return self.data | {"data.root": self.data_root(cell)}

    def command(self, cell: Cell, methods: Sequence[str]) -> list[str]:
        """The command of a run, ``kedro`` and its arguments."""
        processes = {"data_ingestion.workers": self.threads, "evaluation.workers": self.threads}
        parameters = self.settings(cell) | self.baselines(methods) | self.place(cell) | processes
        parameters |= self.videos(cell) | self.overrides
        return [
            "kedro", "run", "--only-missing-outputs",
            *(["--env", self.suite.env] if self.suite.env else []),
            *(["--runner", "SequentialRunner"] if self.threads == 1 else []),
            "--params", params_option(parameters),
        ]  # fmt: skip


def _is_place(name: str) -> bool:
    return name.partition(".")[0] == "data"


def check_names(plan: Plan) -> None:
    """Refuse parameters that the plan sets for each cell.

    Raises:
        InputError: one is given for all cells, or for a dataset.
    """
    suite, file = plan.suite, f"conf/{FOLDER}/{plan.name}.yml"
    for place, given in ((f"{file}: overrides", suite.overrides), ("--params", plan.given)):
        for name in (name for name in AXES if name in given):
            fix = f"use --{AXES[name]}"
            if suite.datasets and name != "seed":
                fix = "write it into the entries of 'datasets'"
            raise InputError(f"{place}: '{name}' is {given[name]!r}: each cell has its own; {fix}")
    fixes = {"seed": "'seeds'", "evaluation.episodes": "'evaluation_episodes'"}
    fixes |= dict.fromkeys(plan.steps, "'budget' or 'overrides'")
    for label, entry in suite.datasets.items():
        for name, value in flattened(entry).items():
            if fix := "'data_root' or 'overrides'" if _is_place(name) else fixes.get(name, ""):
                raise InputError(
                    f"{file}: datasets.{label}: '{name}' is {value!r}: it is the same for all datasets; "
                    f"use {fix}"
                )


class _Dumper(yaml.SafeDumper):
    """Writes YAML with quotes around every text but plain words, and without references."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = None if re.fullmatch(r"[A-Za-z/][\w./:@-]*", text, re.ASCII) else '"'
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style)


_Dumper.add_representer(str, _represent_text)


def params_option(values: Mapping[str, Any]) -> str:
    """Write parameters as the value of ``--params``."""
    return ",".join(f"{name}={_text(value)}" for name, value in values.items())


def _text(value: Any) -> str:
    """Write a value for ``--params``, which is split at commas before its values are read as YAML.

    A list has a line for each entry, because YAML's other form has commas. Those in texts are escaped.
    """
    text: str = yaml.dump(
        value, Dumper=_Dumper, default_flow_style=False, allow_unicode=True, width=2**31, sort_keys=False
    )
    return text.removesuffix("...\n").rstrip("\n").replace(",", r"\x2c")


def network_steps(parameters: StageParameters, budget: float) -> dict[str, int]:
    """Gradient steps of CVL's critic, regression and policy, by parameter, times a budget; one at least."""
    steps = {
        "contrastive_dynamics.training.steps": parameters.contrastive_dynamics.training.steps,
        "policy_extraction.training.steps": parameters.policy_extraction.training.steps,
    }
    regression = parameters.value_readout.regression
    if regression:
        steps["value_readout.regression.steps"] = regression.steps
        steps["value_readout.regression.value_steps"] = regression.value_steps
    return {name: max(1, round(budget * count)) for name, count in steps.items()}
