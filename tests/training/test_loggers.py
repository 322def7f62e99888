from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.loggers import TensorBoardLogger

from cvl_pipeline.errors import InputError
from cvl_pipeline.testing.builders import names_in, training_parameters
from cvl_pipeline.training import loggers
from cvl_pipeline.training.fit import fit
from cvl_pipeline.training.loggers import database, log_results, make_loggers, run_name
from tests.training.toy import LineFit


@pytest.mark.filterwarnings("ignore")  # of tensorboard's own imports
def test_tensorboard_receives_every_metric(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    training = training_parameters(steps=60, validation_interval=20, loggers="tensorboard")
    history = fit(LineFit(training, 0), description="test", logs=tmp_path)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    written = {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    assert set(history.columns) - {"step"} <= set(written)
    assert "throughput/steps_per_second" in written
    (begin,) = [
        HParamsPluginData.FromString(events.SummaryMetadata(tag).plugin_data.content).session_start_info
        for tag in events.Tags()["tensors"] + ["_hparams_/session_start_info"]
        if tag.endswith("session_start_info")
    ]
    assert begin.hparams["steps"].number_value == 60
    assert begin.hparams["seed"].number_value == 0
    for name in ("train/loss", "validation/slope"):
        assert [step for step, _ in written[name]] == [20, 40, 60]
        assert [value for _, value in written[name]] == pytest.approx(history[name].tolist(), rel=1e-6)


def test_without_tensorboard_only_metrics_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loggers, "find_spec", lambda _: None)
    training = training_parameters(loggers="tensorboard")
    fit(LineFit(training, 0), description="test", logs=tmp_path)
    assert names_in(tmp_path) == ["metrics.csv"]


@pytest.mark.parametrize("name", ["mlflow", "wandb"])
def test_missing_logger_is_named(tmp_path: Path, name: str) -> None:
    if find_spec(name) is not None:
        pytest.skip(f"{name} is installed here")
    with pytest.raises(
        InputError, match=rf"{name} is not installed; run: pip install 'cvl-pipeline\[{name}\]'$"
    ):
        fit(LineFit(training_parameters(loggers=name), 0), description="test", logs=tmp_path)
    assert not list(tmp_path.rglob("metrics.csv"))


def test_no_logger_is_created_by_default(tmp_path: Path) -> None:
    assert make_loggers((), tmp_path) == []
    assert names_in(tmp_path) == []


@pytest.mark.filterwarnings("ignore")  # of tensorboard's own imports
@pytest.mark.parametrize("names", ["", "tensorboard"])
def test_a_folder_that_is_moved_ends_the_training_with_one_line(tmp_path: Path, names: str) -> None:
    folder = tmp_path / "data" / "logs"

    def move(row: Mapping[str, float]) -> None:
        if row["step"] == 40:
            (tmp_path / "data").rename(tmp_path / "moved")

    training = training_parameters(steps=200, validation_interval=20, loggers=names)
    with pytest.raises(InputError, match=r"logs/metrics\.csv was moved or deleted during training; move"):
        fit(LineFit(training, 0), description="test", logs=folder, watch=move)
    assert names_in(tmp_path) == ["moved"]  # the folder is not created again


def test_a_logger_that_fails_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorboard")

    def fail(*_: object, **__: object) -> None:
        raise ConnectionError("the server\nis gone")

    monkeypatch.setattr(TensorBoardLogger, "log_metrics", fail)
    training = training_parameters(loggers="tensorboard")
    message = (
        r"training\.loggers: TensorBoard cannot write \(ConnectionError: the server is gone\); repair it"
    )
    with pytest.raises(InputError, match=message):
        fit(LineFit(training, 0), description="test", logs=tmp_path)


def test_runs_are_named_after_their_folders(tmp_path: Path) -> None:
    data = tmp_path / "data"
    reporting = data / "08_reporting"
    assert run_name(reporting / "door/seed_0/logs/cvl") == "door/seed_0/cvl"
    assert run_name(reporting / "door/seed_0/success/logs/sarsa/q") == "door/seed_0/success/sarsa/q"
    assert run_name(tmp_path / "experiments/critic") == "experiments/critic"
    assert database(reporting / "door/seed_0/logs/cvl") == reporting / "mlflow.db"
    assert database(tmp_path / "critic") == tmp_path / "critic/mlflow.db"


@pytest.mark.filterwarnings("ignore")  # of tensorboard's own imports
def test_training_that_began_without_logs_logs_all_rows(tmp_path: Path) -> None:
    """A fleet begins like this."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    training = training_parameters(
        steps=60, validation_interval=20, loggers="tensorboard", checkpoint_seconds=1e-9
    )
    with pytest.raises(RuntimeError, match="the machine went away"):
        fit(LineFit(training, 0, fail_at=50), description="test", checkpoints=tmp_path / "c")
    fit(LineFit(training, 0), description="test", checkpoints=tmp_path / "c", logs=tmp_path / "logs")
    events = EventAccumulator(str(tmp_path / "logs/tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("train/loss")] == [20, 40, 60]


@pytest.fixture
def mlflow(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The client of MLflow, without a server."""
    module = pytest.importorskip("mlflow")
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)
    return module


@pytest.mark.filterwarnings("ignore")  # of mlflow's own imports
def test_resumed_training_goes_on_in_its_run_of_mlflow(tmp_path: Path, mlflow: Any) -> None:
    logs = tmp_path / "08_reporting/door/seed_0/logs/cvl"
    training = training_parameters(
        steps=60, validation_interval=20, loggers="mlflow", checkpoint_seconds=1e-9
    )
    with pytest.raises(RuntimeError, match="the machine went away"):
        fit(LineFit(training, 0, fail_at=50), description="test", checkpoints=tmp_path / "c", logs=logs)
    client = mlflow.MlflowClient(f"sqlite:///{database(logs)}")
    experiment = client.get_experiment_by_name("cvl-pipeline").experiment_id
    (stopped,) = client.search_runs([experiment])
    assert stopped.info.status == "FAILED"
    history = fit(LineFit(training, 0), description="test", checkpoints=tmp_path / "c", logs=logs)
    (run,) = client.search_runs([experiment])
    assert (run.info.run_id, run.info.status) == (stopped.info.run_id, "FINISHED")
    assert run.info.run_name == "door/seed_0/cvl"
    assert run.data.tags["group"] == "door/seed_0"
    assert (run.data.params["steps"], run.data.params["seed"]) == ("60", "0")
    for name in ("train/loss", "validation/slope"):
        logged = client.get_metric_history(run.info.run_id, name)
        assert [point.step for point in logged] == [20, 40, 60]
        assert [point.value for point in logged] == pytest.approx(history[name].tolist())

    log_results(
        ["mlflow"], logs.parent / "results", {"dataset.task": "door"}, {"metrics/cvl.success_rate": 0.5}
    )
    results = next(run for run in client.search_runs([experiment]) if run.info.run_name.endswith("results"))
    assert results.info.status == "FINISHED"
    assert results.data.params == {"dataset.task": "door"}
    assert results.data.metrics == {"metrics/cvl.success_rate": 0.5}


def test_a_store_that_mlflow_refuses_is_one_line(
    tmp_path: Path, mlflow: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nonsense://nowhere")
    with pytest.raises(InputError, match=r"^training\.loggers: MLflow cannot write \("):
        make_loggers(("mlflow",), tmp_path)


@pytest.mark.filterwarnings("ignore")  # of wandb's own imports
def test_every_training_has_a_run_of_weights_and_biases(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    training = training_parameters(steps=20, validation_interval=20, loggers="wandb")
    for name in ("critic", "cvl"):  # in one process
        fit(LineFit(training, 0), description="test", logs=tmp_path / name)
        assert wandb.run is None
        (folder,) = (tmp_path / name / "wandb").glob("offline-run-*")
        (file,) = folder.glob("run-*.wandb")
        content = file.read_bytes()
        assert b"train/loss" in content
        assert b"validation_interval" in content  # a parameter
