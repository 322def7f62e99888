"""Bad input gives one line with fault and fix, a non-zero exit status, and overwrites nothing."""

from __future__ import annotations

import pytest

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
        (["--params", "dataset.taks=reach-v3"], ["dataset.taks", "did you mean 'task'", "episode_steps"]),
        (["--params", "policy_extraction.objective=ddpg_bc,policy_extraction.beta=1"],
         ["policy_extraction.beta", "it belongs to objective awr", "alpha"]),
        (["--params", "policy_extraction.baseline_actions=2"], ["is now 'policy_extraction.state_value.actions'"]),
        (["--params", "evaluation.environment=..."], ["--params cannot be read", "field=value"]),
        (["--params", "sede=1"], ["sede", "did you mean 'seed'"]),
        (["--params", "contrastive_dynamics.training.setps=1"], ["training.setps", "did you mean 'steps'"]),
        (["--params", "dataset.episodes=1"], ["dataset.episodes", "1", "greater than or equal to 2"]),
        (["--params", "dataset.name=../elsewhere"], ["dataset.name", "../elsewhere", "names a folder"]),
        (["--params", "contrastive_dynamics.loss=infonc"], ["infonc", "did you mean infonce?"]),
        (["--params", "seed=7", "--pipelines", "value_readout"],
         ["critic", "kedro run --pipelines data_ingestion,contrastive_dynamics --env smoke --params seed=7"]),
        (["--pipelines", "value_reedout"], ["value_reedout", "did you mean value_readout"]),
        (["--tags", "reporting"], ["unknown tag", "reporting", "report"]),
        (["--env", "smok"], ["smok"]),
        (["--nodes", "value_readout.reprt"], ["value_readout.reprt", "value_readout.report"]),
        (["--nodes", "policy_extraction.extract"], ["is now 'policy_extraction.train_cvl'"]),
    ],
)  # fmt: skip
def test_a_mistake_on_the_command_line(
    kedro: Forks, finished: FinishedRun, arguments: list[str], words: list[str]
) -> None:
    assert_refused(kedro, finished.project, arguments, *words)


def test_a_truncated_artifact(kedro: Forks, scratch: Project) -> None:
    path = scratch.artifact("critic.safetensors")
    path.write_bytes(path.read_bytes()[:-100])
    assert_refused(
        kedro, scratch, ["--pipelines", "value_readout"], "critic.safetensors", "damaged", "delete it"
    )


def test_a_foreign_artifact(kedro: Forks, scratch: Project) -> None:
    path = scratch.artifact("critic.safetensors")
    path.write_bytes(scratch.artifact("cvl_policy.safetensors").read_bytes())
    assert_refused(
        kedro, scratch, ["--pipelines", "value_readout"], "critic.safetensors", "policy, not a critic"
    )


def test_a_flipped_bit(kedro: Forks, scratch: Project) -> None:
    path = scratch.artifact("rewards.safetensors")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert_refused(kedro, scratch, ["--pipelines", "value_readout"], "rewards.safetensors", "checksum")


def test_a_damaged_table_that_only_the_last_node_reads(kedro: Forks, scratch: Project) -> None:
    path = scratch.artifact("bc_history.parquet")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert_refused(
        kedro, scratch, ["--from-nodes", "policy_extraction.train_cvl"], "bc_history.parquet", "damaged"
    )
