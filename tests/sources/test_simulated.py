from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError

from cvl_pipeline.api import ingest
from cvl_pipeline.environments.collection import Disturbances
from cvl_pipeline.episodes.container import Rewards, Transitions
from cvl_pipeline.sources.base import SOURCES
from cvl_pipeline.sources.simulated import SimulatedSource
from cvl_pipeline.testing.builders import DATASET

SIMULATORS = ("metaworld", "pointmaze", "gymnasium")


def _load(seed: int = 0, **changes: Any) -> tuple[Transitions, Rewards]:
    return ingest(SOURCES.validate(DATASET | changes), seed=seed, workers=1)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "size", "reports_success"),
    [
        ({"task": "reach-v3"}, 39, True),
        ({"task": "MT10"}, 49, True),
        ({"source": "pointmaze", "task": "PointMaze_UMaze-v3"}, 8, True),
        ({"source": "gymnasium", "task": "CartPole-v1"}, 4, False),
    ],
)
def test_the_seed_determines_what_a_simulator_collects(
    changes: dict[str, Any], size: int, reports_success: bool
) -> None:
    (one, labels), (same, same_labels), (other, _) = (_load(seed, **changes) for seed in (0, 0, 1))
    assert one.observations.shape[1] == size
    assert one.episodes == DATASET["episodes"]
    assert not labels.missing
    assert labels.reports_success == reports_success
    assert torch.equal(one.observations, same.observations)
    assert torch.equal(one.actions, same.actions)
    assert torch.equal(labels.rewards, same_labels.rewards)
    assert not torch.equal(one.observations[0], other.observations[0])


@pytest.mark.parametrize("source", SIMULATORS)
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("episodes", 1),
        ("episodes", 2.5),
        ("episode_steps", 0),
        ("noise_max", -0.1),
        ("noise_max", float("inf")),
        ("random_max", 1.01),
        ("random_max", -0.01),
        ("random_hold", 0),
    ],
)
def test_settings_out_of_range_are_refused(source: str, field: str, value: object) -> None:
    with pytest.raises(ValidationError, match=field):
        SOURCES.validate({"source": source, field: value})


@pytest.mark.parametrize("source", SIMULATORS)
def test_a_simulator_disturbs_its_controller_by_its_settings(source: str) -> None:
    values = {"source": source, "noise_max": 0.2, "random_max": 0.6, "random_hold": 7}
    if source == "gymnasium":
        values["policy"] = "tests.sources.test_gymnasium:always_right"
    simulator = SOURCES.create(SOURCES.validate(values))
    assert isinstance(simulator, SimulatedSource)
    assert simulator.disturbances() == Disturbances(noise_max=0.2, random_max=0.6, random_hold=7)
