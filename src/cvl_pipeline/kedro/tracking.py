"""Hook that logs the results of a run where its trainings are logged: MLflow, Weights & Biases."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kedro.framework.context import KedroContext
from kedro.framework.hooks import hook_impl
from kedro.io import DataCatalog

from cvl_pipeline.kedro.configuration import CheckedConfigLoader
from cvl_pipeline.kedro.parameters import RunParameters, check_parameters
from cvl_pipeline.schema import effective, flattened

REPORTS = ("dynamics_report", "value_report", "metrics")
"""Artifacts whose numbers are logged; the first part of their names there is the artifact's."""
CURVES_ALONE = "tensorboard"
"""The logger that shows how a training went, but does not compare runs by their results."""


class LogResults:
    """Logs all parameters and the reports that this run made, as one run ``<dataset>/seed_<n>/results``."""

    _loader: CheckedConfigLoader

    def __init__(self) -> None:
        """Start without reports."""
        self._reports: dict[str, Mapping[str, Any]] = {}

    @hook_impl
    def after_context_created(self, context: KedroContext) -> None:
        """Keep the configuration loader, which knows the folders."""
        loader = context.config_loader
        assert isinstance(loader, CheckedConfigLoader)  # set in settings.py
        self._loader = loader

    @hook_impl
    def before_pipeline_run(self) -> None:
        """Forget the reports of an earlier run in this process."""
        self._reports = {}

    @hook_impl
    def after_node_run(self, outputs: dict[str, Any]) -> None:
        """Keep the reports."""
        self._reports |= {name: outputs[name] for name in REPORTS if name in outputs}

    @hook_impl(trylast=True)
    def after_pipeline_run(self, catalog: DataCatalog) -> None:
        """Log the results, after the artifacts are saved and unlocked; raises InputError if a logger cannot write."""
        if not self._reports:
            return
        parameters = check_parameters(catalog.load("parameters"))
        names = loggers_of_results(parameters)
        if not names:
            return
        from cvl_pipeline.training.loggers import log_results  # imports Lightning

        place = f"{parameters.dataset.folder}/seed_{parameters.seed}"
        if parameters.reward.folder:
            place = f"{place}/{parameters.reward.folder}"
        numbers = {
            f"{report}/{name}": float(value)
            for report, values in self._reports.items()
            for name, value in values.items()
            if isinstance(value, int | float) and name != "seed"
        }
        folder = self._loader.local(f"08_reporting/{place}/logs/results")
        log_results(names, folder, effective(parameters.stages), numbers)


def loggers_of_results(parameters: RunParameters) -> list[str]:
    """Return the loggers, but TensorBoard, that any training of the run uses."""
    values = flattened(parameters.model_dump(mode="json"))
    chosen = {name for field, names in values.items() if field.endswith("training.loggers") for name in names}
    return sorted(chosen - {CURVES_ALONE})
