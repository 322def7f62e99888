"""Which artifacts are what the parameters, code and inputs in force would make, and why others are not."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from kedro.io import DataCatalog
from kedro.pipeline import Pipeline
from kedro.pipeline.node import Node

from cvl_pipeline.io.location import Location
from cvl_pipeline.io.storage import CHECKED_ONCE, VERSION, shown
from cvl_pipeline.kedro.parameters import RunParameters, check_parameters, counted_parameters, is_given
from cvl_pipeline.kedro.provenance.code import Code, code_of, code_of_module, source_of
from cvl_pipeline.kedro.provenance.records import (
    Checksums,
    Recipe,
    Record,
    changes,
    read_record,
    record_path,
    write_record,
)
from cvl_pipeline.schema import chosen_classes
from cvl_pipeline.sources.base import SOURCES

NAMED_CODE = re.compile(r"([A-Za-z_][\w.]*):[\w\-.]+")
"""A parameter of the form ``module:name`` is code of the user's own: a reward, a policy, an environment."""


@dataclass(frozen=True)
class State:
    """How an artifact stands.

    Attributes:
        name: fresh, stale (made otherwise than it would be now), missing, or damaged (not what was recorded).
        reasons: why it is stale or damaged, the nearest cause first.
    """

    name: Literal["fresh", "stale", "missing", "damaged"]
    reasons: tuple[str, ...] = ()

    @property
    def fresh(self) -> bool:
        """Whether it need not be made again."""
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
"""In place of the checksum of what is not there."""


@dataclass(frozen=True)
class Making:
    """What a node is about to make its outputs from."""

    recipe: Recipe
    contents: dict[str, str]


class Provenance:
    """What made the artifacts of a pipeline, on disk and if it ran now."""

    def __init__(self, pipeline: Pipeline, catalog: DataCatalog) -> None:
        """Take parameters and files from the catalog.

        Raises:
            InputError: faulty parameters.
        """
        self._pipeline, self._catalog = pipeline, catalog
        self._checksums = Checksums()
        self._in_memory: dict[str, str] = {}
        self._fetched: set[str] = set()
        self._elsewhere: dict[Path, str] = {}
        # Now, and not when a node has run: the code that runs is that which was imported, not what a person
        # has written meanwhile.
        self._code = {node.name: self._code_of(node) for node in pipeline.nodes}

    def _code_of(self, node: Node) -> Code:
        """Return the code of a node's function and of the alternatives that its parameters choose."""
        own = code_of(node.func)
        for name, chosen in chosen_classes(self._parameters).items():
            if is_given(name, node.inputs):
                part = code_of_module(chosen.__module__)
                own = Code({**part.hashes, **own.hashes}, {**part.packages, **own.packages})
        return own

    @cached_property
    def _parameters(self) -> RunParameters:
        return check_parameters(self._catalog.load("parameters"))

    def path(self, name: str) -> Path | None:
        """The file of an artifact; None of parameters, of folders and of what is kept in memory."""
        if name.startswith("params:") or name == "parameters" or name not in self._catalog:
            return None
        path = vars(self._catalog.get(name)).get("_filepath")
        if path is not None and name not in self._fetched:
            self._fetch(name)
        return None if path is None else Path(path)

    def place(self, name: str) -> str:
        """Where an artifact is, as a person should read it; raises ValueError for what has no file."""
        path = self.path(name)
        if path is None:
            raise ValueError(f"{name} has no file")
        return str(self._location(name) or shown(path))

    def _location(self, name: str) -> Location | None:
        """Where an artifact is, if that is at a URL."""
        location: Location | None = getattr(self._catalog.get(name), "location", None)
        return location if location is not None and location.is_remote else None

    def _fetch(self, name: str) -> None:
        """Bring the copies of an artifact and its record up to date; a large one that is known is left."""
        self._fetched.add(name)
        location = self._location(name)
        if location is None:
            return
        location.sibling(record_path(location.path).name).fetch()
        self._read(location.path)
        content = self._checksums.known([location.filepath, *(location.identity() or [])])
        if content is None:
            location.fetch()
        else:
            self._elsewhere[location.path] = content

    def _publish(self, name: str, record: Record) -> None:
        """Put the record of an artifact beside it, with what tells from afar that a large one is the same."""
        path, location = self.path(name), self._location(name)
        assert path is not None
        if location is not None and path.stat().st_size >= CHECKED_ONCE:
            at_url = [location.filepath, *(location.identity() or []), record.outputs[name]]
            record = replace(record, seen=[*record.seen, at_url])
        write_record(path, record)
        if location is not None:
            location.sibling(record_path(path).name).publish()

    def making(self, node: Node) -> Making:
        """What the node would make its outputs from, the inputs as they are on disk."""
        paths = self._input_paths(node)
        inputs = {name: self._found(path) for name, path in paths.items()}
        inputs |= {name: self._in_memory[name] for name in node.inputs if name in self._in_memory}
        return Making(self._recipe(node, inputs), {name: self._content(path) for name, path in paths.items()})

    def record(self, node: Node, making: Making) -> None:
        """Write beside each of the node's outputs, all of which are saved by now, what made it."""
        recipe = making.recipe
        if MISSING in recipe.sources.values():  # the node has downloaded it
            recipe = replace(recipe, sources=dict(self._sources(recipe.parameters)))
        paths = {name: path for name in node.outputs if (path := self.path(name)) is not None}
        self._in_memory |= dict.fromkeys(set(node.outputs) - set(paths), recipe.fingerprint)
        for path in paths.values():
            self._elsewhere.pop(path, None)  # of what was there before
        outputs = {name: self._content(path) for name, path in paths.items()}
        for name, path in paths.items():
            seen = self._checksums.seen([path, *self._source_files(recipe.parameters)])
            self._publish(name, Record(recipe, making.contents, outputs, seen))

    def states(self) -> dict[str, State]:
        """How everything that the pipeline makes stands, in the order of the run.

        What the pipeline does not make itself is taken as it is on disk.
        """
        states: dict[str, State] = {}
        expected: dict[str, str] = {}
        for node in self._pipeline.nodes:
            given = {name: path for name, path in self._input_paths(node).items() if name not in expected}
            inputs = {name: self._found(path) for name, path in given.items()}
            inputs |= {name: expected[name] for name in node.inputs if name in expected}
            recipe = self._recipe(node, inputs)
            expected |= dict.fromkeys(node.outputs, recipe.fingerprint)
            own = {name: self._state(name, node, recipe, states) for name in node.outputs}
            faults = [
                f"{name}, made with it, is {state.name}" for name, state in own.items() if not state.fresh
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
        if path is None:  # in memory: made again when, and only when, something needs it
            return State("stale", tuple(upstream)) if upstream else FRESH
        if self._content(path) == MISSING:
            return State("missing")
        record = self._read(path)
        if record is None:
            return State("stale", ("no record of what made it",))
        if record.outputs.get(name) != self._content(path):
            return State("damaged", ("its bytes are not those that were recorded",))
        reasons = [str(change) for change in changes(record.recipe, recipe)]
        # By their bytes: an input that was made again, by whatever recipe, and came out the same is the same.
        reasons += upstream + [
            f"input {other} is another than it was made from"
            for other in recipe.inputs
            if states.get(other, FRESH).fresh and not self._is_input(other, record, recipe)
        ]
        gone = sorted(record.recipe.inputs.keys() - recipe.inputs.keys())
        reasons += [f"input {other} is no longer one" for other in gone]
        reasons += [
            f"{other}, made with it, is another"
            for other in node.outputs
            if (beside := self.path(other)) is not None
            and self._content(beside) != MISSING
            and record.outputs.get(other) != self._content(beside)
        ]
        return State("stale", tuple(reasons)) if reasons else FRESH

    def _is_input(self, name: str, record: Record, recipe: Recipe) -> bool:
        """Whether an input is the very one that the record names."""
        path = self.path(name)
        if path is None:  # in memory, where its recipe is all that is known of it
            return record.recipe.inputs.get(name) == recipe.inputs[name]
        return record.contents.get(name) == self._content(path)

    def _recipe(self, node: Node, inputs: dict[str, str]) -> Recipe:
        code = self._code[node.name]
        parameters = counted_parameters(node.inputs, self._parameters)
        packages = {**code.packages, "cvl-pipeline's file format": str(VERSION)}
        sources = dict(self._sources(parameters))
        return Recipe(node.name, parameters, sources, dict(code.hashes), packages, inputs)

    def _sources(self, parameters: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        """Content of what the parameters name and nothing here makes: logs, code of the user's own."""
        for path in self._source_files(parameters):
            yield "dataset.path", self._checksums.of_folder(path) or MISSING
        for value in parameters.values():
            match = NAMED_CODE.fullmatch(value) if isinstance(value, str) else None
            if match:
                yield match[1], source_of(match[1]) or MISSING

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

    def _found(self, path: Path) -> str:
        """Fingerprint of an artifact as it is on disk: its recipe's, or its bytes' if they have none."""
        content, record = self._content(path), self._read(path)
        known = record is not None and content in record.outputs.values()
        return record.recipe.fingerprint if record is not None and known else f"content {content}"

    def _content(self, path: Path) -> str:
        return self._elsewhere.get(path) or self._checksums.of(path) or MISSING
