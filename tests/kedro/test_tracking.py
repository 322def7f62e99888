from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cvl_pipeline.errors import InputError
from cvl_pipeline.kedro.settings import HOOKS
from cvl_pipeline.kedro.tracking import LogResults, loggers_of_results
from tests.kedro.sessions import make_catalog, make_loader
from tests.reports.test_plots import METRICS

LOGGING = {"training": {"loggers": "tensorboard mlflow"}}


def _end_of_run(root: Path, **given: Any) -> None:
    """Let the hook see a run that makes metrics."""
    loader = make_loader(data={"root": str(root)}, **given)
    hook = LogResults()
    hook.after_context_created(SimpleNamespace(config_loader=loader))  # type: ignore[arg-type]
    hook.before_pipeline_run()
    hook.after_node_run({"metrics": METRICS, "cvl_policy": object()})
    hook.after_pipeline_run(make_catalog(loader, root))


def test_results_go_to_the_loggers_of_any_training_but_tensorboard() -> None:
    def names(**given: Any) -> list[str]:
        return loggers_of_results(make_loader(**given).run_parameters())

    assert names() == []
    assert names(contrastive_dynamics=LOGGING) == ["mlflow"]
    assert names(policy_extraction=LOGGING) == ["mlflow"]
    assert names(baselines={"iql": LOGGING}, policy_extraction={"training": {"loggers": "wandb"}}) == [
        "mlflow", "wandb",
    ]  # fmt: skip


def test_by_default_a_run_logs_no_results(tmp_path: Path) -> None:
    _end_of_run(tmp_path)
    assert list(tmp_path.rglob("*results*")) == []
    assert [type(hook).__name__ for hook in HOOKS].count("LogResults") == 1


def test_a_missing_logger_of_results_is_named(tmp_path: Path) -> None:
    if find_spec("mlflow") is not None:
        pytest.skip("mlflow is installed here")
    with pytest.raises(
        InputError, match=r"mlflow is not installed; run: pip install 'cvl-pipeline\[mlflow\]'"
    ):
        _end_of_run(tmp_path, policy_extraction=LOGGING)


@pytest.mark.filterwarnings("ignore")  # of mlflow's own imports
def test_results_are_a_run_of_mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    _end_of_run(tmp_path, policy_extraction=LOGGING, reward={"source": "success"}, seed=3)
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/08_reporting/mlflow.db")
    (run,) = client.search_runs([client.get_experiment_by_name("cvl-pipeline").experiment_id])
    assert run.info.run_name == "door-open-v3/seed_3/success/results"
    assert run.data.params["seed"] == "3"
    assert run.data.params["contrastive_dynamics.training.steps"] == "3000"
    assert run.data.metrics["metrics/cvl.success_rate"] == METRICS["cvl.success_rate"]
