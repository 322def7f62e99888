"""What a suite runs: cells, and the parameters and order of their runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cvl_pipeline.parameters import StageParameters
from cvl_pipeline.schema import flattened
from cvl_pipeline.suites.parameters import LOGGED, OWN, VARIANT, Suite

VIDEOS = "evaluation.videos"
"""Parameter of the videos, which decides no result."""


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
        """Parameters that win over those that the plan makes, except the place of the data."""
        given = {**self.suite.overrides, **self.given}
        return {name: value for name, value in given.items() if name.partition(".")[0] != "data"}

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
            if name == OWN:
                continue
            method, _, variant = name.partition(VARIANT)
            entry: dict[str, Any] = {"method": self.suite.own_methods.get(method, method)}
            if method != OWN:  # a variant of CVL's extraction, from the critic at hand
                entry["training.steps"] = sum(self.steps.values())
            if variant:
                entry |= flattened(self.suite.variants[method][variant])
            chosen |= {f"baselines.{name}.{field}": value for field, value in entry.items()}
        return chosen

    def parameters(self, cell: Cell, methods: Sequence[str]) -> dict[str, Any]:
        """All parameters of a run, by their full names, except where its data is."""
        return self.settings(cell) | self.baselines(methods) | self.videos(cell) | self.overrides

    def data_root(self, cell: Cell) -> str:
        """Folder or URL of a cell's data."""
        return f"{self.root}/{cell.name}"

    def place(self, cell: Cell) -> dict[str, Any]:
        """Parameters that say where a cell's data is."""
        own = {name: value for name, value in self.given.items() if name.partition(".")[0] == "data"}
        return own | {"data.root": self.data_root(cell)}

    def command(self, cell: Cell, methods: Sequence[str]) -> list[str]:
        """The command of a run, ``kedro`` and its arguments."""
        processes = {"data_ingestion.workers": self.threads, "evaluation.workers": self.threads}
        parameters = self.settings(cell) | self.baselines(methods) | self.place(cell) | processes
        parameters |= self.videos(cell) | self.overrides
        return [
            "kedro", "run", "--only-missing-outputs",
            *(["--env", self.suite.env] if self.suite.env else []),
            *(["--runner", "SequentialRunner"] if self.threads == 1 else []),
            "--params", ",".join(f"{name}={_text(value)}" for name, value in parameters.items()),
        ]  # fmt: skip


def _text(value: Any) -> str:
    """Write a value for ``--params``."""
    if value is None:
        return "null"
    if isinstance(value, list | tuple):
        return " ".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


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
