"""A run makes what is stale, records what made it, and has its data to itself."""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, TextIO

from kedro.framework.context import KedroContext
from kedro.framework.hooks import hook_impl
from kedro.io import DataCatalog, SharedMemoryDataCatalog
from kedro.pipeline import Pipeline
from kedro.pipeline.node import Node

from cvl_pipeline.errors import InputError
from cvl_pipeline.io.location import Location
from cvl_pipeline.io.storage import remove_abandoned
from cvl_pipeline.kedro.parameters import check_parameters
from cvl_pipeline.kedro.pipeline_registry import register_pipelines
from cvl_pipeline.kedro.provenance.locks import Lease, acquire, release
from cvl_pipeline.kedro.provenance.records import record_path
from cvl_pipeline.kedro.provenance.states import Making, Provenance

logger = logging.getLogger(__name__)


class TrustArtifacts:
    """Locks the data of a run, has ``--only-missing-outputs`` remake what is stale, writes the records."""

    def __init__(self) -> None:
        """Hold nothing."""
        self._location: Callable[[str], Location]
        self._lock: TextIO | None = None
        self._lease: Lease | None = None
        self._provenance: Provenance | None = None
        self._makings: dict[str, Making] = {}
        self._unsaved: dict[str, set[str]] = {}

    @hook_impl
    def after_context_created(self, context: KedroContext) -> None:
        """Learn where data are."""
        self._location = context.config_loader.location  # type: ignore[attr-defined]

    @hook_impl(wrapper=True)
    def before_pipeline_run(
        self, run_params: dict[str, Any], pipeline: Pipeline, catalog: DataCatalog
    ) -> Generator[None, Any, Any]:
        """Lock first of all, and choose what need not run; raises InputError if others use the data."""
        if isinstance(catalog, SharedMemoryDataCatalog):
            raise InputError(
                "ParallelRunner is not supported: its processes could not record what made an artifact; use "
                "SequentialRunner or ThreadRunner"
            )
        self._take_lock(catalog)
        try:
            self._provenance = Provenance(pipeline, catalog)
            if run_params["only_missing_outputs"]:
                chosen = self._choose(pipeline, catalog, self._provenance)
            result = yield
            # Only now: a run that another hook refuses says why, and nothing else.
            if run_params["only_missing_outputs"]:
                _tell_choice(chosen, pipeline)
            _check_given(pipeline, catalog)
            return result
        except BaseException:  # of another hook too: in a notebook, this process lives on
            self._release_lock()
            raise

    @hook_impl
    def before_node_run(self, node: Node, inputs: dict[str, Any]) -> dict[str, Any] | None:
        """Take down what the node makes its outputs from.

        Returns:
            Folders of unfinished training, one a recipe: what other code began, this must not end.
        """
        self._check_lease()
        if self._provenance is None:
            return None
        making = self._provenance.making(node)
        self._makings[node.name], self._unsaved[node.name] = making, set(node.outputs)
        # Without the inputs: training itself tells them apart, by their content.
        folder = replace(making.recipe, inputs={}).fingerprint[:16]
        return {name: inputs[name] / folder for name in _checkpoints(node)}

    @hook_impl
    def after_node_run(self, node: Node, inputs: dict[str, Any]) -> None:
        """Remove the folders of finished training, unless others in them are unfinished."""
        for name in _checkpoints(node):
            with suppress(OSError):
                inputs[name].rmdir()

    @hook_impl
    def before_dataset_saved(self) -> None:
        """Write nothing among what another run writes."""
        self._check_lease()

    @hook_impl
    def after_dataset_saved(self, dataset_name: str, node: Node) -> None:
        """Record what made the node's outputs, once the last of them is saved.

        A run that dies before has left outputs that do not fit their old records, or have none.
        """
        if self._provenance is None:
            return
        self._unsaved[node.name].discard(dataset_name)
        if not self._unsaved[node.name]:
            self._provenance.record(node, self._makings.pop(node.name))

    @hook_impl
    def after_pipeline_run(self, pipeline: Pipeline, catalog: DataCatalog) -> None:
        """Let others have the data, and say what has become stale by a run of a part."""
        self._release_lock()
        whole = register_pipelines()["__default__"]
        if set(whole.nodes) - set(pipeline.nodes):
            states = Provenance(whole, catalog).states()
            old = [name for name, state in states.items() if state.name in ("stale", "damaged")]
            if old:
                logger.info(
                    "Stale now, as it was made from other parameters, code or inputs: %s. This remakes it: "
                    "kedro run --only-missing-outputs (with the same --env and --params)",
                    ", ".join(old),
                )

    @hook_impl
    def on_pipeline_error(self) -> None:
        """Let others have the data."""
        self._release_lock()

    def _take_lock(self, catalog: DataCatalog) -> None:
        self._release_lock()  # of a run that a notebook interrupted
        parameters = check_parameters(catalog.load("parameters"))
        dataset, seed = parameters.dataset.folder, parameters.seed
        location = self._location(f"{parameters.data.root}/.locks/{dataset}/seed_{seed}.lock")
        what = f"data of dataset '{dataset}', seed {seed},"
        self._lock = acquire(location.path, what)
        try:
            self._lease = Lease(location, what) if location.is_remote else None
        except BaseException:
            self._release_lock()
            raise

    def _release_lock(self) -> None:
        if self._lease is not None:
            self._lease.release()
        if self._lock is not None:
            release(self._lock)
        self._lease = self._lock = None

    def _check_lease(self) -> None:
        if self._lease is not None:
            self._lease.check()

    @staticmethod
    def _choose(pipeline: Pipeline, catalog: DataCatalog, provenance: Provenance) -> list[str]:
        """Let what is not fresh count as not there; the nodes that make it."""
        states = provenance.states()
        for name, state in states.items():
            path = provenance.path(name)
            if path is not None:
                vars(catalog.get(name))["outdated"] = not state.fresh
                remove_abandoned(path.parent)  # of what is fresh, no write will
        return [node.name for node in pipeline.nodes if not all(states[name].fresh for name in node.outputs)]


def _checkpoints(node: Node) -> list[str]:
    return [name for name in node.inputs if name.endswith("_checkpoints")]


def _tell_choice(nodes: list[str], pipeline: Pipeline) -> None:
    if nodes:
        logger.info("%d of %d nodes to run: %s", len(nodes), len(pipeline.nodes), ", ".join(nodes))
    else:
        logger.info("Nothing to run: all artifacts are fresh")


def _check_given(pipeline: Pipeline, catalog: DataCatalog) -> None:
    """Warn of inputs that the run does not make and that other parameters or code made; refuse damaged ones.

    Not all formats can tell a changed byte; a JSON cannot.
    """
    whole = register_pipelines()["__default__"]
    if not pipeline.inputs() & whole.all_outputs():
        return
    provenance = Provenance(whole, catalog)
    states = provenance.states()
    for name in sorted(pipeline.inputs() & states.keys()):
        if states[name].name == "damaged":
            place = provenance.place(name)
            raise InputError(
                f"{place} is damaged ({states[name].why}): kedro run --only-missing-outputs (with the same "
                "--env and --params) makes it anew; to use it as it is, delete the record beside it, "
                f"{record_path(Path(place)).name}"
            )
        if states[name].name == "stale":
            logger.warning(
                "%s is used as it is, but it is %s (%s)", name, states[name].name, states[name].why
            )
