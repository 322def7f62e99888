"""Batches that are read ahead equal those that a step reads itself, and their thread ends with the training."""

from __future__ import annotations

import signal
import threading
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Generator, Tensor

from cvl_pipeline.dynamics.module import ContrastiveDynamics, train_dynamics
from cvl_pipeline.episodes.container import Transitions
from cvl_pipeline.episodes.sampling import Draws, Segments
from cvl_pipeline.errors import InputError
from cvl_pipeline.io.artifacts import load_artifact, save_artifact
from cvl_pipeline.io.checked import read_checkpoint
from cvl_pipeline.methods.iql import IQL
from cvl_pipeline.objectives.base import OBJECTIVES
from cvl_pipeline.objectives.training import train_policy
from cvl_pipeline.testing.builders import (
    dynamics_parameters,
    make_data,
    make_rewards,
    make_transitions,
    policy_parameters,
)
from cvl_pipeline.training import module as offline
from cvl_pipeline.training import prefetch
from cvl_pipeline.training.fit import fit
from cvl_pipeline.training.prefetch import AHEAD, SHARE, THREAD, Prefetch, fits
from cvl_pipeline.training.processes import own_share
from tests.objectives.toys import episodes, network_q
from tests.training.processes import call_in_processes, wait_for

CPU = torch.device("cpu")


@pytest.fixture
def stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """The log does not fit, as far as training knows."""
    monkeypatch.setattr(offline, "fits", lambda *_: False)


@pytest.fixture(autouse=True)
def _no_thread_remains() -> Iterator[None]:
    yield
    assert not threads()


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == THREAD]


@dataclass(frozen=True)
class Numbers:
    """Rows of several types, of which a copy in one piece must keep each."""

    flags: Tensor
    small: Tensor
    whole: Tensor
    real: Tensor
    picture: Tensor


def numbers(step: int) -> Numbers:
    generator = Generator().manual_seed(step)
    whole = torch.randint(-(2**60), 2**60, (5,), generator=generator)
    return Numbers(
        flags=whole > 0,
        small=whole[::2].to(torch.uint8),
        whole=whole.reshape(5, 1).expand(5, 3),  # not contiguous
        real=torch.randn(3, 0, 2, generator=generator),
        picture=whole.to(torch.uint8).reshape(1, 5, 1).repeat(2, 1, 3),
    )


@pytest.fixture
def make() -> Iterator[Callable[..., Prefetch[Any]]]:
    made: list[Prefetch[Any]] = []

    def prefetching(read: Callable[[int], Any], **options: int) -> Prefetch[Any]:
        made.append(Prefetch(read, CPU, **options))
        return made[-1]

    yield prefetching
    for one in made:
        one.close()


def assert_same(found: Any, expected: Any) -> None:
    assert type(found) is type(expected)
    torch.testing.assert_close(vars(found), vars(expected), rtol=0, atol=0)


def test_every_type_and_shape_is_the_same_after_the_copy(make: Callable[..., Prefetch[Any]]) -> None:
    batches = make(numbers)
    for step in (*range(20), 7, 3, 4, 100):  # also in another order
        assert_same(batches.batch(step), numbers(step))


def test_parts_are_aligned_and_their_batch_is_copied_in_one_piece() -> None:
    tensors = [value.contiguous() for value in vars(numbers(0)).values()]
    buffer = prefetch.packed(tensors)
    for part, tensor in zip(prefetch.views(buffer, tensors), tensors, strict=True):
        assert torch.equal(part, tensor)
        assert part.storage_offset() * part.element_size() % prefetch.ALIGNMENT == 0
        assert part.untyped_storage().data_ptr() == buffer.untyped_storage().data_ptr()


def test_batches_are_read_ahead_and_no_more_than_that(make: Callable[..., Prefetch[Any]]) -> None:
    steps: list[int] = []
    names = set()

    def read(step: int) -> Numbers:
        names.add(threading.current_thread().name)
        steps.append(step)
        return numbers(step)

    batches = make(read, ahead=4)
    batches.batch(0)
    wait_for(lambda: len(steps) == 4)  # without another request
    assert batches._results.qsize() <= 3
    for step in range(1, 10):
        batches.batch(step)
        assert len(steps) <= step + 4
    wait_for(lambda: len(steps) == 13)
    assert steps == list(range(13))
    assert names == {THREAD}


def test_a_step_that_must_wait_is_counted(make: Callable[..., Prefetch[Any]]) -> None:
    goes_on = threading.Event()

    def read(step: int) -> Numbers:
        assert step == 0 or goes_on.wait(60.0)
        return numbers(step)

    batches = make(read)
    batches.batch(0)
    before = batches.waited
    threading.Timer(0.2, goes_on.set).start()
    batches.batch(1)
    assert batches.waited - before > 0.1
    wait_for(lambda: batches._results.qsize() == AHEAD - 1)
    before = batches.waited
    batches.batch(2)
    assert batches.waited - before < 0.1


def test_an_error_of_the_thread_reaches_the_step_with_its_traceback(
    make: Callable[..., Prefetch[Any]],
) -> None:
    def broken_disk(step: int) -> Numbers:
        if step == 3:
            raise OSError("the disk went away")
        return numbers(step)

    batches = make(broken_disk)
    for step in range(3):
        batches.batch(step)
    with pytest.raises(OSError, match="the disk went away") as caught:
        batches.batch(3)
    assert "broken_disk" in [frame.name for frame in traceback.extract_tb(caught.value.__traceback__)]
    assert_same(batches.batch(4), numbers(4))  # it still serves


def test_closing_leaves_requested_batches_unread() -> None:
    first, goes_on = threading.Event(), threading.Event()
    steps: list[int] = []

    def read(step: int) -> Numbers:
        steps.append(step)
        if step == 1:
            first.set()
            assert goes_on.wait(60.0)
        return numbers(step)

    batches = Prefetch(read, CPU)
    batches.batch(0)
    assert first.wait(60.0)
    threading.Timer(0.2, goes_on.set).start()
    batches.close()
    assert steps == [0, 1]
    assert not threads()
    assert_same(batches.batch(5), numbers(5))  # a new thread
    batches.close()
    batches.close()


@pytest.mark.usefixtures("stays")
@pytest.mark.parametrize("conditioned", [False, True])
def test_the_critic_is_that_of_a_log_on_the_device(
    monkeypatch: pytest.MonkeyPatch, transitions: Transitions, conditioned: bool
) -> None:
    parameters = dynamics_parameters(
        horizon_conditioning=conditioned, segments_per_episode=2, training={"steps": 80}
    )
    batches: list[Segments] = []
    kept, kept_history = train_dynamics(
        make_data(transitions, 4), parameters, 0, observer=lambda segments, _: batches.append(segments)
    )
    assert len(batches) == 80  # more than are drawn at once
    monkeypatch.setattr(offline, "fits", fits)
    direct: list[Segments] = []
    critic, history = train_dynamics(
        make_data(transitions, 4), parameters, 0, observer=lambda segments, _: direct.append(segments)
    )
    for one, other in zip(batches, direct, strict=True):
        assert_same(one, other)
    torch.testing.assert_close(kept.state_dict(), critic.state_dict(), rtol=0, atol=0)
    pd.testing.assert_frame_equal(kept_history, history, check_exact=True)


@pytest.mark.parametrize("discrete", [False, True])
@pytest.mark.parametrize("objective", [*OBJECTIVES.names, "examples.objective_filtered_bc:FilteredBC"])
def test_policies_are_those_of_a_log_on_the_device(
    monkeypatch: pytest.MonkeyPatch, objective: str, discrete: bool
) -> None:
    transitions = episodes(discrete)
    data = make_data(transitions, 4, make_rewards(transitions))
    parameters = policy_parameters(objective=objective, training={"steps": 70})
    trained = []
    for answer in (True, False):
        monkeypatch.setattr(offline, "fits", lambda *_, answer=answer: answer)
        trained.append(train_policy(data, parameters, 0, values=network_q(transitions)))
    direct, kept = trained
    torch.testing.assert_close(kept.policy.state_dict(), direct.policy.state_dict(), rtol=0, atol=0)
    pd.testing.assert_frame_equal(kept.history, direct.history, check_exact=True)


@pytest.mark.usefixtures("stays")
def test_an_objective_that_draws_its_own_batches_must_read_them(monkeypatch: pytest.MonkeyPatch) -> None:
    from cvl_pipeline.objectives.published import Published

    monkeypatch.delattr(Published, "read")
    transitions = episodes()
    with pytest.raises(InputError, match=r"does not fit the GPU.*define Published.read.*accelerator=cpu"):
        train_policy(
            make_data(transitions, 4, make_rewards(transitions)),
            policy_parameters(objective="published"),
            0,
            values=network_q(transitions),
        )


def test_iql_needs_the_log_on_the_device(monkeypatch: pytest.MonkeyPatch, transitions: Transitions) -> None:
    monkeypatch.setattr("cvl_pipeline.methods.iql.fits", lambda *_: False)
    with pytest.raises(InputError, match=r"'iql' needs the whole log on the GPU.* 50%.*accelerator=cpu"):
        IQL(IQL.Parameters()).train(make_data(transitions, 4, make_rewards(transitions)), 0)


@pytest.mark.usefixtures("stays")
def test_the_log_is_read_from_its_file(tmp_path: Path, transitions: Transitions) -> None:
    save_artifact(tmp_path / "log.safetensors", "transitions", transitions)
    log = load_artifact(tmp_path / "log.safetensors")
    module = ContrastiveDynamics(make_data(log, 4), dynamics_parameters(), 0)
    module.on_fit_start()
    assert module._train_sampler.transitions.observations.data_ptr() == log.observations.data_ptr()
    assert_same(module.batch(0), module.read(module._entry(0)))
    module.stop_prefetching()


class Failing(ContrastiveDynamics):
    """Contrastive training that ends at a step."""

    at = -1
    failure: BaseException = RuntimeError("the machine went away")

    def training_loss(self, batch: Draws | Segments) -> tuple[Tensor, dict[str, Tensor]]:
        if self.global_step == self.at:
            assert threads()
            raise self.failure
        return super().training_loss(batch)


class BrokenDisk(ContrastiveDynamics):
    """Contrastive training whose thread fails."""

    def read(self, entry: Draws) -> Segments:
        raise OSError("the disk went away")


@pytest.mark.usefixtures("stays")
@pytest.mark.parametrize("failure", [RuntimeError("the machine went away"), KeyboardInterrupt()])
def test_the_thread_ends_with_a_training_that_fails(transitions: Transitions, failure: BaseException) -> None:
    module = Failing(make_data(transitions, 4), dynamics_parameters(), 0)
    module.at, module.failure = 5, failure
    handler = signal.getsignal(signal.SIGINT)
    try:
        with pytest.raises(type(failure)):
            fit(module, description="test")
    finally:
        signal.signal(signal.SIGINT, handler)  # Lightning leaves the signal ignored
    assert not threads()


@pytest.mark.usefixtures("stays")
def test_training_fails_with_the_error_of_the_thread(transitions: Transitions) -> None:
    module = BrokenDisk(make_data(transitions, 4), dynamics_parameters(), 0)
    with pytest.raises(OSError, match="the disk went away") as caught:
        fit(module, description="test")
    assert "_prepare" in [frame.name for frame in traceback.extract_tb(caught.value.__traceback__)]
    assert not threads()


@pytest.mark.usefixtures("stays")
@pytest.mark.parametrize("at", [30, 66, 75])
def test_interrupted_training_resumes_to_the_same_critic(
    tmp_path: Path, transitions: Transitions, at: int
) -> None:
    data = make_data(transitions, 4)
    parameters = dynamics_parameters(training={"steps": 100, "validation_interval": 50})
    whole = ContrastiveDynamics(data, parameters, 0)
    history = fit(whole, description="test")
    interrupted = Failing(data, parameters, 0)
    interrupted.at = at
    with pytest.raises(RuntimeError, match="went away"):
        fit(interrupted, description="test", checkpoints=tmp_path)
    resumed = ContrastiveDynamics(data, parameters, 0)
    logs = tmp_path / "logs"  # which ask for the first batch again
    again = fit(resumed, description="test", checkpoints=tmp_path, logs=logs)
    torch.testing.assert_close(resumed.state_dict(), whole.state_dict(), rtol=0, atol=0)
    pd.testing.assert_frame_equal(again, history, check_exact=True)


@pytest.mark.parametrize("begins_on", ["cpu", "cuda"])
@pytest.mark.parametrize("fits_now", [False, True])
def test_training_that_resumes_on_a_gpu_draws_where_it_did_before(
    monkeypatch: pytest.MonkeyPatch, transitions: Transitions, begins_on: str, fits_now: bool
) -> None:
    """Free memory changes from run to run, and devices draw different numbers from the same seed."""

    class OnGpu(ContrastiveDynamics):
        device = torch.device("cuda")

    monkeypatch.setattr(offline, "fits", lambda *_: fits_now)
    monkeypatch.setattr(offline, "Prefetch", lambda read, device: Prefetch(read, CPU))
    module = OnGpu(make_data(transitions, 4), dynamics_parameters(), 0)
    assert module.place(transitions.observations).type == ("cuda" if fits_now else "cpu")
    module.on_load_checkpoint({"history": [], "sums": {}, "drawn_on": begins_on})
    if begins_on == "cuda" and not fits_now:
        with pytest.raises(InputError, match="this training began with the log on a GPU"):
            module.place(transitions.observations)
    else:
        assert module.place(transitions.observations).type == begins_on
    module.stop_prefetching()


def test_a_checkpoint_says_where_batches_are_drawn(tmp_path: Path, transitions: Transitions) -> None:
    interrupted = Failing(make_data(transitions, 4), dynamics_parameters(), 0)
    interrupted.at = 6
    with pytest.raises(AssertionError):  # no thread
        fit(interrupted, description="test", checkpoints=tmp_path)
    (path,) = tmp_path.rglob("last.ckpt")
    assert read_checkpoint(path)["drawn_on"] == "cpu"


def test_a_log_fits_by_its_share_of_the_free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda _: (1000, 10**9))
    gpu, bytes_left = torch.device("cuda", 1), int(1000 * SHARE)
    most = torch.zeros(bytes_left - 100, dtype=torch.uint8), torch.zeros(25)
    assert fits(gpu, *most)
    assert not fits(gpu, *most, torch.zeros(1, dtype=torch.uint8))
    assert fits(CPU, torch.zeros(1).expand(10**12))


def _shares() -> dict[str, Any]:
    """Batches of one of several processes, read ahead and directly."""
    data = make_data(make_transitions([20] * 6, [False, True] * 3), 4)
    module = ContrastiveDynamics(data, dynamics_parameters(), 0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(offline, "fits", lambda *_: False)
        module.on_fit_start()
    # Clones: parts of one tensor with several types cannot be saved.
    found = {str(step): vars(module.batch(step).map(torch.clone)) for step in range(70)}
    module.stop_prefetching()
    expected = {}
    for step in range(70):
        entry = module._entry(step)
        expected[str(step)] = vars(module._train_sampler.gather(entry.map(own_share)))
    return {"found": found, "expected": expected}


def test_processes_read_their_own_shares(tmp_path: Path) -> None:
    one, two = call_in_processes(2, tmp_path, _shares)
    for process in (one, two):
        torch.testing.assert_close(process["found"], process["expected"], rtol=0, atol=0)
    assert one["found"]["0"]["anchors"].shape == (8,)
    assert not torch.equal(one["found"]["0"]["anchors"], two["found"]["0"]["anchors"])


class DrawsOnTheCpu(ContrastiveDynamics):
    """Contrastive training on a GPU with the batches of a log that stays on the CPU."""

    def draw(self, batches: int, generator: Generator) -> list[Draws]:
        device = self._train_sampler.transitions.actions.device
        sampler, self._train_sampler = self._train_sampler, self._sampler_on_the_cpu
        try:
            entries = super().draw(batches, Generator().manual_seed(generator.initial_seed()))
        finally:
            self._train_sampler = sampler
        return [entry.map(lambda column: column.to(device)) for entry in entries]

    def on_fit_start(self) -> None:
        super().on_fit_start()
        sampler = self._train_sampler
        self._sampler_on_the_cpu = type(sampler)(self._transitions, sampler.discount, self._split.train)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_log_on_the_cpu_trains_the_critic_of_a_log_on_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    data = make_data(make_transitions([20] * 60, [False, True] * 30), 50)
    parameters = dynamics_parameters(
        hidden=(64, 64), training={"steps": 100, "validation_interval": 50, "accelerator": "gpu"}
    )
    there = DrawsOnTheCpu(data, parameters, 0)
    history = fit(there, description="test")
    monkeypatch.setattr(offline, "fits", lambda *_: False)
    here = ContrastiveDynamics(data, parameters, 0)
    devices: set[str] = set()
    gradient_step = here.gradient_step

    def noted(batch: Draws | Segments) -> tuple[Tensor, dict[str, Tensor]]:
        assert isinstance(batch, Segments)
        devices.update(value.device.type for value in vars(batch).values())
        return gradient_step(batch)

    monkeypatch.setattr(here, "gradient_step", noted)
    kept = fit(here, description="test")
    assert devices == {"cuda"}
    torch.testing.assert_close(here.state_dict(), there.state_dict(), rtol=1e-4, atol=1e-5)
    # Held-out segments are drawn on different devices, so their losses differ.
    pd.testing.assert_series_equal(kept["train/loss"], history["train/loss"], rtol=1e-4)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_batches_on_a_gpu_are_never_overwritten() -> None:
    """Steps read a batch long after it was asked for, while the next ones are copied."""
    gpu = torch.device("cuda", torch.cuda.current_device())
    batches: Prefetch[Numbers] = Prefetch(numbers, gpu)
    weight = torch.ones(2000, 2000, device=gpu)
    sums = []
    for step in range(200):
        rows = batches.batch(step)
        weight @ weight  # the GPU is behind
        sums.append((rows.whole.sum(), rows.picture.double().sum()))
        del rows
    batches.close()
    for step, (whole, picture) in enumerate(sums):
        expected = numbers(step)
        assert int(whole) == int(expected.whole.sum()), step
        assert float(picture) == float(expected.picture.double().sum()), step


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("discrete", [False, True])
@pytest.mark.parametrize("objective", OBJECTIVES.names)
def test_policies_train_on_a_gpu_with_the_log_on_the_cpu(
    monkeypatch: pytest.MonkeyPatch, objective: str, discrete: bool
) -> None:
    monkeypatch.setattr(offline, "fits", lambda *_: False)
    transitions = episodes(discrete)
    policy, history = train_policy(
        make_data(transitions, 4, make_rewards(transitions)),
        policy_parameters(objective=objective, training={"steps": 70, "accelerator": "gpu"}),
        0,
        values=network_q(transitions),
    )
    assert policy(transitions.states()).shape == transitions.actions.shape
    assert history["train/loss"].notna().all()
