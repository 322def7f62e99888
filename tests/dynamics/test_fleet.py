"""A fleet trains as single trainings do, and they resume from its checkpoints."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from cvl_pipeline.dynamics.fleet import Fleet, Member, check_fleet, train_fleet
from cvl_pipeline.dynamics.module import ContrastiveDynamics, TrainedCritic, train_dynamics
from cvl_pipeline.dynamics.parameters import DynamicsParameters
from cvl_pipeline.episodes.data import EpisodeData
from cvl_pipeline.errors import InputError
from cvl_pipeline.io.checked import read_checkpoint
from cvl_pipeline.testing.builders import dynamics_parameters, make_transitions
from cvl_pipeline.training.module import DRAWN

CPU = torch.device("cpu")
SEEDS = (3, 8, 11)
STEPS = {"steps": 130, "validation_interval": 55, "batch_size": 16, "weight_decay": 0.5}
"""Chunks of 25, 25, 5, 25, 25, 5 and 20 steps; more steps than one block of batches."""
PARAMETERS = dynamics_parameters(STEPS, hidden=(16, 8), segments_per_episode=2)


def make_log(seed: int) -> EpisodeData:
    lengths = [9 + seed % 3, 12, 7, 10, 11, 8]
    return EpisodeData.prepare(make_transitions(lengths, [True, False] * 3, seed=seed), seed=seed)


@pytest.fixture
def logs() -> list[EpisodeData]:
    """Two members have the same log, the other has its own, with other statistics."""
    return [make_log(1), make_log(2), make_log(1)]


def members_of(logs: list[EpisodeData], folder: Path) -> list[Member]:
    return [Member(data, seed, folder / f"seed_{seed}") for seed, data in zip(SEEDS, logs, strict=True)]


def checkpoint(member: Member) -> dict[str, Any]:
    (path,) = member.checkpoints.glob("*/last.ckpt")
    return read_checkpoint(path)


def single(member: Member, parameters: DynamicsParameters = PARAMETERS) -> TrainedCritic:
    return train_dynamics(member.data, parameters, member.seed, checkpoints=member.checkpoints)


def interrupted(member: Member, step: int) -> None:
    """Train alone until the checkpoint of a step is written."""
    training = PARAMETERS.training.model_copy(update={"checkpoint_steps": 5, "checkpoint_seconds": 1e9})
    parameters = PARAMETERS.model_copy(update={"training": training})

    class Stopped(Exception):  # noqa: N818
        pass

    step_of = ContrastiveDynamics.training_step

    def stop(module: ContrastiveDynamics, batch: int) -> None:
        if module.global_step == step:
            raise Stopped
        step_of(module, batch)

    with pytest.MonkeyPatch.context() as patch, contextlib.suppress(Stopped):
        patch.setattr(ContrastiveDynamics, "training_step", stop)
        single(member, parameters)


def assert_near(value: Any, expected: Any, path: str = "") -> None:
    """Compare nested states: the same structure, tensors and numbers equal up to rounding."""
    assert type(value) is type(expected), path
    if isinstance(value, dict):
        assert value.keys() == expected.keys(), path
        for key in value:
            assert_near(value[key], expected[key], f"{path}.{key}")
    elif isinstance(value, list | tuple):
        assert len(value) == len(expected), path
        for number, (part, other) in enumerate(zip(value, expected, strict=True)):
            assert_near(part, other, f"{path}[{number}]")
    elif isinstance(value, torch.Tensor):
        torch.testing.assert_close(value, expected, atol=1e-4, rtol=1e-4, msg=lambda text: path + text)
    elif isinstance(value, float):
        assert value == pytest.approx(expected, rel=1e-4, abs=1e-5), path
    else:
        assert value == expected, path


def test_checkpoints_are_those_of_single_trainings(logs: list[EpisodeData], tmp_path: Path) -> None:
    fleet, alone = members_of(logs, tmp_path / "fleet"), members_of(logs, tmp_path / "alone")
    assert train_fleet(fleet, PARAMETERS) == {}
    for member, other in zip(fleet, alone, strict=True):
        interrupted(other, 110)
        state, expected = checkpoint(member), checkpoint(other)
        assert state["global_step"] == 110
        assert_near(state, expected)


def test_trainings_resume_from_a_fleets_checkpoints(
    logs: list[EpisodeData], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fleet, alone = members_of(logs, tmp_path / "fleet"), members_of(logs, tmp_path / "alone")
    train_fleet(fleet, PARAMETERS)
    for member, other in zip(fleet, alone, strict=True):
        caplog.clear()
        with caplog.at_level("INFO"):
            trained = single(member)
        assert "Resuming from step 110" in caplog.text
        expected = single(other)
        assert trained.history.columns.tolist() == expected.history.columns.tolist()
        assert trained.history["step"].tolist() == [55, 110, 130]
        np.testing.assert_allclose(trained.history, expected.history, rtol=1e-4, atol=1e-5)
        assert_near(trained.critic.state_dict(), expected.critic.state_dict())
        assert not list(member.checkpoints.glob("*"))


def test_members_that_are_done_are_not_trained_again(
    logs: list[EpisodeData], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    members = members_of(logs, tmp_path)
    interrupted(members[1], 50)  # on its own: the fleet's checkpoint replaces it
    train_fleet(members[1:], PARAMETERS)
    assert checkpoint(members[1])["global_step"] == 110
    sizes = []
    create = Fleet.__init__

    def counted(self: Fleet, modules: Any, *arguments: Any, **named: Any) -> None:
        sizes.append(len(modules))
        create(self, modules, *arguments, **named)

    monkeypatch.setattr(Fleet, "__init__", counted)
    train_fleet(members, PARAMETERS)
    train_fleet(members, PARAMETERS)
    assert sizes == [1]


def test_a_member_that_diverges_does_not_end_the_others(logs: list[EpisodeData], tmp_path: Path) -> None:
    members = members_of(logs, tmp_path)
    transitions = members[1].data.transitions
    transitions.actions[3:] = torch.nan
    (failure,) = train_fleet(members, PARAMETERS).items()
    assert failure[0] == SEEDS[1]
    assert failure[1].startswith("the loss became nan at step 0 (seed 8; batch 0")
    assert not list(members[1].checkpoints.glob("*/*"))
    for member in (members[0], members[2]):
        assert np.isfinite(single(member).history["train/loss"]).all()


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"loss": {"name": "infonce"}}, "loss.name=infonce"),
        ({"loss": {"name": "symmetric_infonce", "logsumexp_penalty": 0.5}}, "loss.logsumexp_penalty=0.5"),
        ({"encoder": {"name": "convolutional"}}, "encoder.name=convolutional"),
        ({"representation": "raw"}, "representation=raw"),
        ({"temperature": 0.02}, "temperature=0.02"),
        ({"learned_temperature": True}, "learned_temperature"),
        ({"horizon_conditioning": True}, "horizon_conditioning"),
        ({"keep": "best"}, "keep=best"),
        ({"patience": 3}, "patience=3"),
        ({"training": {**STEPS, "precision": "bfloat16"}}, "training.precision=bfloat16"),
        ({"training": {**STEPS, "devices": 2}}, "training.devices=2, nodes=1"),
        ({"training": {"steps": 25, "validation_interval": 30}}, "training.steps=25"),
    ],
)
def test_what_a_fleet_cannot_do_is_one_line(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(InputError, match=f"^contrastive_dynamics.{re.escape(named)}.* use kedro run"):
        check_fleet(dynamics_parameters(**changes))
    check_fleet(dynamics_parameters(STEPS))


@pytest.mark.parametrize("size", [4, 3])
def test_members_have_vectors_of_equal_sizes(logs: list[EpisodeData], tmp_path: Path, size: int) -> None:
    other = EpisodeData.prepare(make_transitions([9, 9], [True, False], observation_size=size, seed=5))
    members = [Member(logs[0], 0, tmp_path / "0"), Member(other, 1, tmp_path / "1")]
    if size == 3:
        assert train_fleet(members, PARAMETERS) == {}
        return
    with pytest.raises(
        InputError, match=r"equal sizes.* seed 1 have the shapes \(4,\) and \(2,\), those of seed 0"
    ):
        train_fleet(members, PARAMETERS)


def modules_of(logs: list[EpisodeData]) -> list[ContrastiveDynamics]:
    return [ContrastiveDynamics(data, PARAMETERS, seed) for seed, data in zip(SEEDS, logs, strict=True)]


def test_members_draw_the_batches_of_single_trainings(logs: list[EpisodeData]) -> None:
    fleet = Fleet(modules_of(logs), CPU)
    block = fleet.block(1)
    assert block.shape == (DRAWN, 4, 3, 16)
    for place, module in enumerate(modules_of(logs)):
        module.on_fit_start()
        draws, _ = module.block(DRAWN)
        rows, anchors, futures, absorbed = block[2, :, place]
        log = module._transitions
        assert torch.equal(fleet._observations[rows], log.observations[draws[2].rows])
        assert torch.equal(fleet._observations[futures], log.observations[draws[2].future_rows])
        assert torch.equal(fleet._actions[anchors], log.actions[draws[2].anchors])
        assert torch.equal(absorbed.bool(), draws[2].absorbed)
    distinct = len(logs[0].transitions.observations) + len(logs[1].transitions.observations)
    assert len(fleet._observations) == distinct, "equal logs are stored once"


class Graph:
    """A CUDA graph that calls the captured function again."""

    captured: Any = None

    def replay(self) -> None:
        self.captured()


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = SimpleNamespace(wait_stream=lambda other: None)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda given: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)

    @contextlib.contextmanager
    def graph(of: Graph, **_: Any) -> Iterator[None]:
        take, calls = Fleet._take, []

        def record(fleet: Fleet) -> None:
            calls.append(fleet)

        monkeypatch.setattr(Fleet, "_take", record)
        yield
        monkeypatch.setattr(Fleet, "_take", take)
        of.captured = lambda: take(calls[0])

    monkeypatch.setattr(torch.cuda, "graph", graph)


@pytest.mark.usefixtures("cuda")
def test_capturing_leaves_the_weights(logs: list[EpisodeData]) -> None:
    fleets = [Fleet(modules_of(logs), CPU, captured) for captured in (False, True)]
    before = [fleet.values.clone() for fleet in fleets]
    assert torch.equal(*before)
    for step in range(5):
        assert torch.equal(*(fleet.step(step) for fleet in fleets))
    assert torch.equal(fleets[0].values, fleets[1].values)
    assert not torch.equal(before[0], fleets[0].values)
