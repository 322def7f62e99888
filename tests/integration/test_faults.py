"""Bad input gives one line with fault and fix, a non-zero exit status, and overwrites nothing."""

from __future__ import annotations

import pytest

from tests.integration.conftest import FinishedRun, Project


def assert_refused(project: Project, arguments: list[str], *words: str) -> None:
    before = project.fingerprints()
    result = project.kedro("run", *arguments)
    assert result.returncode != 0
    lines = [line for line in result.stdout.splitlines() if line.strip()]
    assert len(lines) == 1, result.stdout
    assert lines[0].startswith("Error: ")
    for word in words:
        assert word in lines[0]
    assert project.fingerprints() == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--params", "dataset.task=rech-v3"], ["rech-v3", "reach-v3"]),
        (["--params", "dataset.taks=reach-v3"], ["dataset.taks", "did you mean 'task'", "episode_steps"]),
        (["--params", "sede=1"], ["sede", "did you mean 'seed'"]),
        (["--params", "contrastive_dynamics.training.setps=1"], ["training.setps", "did you mean 'steps'"]),
        (["--params", "dataset.episodes=1"], ["dataset.episodes", "1", "greater than or equal to 2"]),
        (["--params", "dataset.name=../elsewhere"], ["dataset.name", "../elsewhere", "names a folder"]),
        (["--params", "contrastive_dynamics.loss=infonc"], ["infonc", "symmetric_infonce"]),
        (["--params", "seed=7", "--pipelines", "value_readout"], ["critic", "--pipelines data_ingestion"]),
        (["--pipelines", "value_reedout"], ["value_reedout", "did you mean value_readout"]),
        (["--tags", "reporting"], ["unknown tag", "reporting", "report"]),
        (["--env", "smok"], ["smok"]),
        (["--nodes", "value_readout.reprt"], ["value_readout.reprt", "value_readout.report"]),
    ],
)
def test_a_mistake_on_the_command_line(finished: FinishedRun, arguments: list[str], words: list[str]) -> None:
    assert_refused(finished.project, arguments, *words)


def test_a_truncated_artifact(scratch: Project) -> None:
    path = scratch.artifact("06_models", "critic.safetensors")
    path.write_bytes(path.read_bytes()[:-100])
    assert_refused(scratch, ["--pipelines", "value_readout"], "critic.safetensors", "damaged", "delete it")


def test_a_foreign_artifact(scratch: Project) -> None:
    path = scratch.artifact("06_models", "critic.safetensors")
    path.write_bytes(scratch.artifact("06_models", "policy.safetensors").read_bytes())
    assert_refused(scratch, ["--pipelines", "value_readout"], "critic.safetensors", "policy, not a critic")


def test_a_flipped_bit(scratch: Project) -> None:
    path = scratch.artifact("01_raw", "rewards.safetensors")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert_refused(scratch, ["--pipelines", "value_readout"], "rewards.safetensors", "checksum")


def test_a_damaged_table_that_only_the_last_node_reads(scratch: Project) -> None:
    path = scratch.artifact("07_model_output", "bc_history.parquet")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert_refused(scratch, ["--from-nodes", "policy_extraction.extract"], "bc_history.parquet", "damaged")
