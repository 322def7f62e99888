"""What surrounds a run: inputs are checked before it, results are told after it."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import Any

from kedro.framework.hooks import hook_impl
from kedro.io import DataCatalog, DatasetError
from kedro.pipeline import Pipeline
from kedro.pipeline.node import Node
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cvl_pipeline.errors import InputError, causes, missing_extra
from cvl_pipeline.kedro.parameters import check_parameters
from cvl_pipeline.kedro.pipeline_registry import register_pipelines
from cvl_pipeline.readout.rewards import check_reward
from cvl_pipeline.sources.simulators import check_environment
from cvl_pipeline.tuning.objectives import OBJECTIVES

logger = logging.getLogger(__name__)


class CheckInputs:
    """Stops a run whose task or reward is unknown or whose saved inputs are missing or foreign."""

    @hook_impl
    def before_pipeline_run(self, pipeline: Pipeline, catalog: DataCatalog) -> None:
        """Check the environment, if one will run, the reward and every input on disk; raises InputError."""
        if any("simulator" in node.tags for node in pipeline.nodes):
            check_environment(catalog.load("params:dataset"), catalog.load("params:evaluation"))
        if "tuning_storage" in pipeline.inputs():
            _check_tuning(catalog.load("parameters"))
        if "params:reward" in pipeline.inputs():
            check_reward(catalog.load("params:reward"))
        missing = set()
        for name in sorted(pipeline.inputs()):
            if name.startswith("params:") or name == "parameters":
                continue
            if not catalog.exists(name):
                missing.add(name)
                continue
            try:
                catalog.load(name)  # whole and of the right kind, before anything is overwritten
            except DatasetError as error:
                # Kedro wraps what a dataset raises, once or twice.
                faults = [cause for cause in causes(error) if isinstance(cause, InputError)]
                raise (faults[0] if faults else error) from None
        if missing:
            makers = ",".join(
                name
                for name, nodes in register_pipelines().items()
                if name != "__default__" and missing & nodes.all_outputs()
            )
            raise InputError(
                f"missing artifacts: {', '.join(sorted(missing))}; make them first: "
                f"kedro run --pipelines {makers} (with the same --env and --params)"
            )


def _check_tuning(raw: dict[str, Any]) -> None:
    """Refuse a search that cannot be done, before anything is run for it."""
    try:
        from cvl_pipeline.tuning.space import check_space
    except ImportError as error:
        raise missing_extra("tuning", error) from None
    parameters = check_parameters(raw)
    check_space(parameters.tuning, parameters.stages)
    if any(OBJECTIVES[name].online for name in parameters.tuning.measured):
        check_environment(parameters.dataset, parameters.evaluation)
    check_reward(parameters.reward)


class NarrateNodes:
    """Tells every finished node in one line: how many are done, what it made, how long it took."""

    def __init__(self) -> None:
        """Start with nothing counted."""
        self._total = self._done = 0
        self._start = 0.0

    @hook_impl
    def before_pipeline_run(
        self, run_params: dict[str, Any], pipeline: Pipeline, catalog: DataCatalog
    ) -> None:
        """Count the nodes that will run."""
        nodes = pipeline.nodes
        if run_params["only_missing_outputs"]:
            nodes = [node for node in nodes if not all(map(catalog.exists, node.outputs))]
        self._total, self._done = len(nodes), 0

    @hook_impl
    def before_node_run(self) -> None:
        """Take the time."""
        self._start = time.perf_counter()

    @hook_impl
    def after_node_run(self, node: Node) -> None:
        """Tell."""
        self._done += 1
        seconds = time.perf_counter() - self._start
        logger.info(
            "%d/%d %s -> %s (%.1f s)", self._done, self._total, node.name, ", ".join(node.outputs), seconds
        )


class ReportResults:
    """Ends an evaluated run with a table that says what came out and where it lies."""

    @hook_impl
    def after_pipeline_run(self, pipeline: Pipeline, catalog: DataCatalog) -> None:
        """Print the comparison if this run made one."""
        if "metrics" not in pipeline.all_outputs():
            return
        place, _, _ = str(vars(catalog["metrics"])["location"]).rpartition("/")
        _print_comparison(catalog.load("metrics"), place)


def _print_comparison(metrics: Mapping[str, Any], place: str) -> None:
    level = f"{100 * metrics['confidence']:g} %"
    title = f"{metrics['dataset']}, seed {metrics['seed']}"
    if metrics["reward"] != "dataset":
        title += f", reward {metrics['reward']}"
    table = Table(title=escape(title), title_justify="left")
    columns = ["policy", "episodes", f"success rate [{level} interval]", f"return [{level} interval]"]
    scored = "cvl.normalised_score" in metrics
    for heading in [*columns, *(["D4RL score"] if scored else [])]:
        table.add_column(heading)
    rows = {"cvl": "CVL", "bc": "BC (control)", "behaviour": "behaviour data"}
    for key, label in rows.items():
        episodes = metrics["behaviour_episodes" if key == "behaviour" else "episodes"]
        cells = []
        for name, digits in (("success_rate", 2), ("return_mean", 0)):
            mean, low, high = (metrics[f"{key}.{name}{end}"] for end in ("", "_ci_low", "_ci_high"))
            cells.append(f"{mean:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]")
        if scored:
            cells.append(f"{metrics[f'{key}.normalised_score']:.1f}")
        table.add_row(label, str(episodes), *cells)
    console = Console()
    console.print(table)
    told = f"Metrics, tables and plots: {place}/"
    console.print(told, soft_wrap=True, highlight=False, markup=False)
