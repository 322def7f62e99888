"""The runner of ``kedro run``: one node after another, and baselines in one other process beside them."""

from __future__ import annotations

import logging
import time
from collections import Counter
from copy import copy
from itertools import chain
from multiprocessing.process import BaseProcess
from threading import Condition, Thread
from typing import Any

import torch
from kedro.pipeline import Pipeline
from kedro.pipeline.node import Node
from kedro.runner import SequentialRunner
from kedro.runner.task import Task
from pluggy import PluginManager

from cvl_pipeline.io.children import sigterm_raised
from cvl_pipeline.kedro.beside import ProcessBeside, threads_beside
from cvl_pipeline.kedro.parameters import check_parameters
from cvl_pipeline.kedro.rows import BESIDE
from cvl_pipeline.kedro.workspace import beside
from cvl_pipeline.schema import flattened
from cvl_pipeline.training.devices import available_cores

logger = logging.getLogger(__name__)

PATIENCE = 30.0
"""Seconds that the process beside has to save its training when the run ends early, before it is killed."""


class BesideRunner(SequentialRunner):
    """Runs nodes in their order, and those tagged ``beside`` in another process if there is a second core for it."""

    @property
    def _logger(self) -> logging.Logger:
        """The logger of Kedro's runners, whose lines conf/logging.yml leaves out."""
        return logging.getLogger("kedro.runner")

    def _run(
        self,
        pipeline: Pipeline,
        catalog: Any,
        hook_manager: PluginManager | None = None,
        run_id: str | None = None,
    ) -> None:
        if self._is_async or not _can_share(pipeline, catalog):
            super()._run(pipeline, catalog, hook_manager, run_id)
            return
        run = _Run(pipeline, catalog, hook_manager, run_id)
        try:
            with sigterm_raised():
                run.all_nodes()
        except Exception:
            self._suggest_resume_scenario(pipeline, run.done, catalog)
            raise


def _can_share(pipeline: Pipeline, catalog: Any) -> bool:
    """Whether a second core would be idle: there is one, and no training uses a GPU or several processes."""
    if available_cores() < 2 or not any(BESIDE in node.tags for node in pipeline.nodes):
        return False
    values = flattened(check_parameters(catalog.load("parameters")).model_dump())
    several = any(
        value > 1 for name, value in values.items() if name.endswith(("training.devices", "training.nodes"))
    )
    accelerators = {value for name, value in values.items() if name.endswith("training.accelerator")}
    # Two trainings would share the GPU and its memory.
    gpu = "gpu" in accelerators or ("auto" in accelerators and torch.cuda.is_available())
    return not several and not gpu


class _Run:
    """The nodes of a run, which two threads take: this one, and one that waits for the process beside."""

    def __init__(
        self, pipeline: Pipeline, catalog: Any, hooks: PluginManager | None, run_id: str | None
    ) -> None:
        self.done: set[Node] = set()
        self._pipeline, self._catalog, self._hooks, self._run_id = pipeline, catalog, hooks, run_id
        self._todo = list(pipeline.nodes)
        self._needs = pipeline.node_dependencies
        self._loads = Counter(chain.from_iterable(node.inputs for node in pipeline.nodes))
        self._changed = Condition()
        self._busy = self._over = False
        self._failure: BaseException | None = None
        self._process: BaseProcess | None = None

    def all_nodes(self) -> None:
        """Run all nodes; raises the first error."""
        thread = Thread(target=self._beside, name="beside", daemon=True)
        try:
            thread.start()
            while (node := self._next()) is not None:
                self._execute(node, node)
        except Exception as error:
            if self._failure is None or self._failure is error:
                raise
            raise self._failure from error
        finally:
            self._end(thread)

    def _next(self) -> Node | None:
        """Wait for a node that can run here; None if all are done. Raises the error of the process beside."""
        with self._changed:
            while self._failure is None and len(self.done) < len(self._pipeline.nodes):
                # The last resort is a node for the process beside: it would only wait for that process to start.
                ready = sorted(self._ready(), key=lambda node: BESIDE in node.tags)
                self._busy = bool(ready)
                self._changed.notify_all()
                if ready:
                    self._todo.remove(ready[0])
                    return ready[0]
                self._changed.wait()
            if self._failure is not None:
                raise self._failure
            return None

    def _ready(self) -> list[Node]:
        return [node for node in self._todo if self._needs[node] <= self.done]

    def _next_beside(self, *, take: bool) -> Node | None:
        """Wait for a node for the process beside, while this one is busy; None if there is none any more."""
        with self._changed:
            while not self._over and any(BESIDE in node.tags for node in self._todo):
                ready = [node for node in self._ready() if BESIDE in node.tags]
                if ready and self._busy:
                    if take:
                        self._todo.remove(ready[0])
                    return ready[0]
                self._changed.wait()
            return None

    def _beside(self) -> None:
        """Run nodes in the process beside, from the first that can run there."""
        beside.set(True)
        try:
            if self._next_beside(take=False) is None:
                return
            with ProcessBeside() as process:
                self._process = process.process
                if not process.ready():
                    return  # the nodes run in this process
                while (node := self._next_beside(take=True)) is not None:
                    logger.info("%s runs beside the others", node.name)
                    remote = copy(node)
                    vars(remote)["run"] = lambda _, node=node: process.run(node, self._catalog)
                    self._execute(node, remote)
                self._process = None  # it ends by itself
        except BaseException as error:
            with self._changed:
                if self._over:  # this process has ended the other one
                    return
                self._failure = error
                self._changed.notify_all()
                if self._busy:
                    logger.warning("A node beside the others failed; the run ends after the present node")

    def _execute(self, node: Node, task: Node) -> None:
        threads = torch.get_num_threads()
        if (
            BESIDE in node.tags and task is node
        ):  # as in the other process, so that results do not depend on the place
            torch.set_num_threads(threads_beside())
        try:
            Task(task, self._catalog, False, self._hooks, self._run_id).execute()
        finally:
            torch.set_num_threads(threads)
        with self._changed:
            self.done.add(node)
            SequentialRunner._release_datasets(node, self._catalog, self._loads, self._pipeline)
            self._changed.notify_all()

    def _end(self, thread: Thread) -> None:
        """End the process beside, which saves its training."""
        with self._changed:
            self._over = True
            self._changed.notify_all()
        terminated, late = False, time.monotonic() + PATIENCE
        while thread.is_alive():
            process = self._process
            if process is not None and not terminated:
                process.terminate()
                terminated = True
            elif process is not None and time.monotonic() > late:
                process.kill()
            thread.join(0.05)
