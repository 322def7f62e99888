"""Hooks around a run: the plan and the checks before it, one line per node, the results after it."""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Generator, Iterable, Mapping
from itertools import count
from pathlib import Path
from typing import Any

from kedro.framework.context import KedroContext
from kedro.framework.hooks import hook_impl
from kedro.io import DataCatalog, DatasetError
from kedro.io.core import is_parameter
from kedro.pipeline import Pipeline
from kedro.pipeline.node import Node
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cvl_pipeline.errors import InputError, causes, missing_extra, one_line
from cvl_pipeline.io.location import is_url
from cvl_pipeline.io.storage import FULL, check_file, shown
from cvl_pipeline.kedro import silence
from cvl_pipeline.kedro.commands import kedro_run, keep_options
from cvl_pipeline.kedro.configuration import CheckedConfigLoader
from cvl_pipeline.kedro.parameters import RunParameters, check_parameters, is_given
from cvl_pipeline.kedro.pipeline_registry import current_plan, plan_for, register_pipelines
from cvl_pipeline.kedro.workspace import beside
from cvl_pipeline.readout.parameters import REWARDS
from cvl_pipeline.readout.rewards import NO_REWARDS, check_reward
from cvl_pipeline.reports.judgement import judgement_table, sentences
from cvl_pipeline.schema import flattened
from cvl_pipeline.sources.base import SOURCES
from cvl_pipeline.sources.environment import EvaluationEnvironment, environment_for
from cvl_pipeline.training.devices import accelerator_of
from cvl_pipeline.training.parameters import TrainingParameters
from cvl_pipeline.tuning.objectives import OBJECTIVES

logger = logging.getLogger(__name__)

OLD_ARTIFACTS = {
    "cvl_policy": "policy.safetensors",
    "cvl_history": "policy_history.parquet",
    "cvl_rollouts": "rollouts.parquet",
    "cvl_rollout_transitions": "rollout_transitions.safetensors",
    "cvl_rollout_rewards": "rollout_rewards.safetensors",
}
"""Names that artifacts had before there were several methods."""


class FollowParameters:
    """Lets the pipelines follow the parameters: one row per method, and no evaluation without an environment."""

    _folder: Path
    _place: str

    @hook_impl
    def after_context_created(self, context: KedroContext) -> None:
        """Read the parameters before Kedro asks for the pipelines; raises InputError on faulty ones."""
        loader = context.config_loader
        assert isinstance(loader, CheckedConfigLoader)  # of the project's settings
        keep_options(loader.env, loader.runtime_params, loader.elsewhere)
        parameters = loader.run_parameters()
        plan_for(parameters)
        self._place = "data.cache" if is_url(parameters.data.root) else "data.root"
        self._folder = loader.local("")
        for name, (value, before) in loader.tuned_changes().items():
            logger.info("tuned: %s is %s, not %s", name, value, before)
        local = sorted(Path(loader.conf_source, loader.default_run_env).glob("**/parameters*.y*ml"))
        if not loader.env and local:
            logger.info(
                "%s is in force: without --env, files in conf/%s override conf/base",
                ", ".join(shown(path) for path in local), loader.default_run_env,
            )  # fmt: skip

    @hook_impl(wrapper=True, tryfirst=True)
    def before_pipeline_run(self) -> Generator[None, Any, Any]:
        """Raise InputError unless the folder of the artifacts can be created and written to, before it is locked."""
        self._check_folder()
        return (yield)

    def _check_folder(self) -> None:
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self._folder):
                pass
        except (OSError, ValueError) as error:
            if isinstance(error, OSError) and error.errno in FULL:  # reported with the file that has no space
                return
            raise InputError(
                f"{self._place}: the folder {shown(self._folder)} cannot be written to ({one_line(error)}); name "
                "one of your own"
            ) from error


class CheckInputs:
    """Stops a run whose task or reward is unknown or whose saved inputs are missing or foreign."""

    _environment: EvaluationEnvironment | None = None

    @hook_impl
    def before_pipeline_run(
        self, run_params: dict[str, Any], pipeline: Pipeline, catalog: DataCatalog
    ) -> None:
        """Check the environment, if one will run, the GPUs, the reward and every input on disk; raises InputError."""
        parameters = check_parameters(catalog.load("parameters"))
        _check_places(pipeline, catalog)
        _check_gpus(_nodes_to_run(run_params, pipeline, catalog), parameters)
        self._environment = None
        if any("simulator" in node.tags for node in pipeline.nodes):
            self._environment = environment_for(parameters.dataset, parameters.evaluation)
            self._environment.check()
        if "parameters" in pipeline.inputs():
            _check_tuning(parameters)
        if "params:reward" in pipeline.inputs():
            check_reward_of(parameters)
        missing = set()
        for name in sorted(pipeline.inputs()):
            if is_parameter(name):
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
            raise _missing(missing, catalog)

    @hook_impl
    def after_node_run(self, outputs: dict[str, Any]) -> None:
        """Compare the environment with the episodes as soon as they are there, before anything is trained."""
        if self._environment is not None and "transitions" in outputs:
            self._environment.check(outputs["transitions"])


def check_reward_of(parameters: RunParameters) -> None:
    """Raise InputError if the reward cannot be used, or the log has none and the parameters name no other."""
    check_reward(parameters.reward)
    needs_logged = REWARDS.of(parameters.reward).needs_logged_rewards
    if needs_logged and not SOURCES.create(parameters.dataset).has_rewards:
        raise InputError(NO_REWARDS)


def _nodes_to_run(run_params: Mapping[str, Any], pipeline: Pipeline, catalog: DataCatalog) -> list[Node]:
    """The nodes of a pipeline whose outputs are missing or stale if the run makes those alone; otherwise all."""
    if not run_params["only_missing_outputs"]:
        return pipeline.nodes
    return [node for node in pipeline.nodes if not all(map(catalog.exists, node.outputs))]


def _check_gpus(nodes: Iterable[Node], parameters: RunParameters) -> None:
    """Raise InputError if these nodes train on GPUs that this machine lacks, before episodes are collected."""
    # A study's node gets all parameters, also those of methods that no trial trains.
    inputs = {name for node in nodes if "training" in node.tags for name in node.inputs} - {"parameters"}
    values = flattened(parameters.model_dump())
    for name, value in values.items():
        group = name.removesuffix("accelerator")
        asked = name.endswith("training.accelerator") and value == "gpu" and is_given(name, inputs)
        if asked and values[f"{group}nodes"] == 1:  # otherwise, other machines may train
            devices = values[f"{group}devices"]
            accelerator_of(TrainingParameters.model_construct(accelerator="gpu", devices=devices))


def _check_places(pipeline: Pipeline, catalog: DataCatalog) -> None:
    """Raise InputError if anything but a file is at the place of an input or an output."""
    for name in sorted(pipeline.datasets()):
        dataset = vars(catalog.get(name)) if not is_parameter(name) and name in catalog else {}
        # The versions of a dataset of the user's own are files in a folder.
        if "_filepath" in dataset and dataset.get("_version") is None:
            check_file(Path(dataset["_filepath"]), "delete or move it")


def _missing(names: set[str], catalog: DataCatalog) -> InputError:
    """Return the error about inputs that do not exist."""
    for name in sorted(names & OLD_ARTIFACTS.keys()):
        path = Path(vars(catalog.get(name))["_filepath"])
        old = path.with_name(OLD_ARTIFACTS[name])
        if old.exists():
            return InputError(
                f"{shown(old)} is of an older version, in which it was the only policy; rename it to {path.name}, "
                f"or make it again: {kedro_run('--only-missing-outputs')}"
            )
    return InputError(
        f"missing artifacts: {', '.join(sorted(names))}; make them first: "
        f"{kedro_run('--pipelines', ','.join(_makers(names, catalog)))}"
    )


def _makers(names: set[str], catalog: DataCatalog) -> list[str]:
    """Return the pipelines that make artifacts, and what these pipelines lack in turn."""
    pipelines = {name: nodes for name, nodes in register_pipelines().items() if name != "__default__"}
    wanted: set[str] = set()
    while names - wanted:
        wanted |= names
        makers = [name for name, nodes in pipelines.items() if wanted & nodes.all_outputs()]
        inputs = {name for maker in makers for name in pipelines[maker].inputs()}
        names = {name for name in inputs if not is_parameter(name) and not catalog.exists(name)}
    return makers


def _check_tuning(parameters: RunParameters) -> None:
    """Refuse a search that cannot be done, before anything is run for it."""
    try:
        from cvl_pipeline.tuning.space import check_space
    except ImportError as error:
        raise missing_extra("tuning", error) from None
    check_space(parameters.tuning, parameters.stages)
    if any(OBJECTIVES[name].online for name in parameters.tuning.measured):
        environment_for(parameters.dataset, parameters.evaluation).check()
    check_reward(parameters.reward)


class ReportNodes:
    """Logs every finished node in one line: how many are done, its outputs, its seconds.

    What takes long is logged before it is done (see ``silence``).
    """

    def __init__(self) -> None:
        """Start with nothing counted."""
        self._total = 0
        self._done = count(1)  # of all threads
        self._starts: dict[str, float] = {}

    @hook_impl
    def before_pipeline_run(
        self, run_params: dict[str, Any], pipeline: Pipeline, catalog: DataCatalog
    ) -> None:
        """Count the nodes that will run."""
        self._total, self._done = len(_nodes_to_run(run_params, pipeline, catalog)), count(1)

    @hook_impl
    def before_dataset_loaded(self, dataset_name: str, node: Node) -> None:
        """Begin the reading of an input."""
        silence.end(silence.START)
        silence.begin(node.name, f"{node.name} reads {dataset_name}")

    @hook_impl
    def before_node_run(self, node: Node) -> None:
        """Start the node's clock."""
        silence.begin(node.name, f"{node.name} is running")
        self._starts[node.name] = time.perf_counter()

    @hook_impl
    def after_node_run(self, node: Node) -> None:
        """Log the node."""
        silence.end(node.name)
        seconds = time.perf_counter() - self._starts.pop(node.name)
        logger.info(
            "%d/%d %s -> %s (%.1f s%s)", next(self._done), self._total, node.name, ", ".join(node.outputs), seconds,
            ", beside" if beside.get() else "",
        )  # fmt: skip

    @hook_impl
    def before_dataset_saved(self, dataset_name: str, node: Node) -> None:
        """Begin the writing of an output."""
        silence.begin(node.name, f"{node.name} writes {dataset_name}")

    @hook_impl
    def after_dataset_saved(self, node: Node) -> None:
        """End the writing of an output."""
        silence.end(node.name)

    @hook_impl
    def after_pipeline_run(self) -> None:
        """End what is being logged."""
        silence.end()

    @hook_impl
    def on_pipeline_error(self) -> None:
        """End what is being logged."""
        silence.end()


class ReportResults:
    """Ends a run with a table of its results, or without an environment with the places of its results."""

    @hook_impl
    def after_pipeline_run(self, pipeline: Pipeline, catalog: DataCatalog) -> None:
        """Print the comparison if this run made one."""
        made = pipeline.all_outputs()
        if "judgement" in made:
            _print_judgement(catalog.load("judgement"))
        page = vars(catalog["page"])["location"] if "page" in made else None
        if "metrics" in made:
            place, _, _ = str(vars(catalog["metrics"])["location"]).rpartition("/")
            _print_comparison(catalog.load("metrics"), place, page)
        elif "policy_plot" in pipeline.all_outputs() and not current_plan().evaluates:
            _print_places(catalog, page)


def _print_places(catalog: DataCatalog, page: object) -> None:
    """Say that nothing was evaluated, and where the policies, their figures and pictures are."""
    console = Console()
    parameters = check_parameters(catalog.load("parameters"))
    lines = [
        f"No environment is known for '{parameters.dataset.label}', so the policies were not run in one; to do so, "
        "name a Gymnasium id: --params evaluation.environment=ID"
    ]
    lines += [
        f"{row.title}: {vars(catalog.get(row.dataset('policy')))['location']}" for row in current_plan().rows
    ]
    place, _, _ = str(vars(catalog["value_report"])["location"]).rpartition("/")
    lines.append(f"Offline figures: {place}/value_report.json (explained in docs/metrics.md)")
    lines.append(f"Pictures: {place}/value_plot.png, {place}/policy_plot.png")
    if page is not None:
        lines.append(f"All on one page: {page}")
    for line in lines:
        console.print(line, soft_wrap=True, highlight=False, markup=False)


def _print_judgement(judgement: Mapping[str, Any]) -> None:
    title = f"{judgement['dataset']}, seed {judgement['seed']}, judged from the log alone"
    # One row per measure: there are up to eight, whose headings would not fit side by side into 80 columns.
    table = Table(title=escape(title), title_justify="left")
    headings, rows = judgement_table(judgement)
    titles = {**judgement["methods"], "behaviour": "behaviour data"}
    table.add_column("measure", no_wrap=True)
    for name, _ in rows:
        table.add_column(escape(titles[name]), overflow="fold")
    for place, heading in enumerate(headings):
        table.add_row(heading[0].lower() + heading[1:], *(escape(numbers[place].text) for _, numbers in rows))
    console = Console()
    console.print(table)
    for sentence in sentences(judgement):
        console.print(sentence, highlight=False, markup=False)


def _print_comparison(metrics: Mapping[str, Any], place: str, page: object) -> None:
    from cvl_pipeline.reports.summary import return_digits  # takes pandas

    level = f"{100 * metrics['confidence']:g} %"
    title = f"{metrics['dataset']}, seed {metrics['seed']}"
    if metrics["reward"] != REWARDS.names[0]:
        title += f", reward {metrics.get('reward_name', metrics['reward'])}"
    table = Table(title=escape(title), title_justify="left")
    rows = {**metrics["methods"], "behaviour": "behaviour data"}
    scored = any(f"{key}.normalised_score" in metrics for key in rows)
    columns = ["policy", "episodes", f"success rate [{level} interval]", f"return [{level} interval]"]
    for heading in [*columns, *(["D4RL score"] if scored else [])]:
        table.add_column(heading)
    decimals = return_digits(metrics[f"{key}.return_mean"] for key in rows)
    for key, label in rows.items():
        episodes = metrics["behaviour_episodes" if key == "behaviour" else "episodes"]
        cells = [
            _interval(metrics, f"{key}.{name}", digits)
            for name, digits in (("success_rate", 2), ("return_mean", decimals))
        ]
        if scored:
            score = metrics.get(f"{key}.normalised_score")
            cells.append("n/a" if score is None else f"{score:.1f}")
        table.add_row(escape(label), str(episodes), *cells)
    console = Console()
    console.print(table)
    console.print(f"Metrics, tables and plots: {place}/", soft_wrap=True, highlight=False, markup=False)
    if page is not None:
        console.print(f"All on one page: {page}", soft_wrap=True, highlight=False, markup=False)


def _interval(metrics: Mapping[str, Any], name: str, digits: int) -> str:
    mean, low, high = (metrics[f"{name}{end}"] for end in ("", "_ci_low", "_ci_high"))
    return "n/a" if mean is None else f"{mean:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"
