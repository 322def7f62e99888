"""The examples run by the commands that their docstrings give."""

from __future__ import annotations

import ast
import json
import re
import shlex
import shutil

import pandas as pd
import pytest

from tests.integration.conftest import DATASET, FinishedRun, Forks, Project, nodes_in
from tests.project import PROJECT

PENDULUM = "source_pendulum-Pendulum-smoke/seed_0"


def _command(example: str) -> list[str]:
    """Arguments of kedro in the docstring of an example."""
    text = ast.get_docstring(ast.parse((PROJECT / "examples" / f"{example}.py").read_text())) or ""
    (line,) = re.findall(r"^    PYTHONPATH=examples kedro (run --env smoke .*)$", text, re.MULTILINE)
    return shlex.split(line)


@pytest.fixture
def project(scratch: Project) -> Project:
    """The finished project with the examples beside it."""
    shutil.copytree(
        PROJECT / "examples", scratch.root / "examples", ignore=shutil.ignore_patterns("__pycache__")
    )
    return scratch


def _ran(kedro: Forks, project: Project, example: str) -> set[str]:
    """Nodes that the example's command runs; artifacts that it does not affect are reused."""
    command = [*_command(example), "--only-missing-outputs"]
    return nodes_in(kedro.kedro(project, *command, on_python_path=["examples"]))


def _metrics(project: Project, dataset: str = DATASET) -> dict[str, float]:
    metrics: dict[str, float] = json.loads(project.artifact("metrics.json", dataset).read_text())
    return metrics


def test_example_objective_trains_the_policy_alone(kedro: Forks, project: Project) -> None:
    assert _ran(kedro, project, "objective_filtered_bc") == {
        "policy_extraction.train_cvl", "policy_extraction.plot", "evaluation.roll_out_cvl",
        "evaluation.score_cvl", "evaluation.summarise", "evaluation.plot", "evaluation.write_page",
    }  # fmt: skip
    history = pd.read_parquet(project.artifact("cvl_history.parquet"))
    assert history["train/share_cloned"].between(0.1, 0.9).all()
    file = project.root / "examples/objective_filtered_bc.py"
    file.write_text(file.read_text().replace("> self.parameters.threshold", ">= self.parameters.threshold"))
    params = _command("objective_filtered_bc")[1:]
    explained = kedro.kedro(project, "artifacts", "status", *params, "--explain", on_python_path=["examples"])
    assert re.search(r"cvl_policy .* stale .* source objective_filtered_bc changed", explained)
    assert re.search(r"critic .* fresh", explained)


def test_example_baseline_is_evaluated_beside_the_others(kedro: Forks, project: Project) -> None:
    nodes = _ran(kedro, project, "baseline_return_weighted")
    assert {"policy_extraction.train_rwbc", "evaluation.roll_out_rwbc"} <= nodes
    assert not {"policy_extraction.train_cvl", "policy_extraction.train_bc"} & nodes
    assert project.artifact("rwbc_policy.safetensors").exists()
    metrics = _metrics(project)
    assert metrics["methods"]["rwbc"] == "rwbc (return-weighted BC)"  # type: ignore[index]
    assert metrics["rwbc.return_mean"] > 0.0


def test_example_encoder_is_part_of_critic_and_policies(kedro: Forks, project: Project) -> None:
    before = {
        name: project.artifact(f"{name}.safetensors").stat().st_size
        for name in ("critic", "cvl_policy", "bc_policy")
    }
    nodes = _ran(kedro, project, "encoder_fourier")
    assert {"contrastive_dynamics.train", "policy_extraction.train_bc", "evaluation.plot"} <= nodes
    assert not any(node.startswith("data_ingestion") for node in nodes)
    for name, size in before.items():  # the first layer takes more inputs
        assert project.artifact(f"{name}.safetensors").stat().st_size > size


def test_example_source_is_collected_and_evaluated(kedro: Forks, project: Project) -> None:
    assert "data_ingestion.ingest" in _ran(kedro, project, "source_pendulum")
    metrics = _metrics(project, PENDULUM)
    assert metrics["behaviour_episodes"] == 12
    assert metrics["cvl.return_mean"] < 0.0
    assert metrics["cvl.success_rate"] is None  # Pendulum reports no success
    data = project.root / "data"
    layers = {
        name: sorted(path.parts[-3] for path in data.glob(f"0*/{name}")) for name in (DATASET, PENDULUM)
    }
    assert layers[PENDULUM] == layers[DATASET]


def test_module_that_is_not_on_the_path_stops_the_run_in_one_line(
    finished: FinishedRun, kedro: Forks
) -> None:
    output = kedro.kedro(finished.project, *_command("objective_filtered_bc"), status=1)
    (line,) = [line for line in output.splitlines() if line.strip()]
    assert line.startswith(
        "Error: parameters: 'policy_extraction.objective' is 'objective_filtered_bc:FilteredBC'"
    )
    assert line.endswith("No module named 'objective_filtered_bc'); is the module on the Python path?")
