"""Hook that locks the data of a run, selects stale artifacts and writes the records of new ones."""

from __future__ import annotations

import logging
import shutil
import threading
from collections.abc import Generator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from kedro.framework.context import KedroContext
from kedro.framework.hooks import hook_impl
from kedro.io import DataCatalog, SharedMemoryDataCatalog
from kedro.pipeline import Pipeline
from kedro.pipeline.node import Node

from cvl_pipeline.errors import InputError
from cvl_pipeline.io.storage import remove_abandoned
from cvl_pipeline.kedro.commands import kedro_run
from cvl_pipeline.kedro.configuration import CheckedConfigLoader
from cvl_pipeline.kedro.parameters import check_parameters
from cvl_pipeline.kedro.pipeline_registry import register_pipelines
from cvl_pipeline.kedro.provenance.code import FACADE, import_own
from cvl_pipeline.kedro.provenance.locks import Lease, Lock, acquire, release
from cvl_pipeline.kedro.provenance.records import record_path
from cvl_pipeline.kedro.provenance.states import Making, Provenance
from cvl_pipeline.kedro.workspace import PROVENANCE, Workspace, workspace

logger = logging.getLogger(__name__)


class TrustArtifacts:
    """Locks the data, lets ``--only-missing-outputs`` recreate stale artifacts, and writes records."""

    def __init__(self) -> None:
        """Start without a lock."""
        self._loader: CheckedConfigLoader
        self._lock: Lock | None = None
        self._lease: Lease | None = None
        self._provenance: Provenance | None = None
        self._makings: dict[str, Making] = {}
        self._unsaved: dict[str, set[str]] = {}
        self._checkpoints: dict[str, Path | None] = {}  # of training whose outputs are not saved yet
        self._one_thread = threading.Lock()  # two nodes may run side by side

    @hook_impl
    def after_context_created(self, context: KedroContext) -> None:
        """Keep the configuration loader, which knows the data folders."""
        loader = context.config_loader
        assert isinstance(loader, CheckedConfigLoader)  # set in settings.py
        self._loader = loader

    @hook_impl(wrapper=True)
    def before_pipeline_run(
        self, run_params: dict[str, Any], pipeline: Pipeline, catalog: DataCatalog
    ) -> Generator[None, Any, Any]:
        """Lock the data, then choose the nodes to run; raise InputError if another run uses the data."""
        if isinstance(catalog, SharedMemoryDataCatalog):
            raise InputError(
                "ParallelRunner is not supported: its processes cannot write the records of artifacts; use "
                "SequentialRunner or ThreadRunner"
            )
        self._take_lock(catalog)
        try:
            self._provenance = Provenance(pipeline, catalog)
            if run_params["only_missing_outputs"]:
                chosen = self._choose(pipeline, catalog, self._provenance)
            result = yield  # the checks of other hooks import the user's modules
            import_own([FACADE])  # the code of most nodes, so that edits during the run do not matter
            self._provenance.settle()
            # Log last: if another hook refuses the run, only its reason appears.
            if run_params["only_missing_outputs"]:
                _log_choice(chosen, pipeline)
            _check_given(pipeline, catalog)
            return result
        except BaseException:  # also from other hooks: in a notebook, this process goes on
            self._release_lock()
            raise

    @hook_impl
    def before_node_run(self, node: Node) -> None:
        """Prepare the record of the node's outputs, and set its folders for checkpoints and logs."""
        self._check_lock()
        if self._provenance is None:
            return
        with self._one_thread:
            making = self._provenance.making(node)
        self._makings[node.name], self._unsaved[node.name] = making, set(node.outputs)
        workspace.set(self._workspace(node, making))

    @hook_impl
    def after_node_run(self, node: Node) -> None:
        """Keep the place of the checkpoints, and take the folders back."""
        self._checkpoints[node.name] = workspace.get().checkpoints
        workspace.set(Workspace())

    def _workspace(self, node: Node, making: Making) -> Workspace:
        """Return what the node's tags ask for; folders are on this machine, named after its first output."""
        assert self._provenance is not None
        if PROVENANCE in node.tags:
            return Workspace(fingerprints=making.recipe.inputs)
        if "training" not in node.tags:
            return Workspace()
        if "parameters" in node.inputs:
            return Workspace(None, None, *self._loader.study())
        path = self._provenance.path(node.outputs[0])
        if path is None:
            return Workspace()
        folder = path.parent.relative_to(self._loader.local("06_models"))
        name = path.stem.removesuffix("_policy")
        # One folder per recipe, so that a run never resumes training with other code or parameters. Inputs are not
        # part of it, because training itself compares their content.
        recipe = replace(making.recipe, inputs={}).fingerprint[:16]
        return Workspace(
            checkpoints=self._loader.local(f"06_models/{folder}/checkpoints/{name}/{recipe}"),
            logs=self._loader.local(f"08_reporting/{folder}/logs/{name}"),
        )

    @hook_impl
    def before_dataset_saved(self) -> None:
        """Raise InputError if another run has taken over the lock."""
        self._check_lock()

    @hook_impl
    def after_dataset_saved(self, dataset_name: str, node: Node) -> None:
        """After the last output is saved, write the outputs' records and delete the checkpoints of the training.

        If the run dies before, its outputs have no records, or old ones that do not match, and the next run resumes
        the training from its last checkpoint.
        """
        if self._provenance is None:
            return
        self._unsaved[node.name].discard(dataset_name)
        if not self._unsaved[node.name]:
            with self._one_thread:
                self._provenance.record(node, self._makings.pop(node.name))
            if (checkpoints := self._checkpoints.pop(node.name, None)) is not None:
                shutil.rmtree(checkpoints, ignore_errors=True)
                with suppress(OSError):  # other training is unfinished
                    checkpoints.parent.rmdir()

    @hook_impl
    def after_pipeline_run(self, pipeline: Pipeline, catalog: DataCatalog) -> None:
        """Release the lock, and log the artifacts that a partial run made stale."""
        self._release_lock()
        whole = register_pipelines()["__default__"]
        if set(whole.nodes) - set(pipeline.nodes):
            states = Provenance(whole, catalog).states()
            old = [name for name, state in states.items() if state.name in ("stale", "damaged")]
            if old:
                logger.info(
                    "Stale now, because made from other parameters, code or inputs: %s. To recreate them: %s",
                    ", ".join(old), kedro_run("--only-missing-outputs"),
                )  # fmt: skip

    @hook_impl
    def on_pipeline_error(self) -> None:
        """Release the lock."""
        self._release_lock()

    def _take_lock(self, catalog: DataCatalog) -> None:
        self._release_lock()  # of an interrupted run in a notebook
        parameters = check_parameters(catalog.load("parameters"))
        dataset, seed = parameters.dataset.folder, parameters.seed
        location = self._loader.location(f"{parameters.data.root}/.locks/{dataset}/seed_{seed}.lock")
        description = f"data of dataset '{dataset}', seed {seed},"
        self._lock = acquire(location.path, description)
        try:
            self._lease = Lease(location, description) if location.is_remote else None
        except BaseException:
            self._release_lock()
            raise

    def _release_lock(self) -> None:
        if self._lease is not None:
            self._lease.release()
        if self._lock is not None:
            release(self._lock)
        self._lease = self._lock = None

    def _check_lock(self) -> None:
        if self._lock is not None:
            self._lock.check()
        if self._lease is not None:
            self._lease.check()

    @staticmethod
    def _choose(pipeline: Pipeline, catalog: DataCatalog, provenance: Provenance) -> list[str]:
        """Mark stale artifacts as missing for Kedro; return the nodes that make them."""
        states = provenance.states()
        for name, state in states.items():
            path = provenance.path(name)
            if path is not None:
                vars(catalog.get(name))["outdated"] = not state.fresh
                remove_abandoned(path.parent)  # otherwise only a write removes them
        return [node.name for node in pipeline.nodes if not all(states[name].fresh for name in node.outputs)]


def _log_choice(nodes: list[str], pipeline: Pipeline) -> None:
    if nodes:
        logger.info("%d of %d nodes to run: %s", len(nodes), len(pipeline.nodes), ", ".join(nodes))
    else:
        logger.info("Nothing to run: all artifacts are fresh")


def _check_given(pipeline: Pipeline, catalog: DataCatalog) -> None:
    """Log a warning for stale inputs of a partial run; raise InputError for damaged ones.

    Some formats, such as JSON, have no checksum of their own.
    """
    whole = sum(register_pipelines().values(), start=Pipeline([]))  # with those of a study and of an export
    if not pipeline.inputs() & whole.all_outputs():
        return
    provenance = Provenance(whole, catalog)
    states = provenance.states()
    for name in sorted(pipeline.inputs() & states.keys()):
        if states[name].name == "damaged":
            place = provenance.place(name)
            raise InputError(
                f"{place} is damaged ({states[name].why}); recreate it: {kedro_run('--only-missing-outputs')}; "
                f"or delete its record, {record_path(Path(place)).name}, to use it as it is"
            )
        if states[name].name == "stale":
            logger.warning("%s is %s (%s), but the run uses it", name, states[name].name, states[name].why)
