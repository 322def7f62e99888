"""Hooks that lock the data of a run, make stale artifacts again and record what made each artifact."""

from __future__ import annotations

import logging
from collections.abc import Generator
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
from cvl_pipeline.io.storage import remove_abandoned
from cvl_pipeline.kedro.commands import kedro_run
from cvl_pipeline.kedro.configuration import CheckedConfigLoader
from cvl_pipeline.kedro.parameters import check_parameters
from cvl_pipeline.kedro.pipeline_registry import register_pipelines
from cvl_pipeline.kedro.provenance.locks import Lease, acquire, release
from cvl_pipeline.kedro.provenance.records import record_path
from cvl_pipeline.kedro.provenance.states import Making, Provenance
from cvl_pipeline.kedro.workspace import Workspace, current

logger = logging.getLogger(__name__)


class TrustArtifacts:
    """Locks the data of a run, lets ``--only-missing-outputs`` make stale artifacts again, writes the records."""

    def __init__(self) -> None:
        """Hold nothing."""
        self._loader: CheckedConfigLoader
        self._lock: TextIO | None = None
        self._lease: Lease | None = None
        self._provenance: Provenance | None = None
        self._makings: dict[str, Making] = {}
        self._unsaved: dict[str, set[str]] = {}

    @hook_impl
    def after_context_created(self, context: KedroContext) -> None:
        """Keep the loader, which knows where data are stored."""
        loader = context.config_loader
        assert isinstance(loader, CheckedConfigLoader)  # of the project's settings
        self._loader = loader

    @hook_impl(wrapper=True)
    def before_pipeline_run(
        self, run_params: dict[str, Any], pipeline: Pipeline, catalog: DataCatalog
    ) -> Generator[None, Any, Any]:
        """Lock the data, then choose the nodes to run; raises InputError if another run uses the data."""
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
            # Only now: if another hook refuses the run, only its reason is logged.
            if run_params["only_missing_outputs"]:
                _log_choice(chosen, pipeline)
            _check_given(pipeline, catalog)
            return result
        except BaseException:  # of another hook too: in a notebook, this process lives on
            self._release_lock()
            raise

    @hook_impl
    def before_node_run(self, node: Node) -> None:
        """Record what the node makes its outputs from, and give it folders for unfinished work and logs."""
        self._check_lease()
        if self._provenance is None:
            return
        making = self._provenance.making(node)
        self._makings[node.name], self._unsaved[node.name] = making, set(node.outputs)
        current.set(self._workspace(node, making) if "training" in node.tags else Workspace())

    @hook_impl
    def after_node_run(self, node: Node) -> None:
        """Remove the folders of finished training, unless other trainings in them are unfinished."""
        checkpoints = current.get().checkpoints
        if checkpoints is not None:
            with suppress(OSError):
                checkpoints.rmdir()
                checkpoints.parent.rmdir()
        current.set(Workspace())

    def _workspace(self, node: Node, making: Making) -> Workspace:
        """Return the node's folders on this machine, named after its first output."""
        assert self._provenance is not None
        if "parameters" in node.inputs:
            return Workspace(None, None, *self._loader.study())
        path = self._provenance.path(node.outputs[0])
        if path is None:
            return Workspace()
        folder = path.parent.relative_to(self._loader.local("06_models"))
        name = path.stem.removesuffix("_policy")
        # A folder per recipe, so that one run never resumes what other code or parameters began. Inputs do not
        # count: training itself distinguishes them, by their content.
        recipe = replace(making.recipe, inputs={}).fingerprint[:16]
        return Workspace(
            checkpoints=self._loader.local(f"06_models/{folder}/checkpoints/{name}/{recipe}"),
            logs=self._loader.local(f"08_reporting/{folder}/logs/{name}"),
        )

    @hook_impl
    def before_dataset_saved(self) -> None:
        """Refuse to write if another run has taken the data over."""
        self._check_lease()

    @hook_impl
    def after_dataset_saved(self, dataset_name: str, node: Node) -> None:
        """Record what made the node's outputs, once the last of them is saved.

        A run that dies before leaves outputs without records, or with old records that do not fit.
        """
        if self._provenance is None:
            return
        self._unsaved[node.name].discard(dataset_name)
        if not self._unsaved[node.name]:
            self._provenance.record(node, self._makings.pop(node.name))

    @hook_impl
    def after_pipeline_run(self, pipeline: Pipeline, catalog: DataCatalog) -> None:
        """Release the data, and log the artifacts that a partial run made stale."""
        self._release_lock()
        whole = register_pipelines()["__default__"]
        if set(whole.nodes) - set(pipeline.nodes):
            states = Provenance(whole, catalog).states()
            old = [name for name, state in states.items() if state.name in ("stale", "damaged")]
            if old:
                logger.info(
                    "Stale now, because it was made from other parameters, code or inputs: %s. To make it "
                    "again: %s",
                    ", ".join(old), kedro_run("--only-missing-outputs"),
                )  # fmt: skip

    @hook_impl
    def on_pipeline_error(self) -> None:
        """Release the data."""
        self._release_lock()

    def _take_lock(self, catalog: DataCatalog) -> None:
        self._release_lock()  # of a run that a notebook interrupted
        parameters = check_parameters(catalog.load("parameters"))
        dataset, seed = parameters.dataset.folder, parameters.seed
        location = self._loader.location(f"{parameters.data.root}/.locks/{dataset}/seed_{seed}.lock")
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
        """Let stale artifacts count as missing; return the nodes that make them."""
        states = provenance.states()
        for name, state in states.items():
            path = provenance.path(name)
            if path is not None:
                vars(catalog.get(name))["outdated"] = not state.fresh
                remove_abandoned(path.parent)  # only a write would, and fresh artifacts are not written
        return [node.name for node in pipeline.nodes if not all(states[name].fresh for name in node.outputs)]


def _log_choice(nodes: list[str], pipeline: Pipeline) -> None:
    if nodes:
        logger.info("%d of %d nodes to run: %s", len(nodes), len(pipeline.nodes), ", ".join(nodes))
    else:
        logger.info("Nothing to run: all artifacts are fresh")


def _check_given(pipeline: Pipeline, catalog: DataCatalog) -> None:
    """Warn of stale inputs that the run does not make itself; refuse damaged ones.

    Some formats, such as JSON, cannot detect a changed byte themselves.
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
                f"{place} is damaged ({states[name].why}); make it again: {kedro_run('--only-missing-outputs')}; "
                f"or delete the record beside it, {record_path(Path(place)).name}, to use it as it is"
            )
        if states[name].name == "stale":
            logger.warning(
                "%s is used as it is, but it is %s (%s)", name, states[name].name, states[name].why
            )
