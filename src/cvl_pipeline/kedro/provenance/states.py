"""The state of every artifact: whether the current parameters, code and inputs would make the same."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from kedro.io import DataCatalog
from kedro.io.core import is_parameter
from kedro.pipeline import Pipeline
from kedro.pipeline.node import Node

from cvl_pipeline.io.location import Location, is_unique
from cvl_pipeline.io.storage import CHECKED_ONCE, VERSION, shown
from cvl_pipeline.kedro.parameters import RunParameters, check_parameters, counted_parameters, is_given
from cvl_pipeline.kedro.provenance.code import (
    Code,
    code_of,
    code_of_module,
    edited,
    import_own,
    source_of,
    unsure,
)
from cvl_pipeline.kedro.provenance.records import (
    EDITED,
    Checksums,
    Recipe,
    Record,
    changes,
    read_record,
    record_path,
    write_record,
)
from cvl_pipeline.kedro.workspace import beside
from cvl_pipeline.schema import chosen_modules, flattened
from cvl_pipeline.sources.base import SOURCES

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class State:
    """State of an artifact.

    Attributes:
        name: fresh, stale (made from other parameters, code or inputs), missing, or damaged (its content differs
            from the record).
        reasons: reasons why it is stale or damaged, the nearest cause first.
    """

    name: Literal["fresh", "stale", "missing", "damaged"]
    reasons: tuple[str, ...] = ()

    @property
    def fresh(self) -> bool:
        """Whether the artifact is up to date."""
        return self.name == "fresh"

    @property
    def why(self) -> str:
        """The reasons in a few words."""
        if not self.reasons:
            return ""
        first = self.reasons[0].partition(": ")[0]
        return first if len(self.reasons) == 1 else f"{first} and {len(self.reasons) - 1} more"


FRESH = State("fresh")
MISSING = "missing"
"""Replaces the checksum of a missing file."""


@dataclass(frozen=True)
class Making:
    """The recipe of a node's outputs, and the checksums of its inputs, taken before it runs.

    Attributes:
        recipe: of the outputs.
        contents: checksums of the inputs.
        modules: the node's code that must not be edited until it is done.
    """

    recipe: Recipe
    contents: dict[str, str]
    modules: frozenset[str] = frozenset()


class Provenance:
    """Compares the recipes of the stored artifacts of a pipeline with those of a run now."""

    def __init__(self, pipeline: Pipeline, catalog: DataCatalog) -> None:
        """Take parameters and files from the catalog.

        Raises:
            InputError: invalid parameters.
        """
        self._pipeline, self._catalog = pipeline, catalog
        self._checksums = Checksums()
        self._in_memory: dict[str, str] = {}
        self._fetched: set[str] = set()
        self._elsewhere: dict[Path, str] = {}
        # Read the code now, before any node runs: the imported code runs, not later edits of the files.
        self._code = {node.name: self._code_of(node) for node in pipeline.nodes}
        self._settled: frozenset[str] = frozenset()

    def _code_of(self, node: Node) -> Code:
        """Return the code of a node's function and of the classes and modules that its parameters name."""
        own = code_of(node.func)
        for name, module in chosen_modules(self._parameters).items():
            if is_given(name, node.inputs):
                own |= code_of_module(module)
        for module in named_modules(counted_parameters(node.inputs, self._parameters)):
            own |= code_of_module(module)
            source_of(module)  # keeps it for this process
        return own

    @cached_property
    def _parameters(self) -> RunParameters:
        return check_parameters(self._catalog.load("parameters"))

    def path(self, name: str) -> Path | None:
        """Return the file of an artifact; None for parameters, and for artifacts in memory."""
        if is_parameter(name) or name not in self._catalog:
            return None
        path = vars(self._catalog.get(name)).get("_filepath")
        if path is not None and name not in self._fetched:
            self._fetch(name)
        return None if path is None else Path(path)

    def place(self, name: str) -> str:
        """Return the path or URL of an artifact for messages; raise ValueError if it has no file."""
        path = self.path(name)
        if path is None:
            raise ValueError(f"{name} has no file")
        return str(self._location(name) or shown(path))

    def _location(self, name: str) -> Location | None:
        """Return the location of an artifact; None if it is not at a URL."""
        location: Location | None = getattr(self._catalog.get(name), "location", None)
        return location if location is not None and location.is_remote else None

    def _fetch(self, name: str) -> None:
        """Update the local copies of an artifact and its record; do not download large, known artifacts."""
        self._fetched.add(name)
        location = self._location(name)
        if location is None:
            return
        location.sibling(record_path(location.path).name).fetch()
        self._read(location.path)
        at_url = _at_url(location)
        content = None if at_url is None else self._checksums.known(at_url)
        if content is None:
            location.fetch()
        else:
            self._elsewhere[location.path] = content

    def _publish(self, name: str, record: Record) -> None:
        """Write the record of an artifact beside it; for large remote files, with their identity."""
        path, location = self.path(name), self._location(name)
        assert path is not None
        if location is not None and path.stat().st_size >= CHECKED_ONCE and (at_url := _at_url(location)):
            record = replace(record, seen=[*record.seen, [*at_url, record.outputs[name]]])
        write_record(path, record)
        if location is not None:
            location.sibling(record_path(path).name).publish()

    def settle(self) -> None:
        """Note which modules this process has imported as they were read: later edits do not matter to it."""
        modules = frozenset().union(*(code.modules for code in self._code.values()))
        self._settled |= modules - unsure(modules)

    def making(self, node: Node) -> Making:
        """Return the recipe that the node would run now, with the inputs on disk."""
        paths = self._input_paths(node)
        inputs = {name: self._fingerprint(path) for name, path in paths.items()}
        inputs |= {name: self._in_memory[name] for name in node.inputs if name in self._in_memory}
        modules = self._code[node.name].modules
        if "training" in node.tags and not beside.get():  # it may take days, in which people edit their code
            import_own(modules)
        self.settle()
        # Other processes import the code when they start, this one as soon as it needs it.
        unsafe = modules if beside.get() or self._starts_processes(node) else modules - self._settled
        recipe = _with_edits(self._recipe(node, inputs), edited(unsafe))
        contents = {name: self._content(path) for name, path in paths.items()}
        return Making(recipe, contents, unsafe)

    def _starts_processes(self, node: Node) -> bool:
        """Whether processes beside this one may run the node's code: they collect, evaluate, train or search."""
        if "training" not in node.tags:
            return "dataset" in {name.removeprefix("params:").partition(".")[0] for name in node.inputs}
        training = [
            value
            for name, value in flattened(self._parameters.model_dump()).items()
            if is_given(name, node.inputs) and name.endswith(("training.devices", "training.nodes"))
        ]
        return "parameters" in node.inputs or any(value > 1 for value in training)

    def record(self, node: Node, making: Making) -> None:
        """Write the record beside each output of the node, after all outputs are saved."""
        recipe = making.recipe
        sources = dict(self._sources(recipe.parameters))
        if MISSING in recipe.sources.values():  # the node has downloaded the file
            recipe = replace(recipe, sources=sources)
        elif recipe.sources.get("dataset.path") != sources.get("dataset.path"):
            recipe = _with_edits(recipe, ["dataset.path"])
        recipe = _with_edits(recipe, edited(making.modules))
        if marked := [name for name, value in (recipe.sources | recipe.code).items() if EDITED in value]:
            logger.warning(
                "%s counts as stale, because these were edited while it was made: %s",
                ", ".join(node.outputs), ", ".join(marked),
            )  # fmt: skip
        paths = {name: path for name in node.outputs if (path := self.path(name)) is not None}
        self._in_memory |= dict.fromkeys(set(node.outputs) - set(paths), recipe.fingerprint)
        for path in paths.values():
            self._elsewhere.pop(path, None)  # the checksum of the old file
        outputs = {name: self._content(path) for name, path in paths.items()}
        for name, path in paths.items():
            seen = self._checksums.seen([path, *self._source_files(recipe.parameters)])
            self._publish(name, Record(recipe, making.contents, outputs, seen))

    def states(self) -> dict[str, State]:
        """Return the states of all outputs of the pipeline, in the order of the run.

        Inputs of the pipeline are not checked.
        """
        states: dict[str, State] = {}
        expected: dict[str, str] = {}
        for node in self._pipeline.nodes:
            stored = {name: path for name, path in self._input_paths(node).items() if name not in expected}
            inputs = {name: self._fingerprint(path) for name, path in stored.items()}
            inputs |= {name: expected[name] for name in node.inputs if name in expected}
            recipe = self._recipe(node, inputs)
            expected |= dict.fromkeys(node.outputs, recipe.fingerprint)
            own = {name: self._state(name, node, recipe, states) for name in node.outputs}
            faults = [
                f"{name}, made by the same node, is {state.name}"
                for name, state in own.items()
                if not state.fresh
            ]
            for name, state in own.items():
                states[name] = State("stale", tuple(faults)) if state.fresh and faults else state
        return states

    def _state(self, name: str, node: Node, recipe: Recipe, states: Mapping[str, State]) -> State:
        path = self.path(name)
        upstream = [
            f"input {other} is {states[other].name}"
            for other in node.inputs
            if other in states and not states[other].fresh
        ]
        if path is None:  # in memory: recreated if a node needs it
            return State("stale", tuple(upstream)) if upstream else FRESH
        if self._content(path) == MISSING:
            return State("missing")
        record = self._read(path)
        if record is None:
            return State("stale", ("it has no record",))
        if name not in record.outputs:  # an older version's, whose dataset had another name
            return State("stale", ("its record names no such dataset",))
        if record.outputs[name] != self._content(path):
            return State("damaged", ("its content differs from the record",))
        if fault := getattr(self._catalog.get(name), "fault", lambda: None)():
            return State("damaged", (fault,))
        reasons = changes(record.recipe, recipe)
        # Compare the bytes: an input that was recreated with the same content counts as unchanged.
        reasons += upstream + [
            f"input {other} has changed"
            for other in recipe.inputs
            if states.get(other, FRESH).fresh and not self._is_input(other, record, recipe)
        ]
        gone = sorted(record.recipe.inputs.keys() - recipe.inputs.keys())
        reasons += [f"input {other} is no longer one" for other in gone]
        reasons += [
            f"{other}, made by the same node, has changed"
            for other in node.outputs
            if (sibling := self.path(other)) is not None
            and self._content(sibling) != MISSING
            and record.outputs.get(other) != self._content(sibling)
        ]
        return State("stale", tuple(reasons)) if reasons else FRESH

    def _is_input(self, name: str, record: Record, recipe: Recipe) -> bool:
        """Whether an input is unchanged since the record was written."""
        path = self.path(name)
        if path is None:  # in memory: compare its recipe
            return record.recipe.inputs.get(name) == recipe.inputs[name]
        return record.contents.get(name) == self._content(path)

    def _recipe(self, node: Node, inputs: dict[str, str]) -> Recipe:
        code = self._code[node.name]
        parameters = counted_parameters(node.inputs, self._parameters)
        packages = {**code.packages, "cvl-pipeline's file format": str(VERSION)}
        sources = dict(self._sources(parameters))
        return Recipe(node.name, parameters, sources, dict(code.hashes), packages, inputs)

    def _sources(self, parameters: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        """Yield checksums of the files and the code that the parameters name: logs, your own functions."""
        files = self._source_files(parameters)
        if files:
            yield "dataset.path", self._checksums.of_all(files) or MISSING
        for module in named_modules(parameters):
            yield module, source_of(module) or MISSING

    def _source_files(self, parameters: Mapping[str, Any]) -> list[Path]:
        if "dataset.source" not in parameters:
            return []
        return SOURCES.create(self._parameters.dataset).files()

    def _input_paths(self, node: Node) -> dict[str, Path]:
        return {name: path for name in node.inputs if (path := self.path(name)) is not None}

    def _read(self, path: Path) -> Record | None:
        record = read_record(path)
        if record is not None:
            self._checksums.learn(record.seen)
        return record

    def _fingerprint(self, path: Path) -> str:
        """Return the fingerprint of an artifact on disk: of its recipe, or of its bytes if it has no record."""
        content, record = self._content(path), self._read(path)
        known = record is not None and content in record.outputs.values()
        return record.recipe.fingerprint if record is not None and known else f"content {content}"

    def _content(self, path: Path) -> str:
        return self._elsewhere.get(path) or self._checksums.of(path) or MISSING


def _at_url(location: Location) -> list[Any] | None:
    """Return URL and identity of a remote file; None if the file is missing or only its size is known."""
    identity = location.identity() or []
    return [location.filepath, *identity] if is_unique(identity) else None


def named_modules(parameters: Mapping[str, Any]) -> list[str]:
    """Return the modules of the user's own that parameters name.

    A parameter of the form ``module:name``, by itself or in a list, is your own code: a reward, a policy, an
    environment, an alternative of a choice.

    Args:
        parameters: plain values by full name.
    """
    return list(dict.fromkeys(_named_modules(list(parameters.values()))))


def _named_modules(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        module, colon, name = value.partition(":")
        if colon and name and not name.startswith("//") and all(map(str.isidentifier, module.split("."))):
            yield module
    elif isinstance(value, Mapping):
        yield from _named_modules([*value, *value.values()])
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _named_modules(part)


def _with_edits(recipe: Recipe, names: list[str]) -> Recipe:
    """Return a recipe that equals no other one if modules or files were edited."""
    mark = f"{EDITED} {uuid.uuid4().hex}"
    parts = {name.partition(":")[0]: name for name in recipe.code}
    sources = {name: mark for name in names if name in recipe.sources}
    code = {parts.get(name, name): mark for name in names if name not in sources}
    return replace(recipe, sources=recipe.sources | sources, code=recipe.code | code)
