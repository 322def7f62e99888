"""Bad input gives one line with fault and fix, a non-zero exit status, and overwrites nothing."""

from __future__ import annotations

import pytest

from tests.artifacts import with_flipped_bit
from tests.integration.conftest import FinishedRun, Forks, Project


def assert_refused(kedro: Forks, project: Project, arguments: list[str], *words: str) -> None:
    before = project.fingerprints()
    output = kedro.kedro(project, "run", *arguments, status=1)
    lines = [line for line in output.splitlines() if line.strip()]
    assert len(lines) == 1, output
    assert lines[0].startswith("Error: ")
    for word in words:
        assert word in lines[0]
    assert project.fingerprints() == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--params", "dataset.task=rech-v3"], ["rech-v3", "reach-v3"]),
        (["--params", "policy_extraction.objective=ddpg_bc,policy_extraction.beta=1"],
         ["policy_extraction.beta", "it belongs to objective awr", "alpha"]),
        (["--params", "evaluation.environment=..."], ["evaluation.environment=... cannot be read", "field=value"]),
        (["--params", "seed=7", "--pipelines", "value_readout"],
         ["critic", "kedro run --pipelines data_ingestion,contrastive_dynamics --env smoke --params seed=7"]),
        (["--pipelines", "value_reedout"], ["value_reedout", "did you mean value_readout"]),
        (["--env", "smok"], ["smok"]),
        (["--params", "tuned=true"], ["best_parameters.json does not exist", "search"]),
        (["--pipelines", "tuning", "--params", "tuning.storage=nowhere"], ["nowhere", "credentials"]),
    ],
)  # fmt: skip
def test_a_mistake_on_the_command_line(
    kedro: Forks, finished: FinishedRun, arguments: list[str], words: list[str]
) -> None:
    """One of each kind; tests/kedro has the others, without a session."""
    assert_refused(kedro, finished.project, arguments, *words)


def test_a_flipped_bit(kedro: Forks, scratch: Project) -> None:
    path = scratch.artifact("rewards.safetensors")
    path.write_bytes(with_flipped_bit(path.read_bytes(), -1))
    assert_refused(kedro, scratch, ["--pipelines", "value_readout"], "rewards.safetensors", "checksum")


def test_a_damaged_table_that_only_the_last_node_reads(kedro: Forks, scratch: Project) -> None:
    path = scratch.artifact("bc_history.parquet")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert_refused(
        kedro, scratch, ["--from-nodes", "policy_extraction.train_cvl"], "bc_history.parquet", "damaged"
    )
