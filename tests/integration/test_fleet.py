"""``kedro fleet`` makes the artifacts of several seeds, as ``kedro run`` for each."""

from __future__ import annotations

from pathlib import Path

import torch

from cvl_pipeline.io.artifacts import load_artifact
from tests.integration.conftest import DATASET, REUSE, Forks, Project, copy_project

OTHER = DATASET.replace("seed_0", "seed_1")


def test_a_fleet_makes_the_artifacts_of_every_seed(kedro: Forks, copied: Project, tmp_path: Path) -> None:
    project = copy_project(tmp_path / "project")
    output = kedro.kedro(project, "fleet", "--seeds", "0,1")
    assert output.count("contrastive_dynamics.train ->") == 2
    assert output.count("Resuming from step 40") == 2
    assert "Training 2 contrastive critics" in output
    for dataset in (DATASET, OTHER):
        assert project.artifact("metrics.json", dataset).exists()
        assert not list((project.root / f"data/06_models/{dataset}").glob("checkpoints/critic"))
    # The records are those of ordinary runs, and the critic is that of one, up to rounding.
    for seed in (0, 1):
        assert "Nothing to run: all artifacts are fresh" in kedro.kedro(
            project, *REUSE, "--params", f"seed={seed}"
        )
    critics = [load_artifact(place.artifact("critic.safetensors")) for place in (project, copied)]
    for name, value in critics[0].state_dict().items():
        torch.testing.assert_close(value, critics[1].state_dict()[name], atol=1e-4, rtol=1e-4)

    output = kedro.kedro(project, "fleet", "--seeds", "0-1")
    assert output.count("Nothing to run: all artifacts are fresh") == 4
    assert "Training" not in output

    params = "contrastive_dynamics.training.learning_rate=1e30"
    output = kedro.kedro(project, "fleet", "--seeds", "0,1", "--params", params, status=1)
    assert "Error: 2 of 2 seeds failed, the others are done: the loss became nan at step" in output
    assert "(seed 0; " in output
    assert "(seed 1; " in output
    assert "all that follows" not in output


def test_mistakes_are_one_line(kedro: Forks, copied: Project) -> None:
    for arguments, line in (
        (["--seeds", "3-1"], "Error: --seeds 3-1: '3-1' is not a seed or a range; write seeds such as 0-3,8"),
        (["--seeds", "0", "--params", "seed=1"], "Error: --params seed=... does not go with --seeds"),
        (
            ["--seeds", "0-1", "--params", "contrastive_dynamics.keep=best"],
            "Error: contrastive_dynamics.keep=best is not possible in a fleet; use kedro run for each seed",
        ),
    ):
        output = kedro.kedro(copied, "fleet", *arguments, status=1)
        assert line in output
        assert "Traceback" not in output
