from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cvl_pipeline.episodes.container import Rewards, Transitions
from cvl_pipeline.errors import InputError
from cvl_pipeline.sources.load import SOURCES, load
from cvl_pipeline.sources.parameters import DatasetParameters
from cvl_pipeline.testing.builders import DATASET
from tests.sources import logs
from tests.sources.rows import GROUPS

COLUMNS: dict[str, Any] = DATASET["columns"] | {
    "observations": "obs_*", "actions": "act_*", "next_observations": "next_*", "rewards": "reward",
    "terminated": "fell", "truncated": None, "episode": "episode",
}  # fmt: skip
DEMOS: dict[str, Any] = DATASET["columns"] | GROUPS


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Transitions, Rewards]:
    folder = tmp_path_factory.mktemp("logs")
    collected = logs.collect_hopper(6)
    logs.write_all(folder, *collected)
    return folder, *collected


def _load(**changes: Any) -> tuple[Transitions, Rewards]:
    return load(DatasetParameters(**(DATASET | changes)), seed=0, workers=1)


def test_every_format_gives_the_same_episodes_back(written: tuple[Path, Transitions, Rewards]) -> None:
    folder, transitions, rewards = written
    assert transitions.terminated.all()
    for changes in (
        {"source": "d4rl", "task": "hopper-random-v2", "path": str(folder / "hopper.hdf5")},
        {"source": "minari", "task": logs.MINARI_ID, "path": str(folder / "minari")},
        {
            "source": "files", "path": str(folder / "hopper.csv"), "columns": COLUMNS,
            "action_low": "-1 -1 -1", "action_high": "1 1 1",
        },
        {
            "source": "files", "path": str(folder / "demos.hdf5"), "columns": DEMOS,
            "action_low": "-1 -1 -1", "action_high": "1 1 1",
        },
    ):  # fmt: skip
        found, labels = _load(**changes)
        for name in Transitions.__dataclass_fields__:
            assert torch.equal(getattr(found, name), getattr(transitions, name)), (changes["source"], name)
        torch.testing.assert_close(labels.rewards, rewards.rewards, rtol=0.0, atol=0.0)


@pytest.mark.parametrize(
    ("changes", "size"),
    [
        ({"task": "reach-v3"}, 39),
        ({"task": "MT10"}, 49),
        ({"source": "pointmaze", "task": "PointMaze_UMaze-v3"}, 8),
        ({"source": "gymnasium", "task": "CartPole-v1"}, 4),
    ],
)
def test_every_simulator_collects_what_its_seed_determines(changes: dict[str, Any], size: int) -> None:
    (one, labels), (other, _) = (_load(**changes) for _ in range(2))
    assert one.observations.shape[1] == size
    assert one.episodes == DATASET["episodes"]
    assert not labels.missing
    assert torch.equal(one.observations, other.observations)
    assert torch.equal(one.actions, other.actions)


def test_random_actions_differ_from_episode_to_episode() -> None:
    transitions, _ = _load(source="gymnasium", task="CartPole-v1", random_hold=1)
    assert transitions.discrete
    beginnings = {
        tuple(transitions.actions[start : start + 8, 0].tolist()) for start in transitions.episode_starts[:-1]
    }
    assert len(beginnings) > 1


def test_a_log_without_rewards_is_loaded_and_says_so(written: tuple[Path, Transitions, Rewards]) -> None:
    _, labels = _load(
        source="files", path=str(written[0] / "hopper.csv"), columns=COLUMNS | {"rewards": None}
    )
    assert labels.missing


def test_a_log_that_is_partly_without_rewards_is_refused(
    written: tuple[Path, Transitions, Rewards], tmp_path: Path
) -> None:
    lines = (written[0] / "hopper.csv").read_text().splitlines()
    cells = lines[3].split(",")
    cells[lines[0].split(",").index("reward")] = ""
    lines[3] = ",".join(cells)
    (tmp_path / "hopper.csv").write_text("\n".join(lines))
    with pytest.raises(InputError, match=r"'reward'.*row 2"):
        _load(source="files", path=str(tmp_path / "hopper.csv"), columns=COLUMNS)


def test_every_source_of_the_parameters_can_be_loaded() -> None:
    source = DatasetParameters.model_fields["source"].annotation
    assert set(SOURCES) == set(getattr(source, "__args__", ()))


def test_actions_beyond_the_bounds_are_refused(written: tuple[Path, Transitions, Rewards]) -> None:
    largest = float(np.abs(written[1].actions[:, 0]).max())
    with pytest.raises(InputError, match="lies outside"):
        _load(
            source="files", path=str(written[0] / "hopper.csv"), columns=COLUMNS,
            action_low=f"{-0.5 * largest} -1 -1", action_high=f"{0.5 * largest} 1 1",
        )  # fmt: skip
