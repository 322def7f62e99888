"""Batches that are read ahead equal those that a step reads itself, and their thread ends with the training."""

from __future__ import annotations

import itertools
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
from cvl_pipeline.training.batches import stacked
from cvl_pipeline.training.fit import fit
from cvl_pipeline.training.module import DRAWN
from cvl_pipeline.training.prefetch import SHARE, THREAD, Prefetch, fits
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
    return [thread for thread in threading.enumerate() if thread.name.startswith(THREAD)]


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


SIZE = 4
"""Batches in a block of numbers."""


def blocks(read: Callable[[int], Any] = numbers, single: bool = False) -> Callable[[int], Iterator[Any]]:
    """What ``Prefetch`` reads from, with the rows of each step from a function."""

    def blocks_from(step: int) -> Iterator[tuple[int, Any]]:
        for first in itertools.count(step // SIZE * SIZE, SIZE):
            rows = [read(step) for step in range(first, first + SIZE)]
            yield first, tuple(rows) if single else stacked(rows)

    return blocks_from


@pytest.fixture
def make() -> Iterator[Callable[..., Prefetch]]:
    made: list[Prefetch] = []

    def prefetching(*given: Any, **options: int) -> Prefetch:
        made.append(Prefetch(blocks(*given), CPU, **options))
        return made[-1]

    yield prefetching
    for one in made:
        one.close()


def assert_same(found: Any, expected: Any) -> None:
    assert type(found) is type(expected)
    torch.testing.assert_close(vars(found), vars(expected), rtol=0, atol=0)


@pytest.mark.parametrize("single", [False, True])
def test_blocks_have_the_rows_of_their_steps(make: Callable[..., Prefetch], single: bool) -> None:
    prefetched = make(numbers, single)
    for step in (0, 4, 8, 19, 20, 7, 3, 4, 101):  # also in another order
        first, batches = prefetched.block(step)
        assert (first, len(batches)) == (step // SIZE * SIZE, SIZE)
        for place, batch in enumerate(batches):
            assert_same(batch, numbers(first + place))


def test_blocks_are_read_ahead_and_no_more_than_that(make: Callable[..., Prefetch]) -> None:
    steps: list[int] = []
    names = set()

    def read(step: int) -> Numbers:
        names.add(threading.current_thread().name)
        steps.append(step)
        return numbers(step)

    prefetched = make(read, ahead=2)
    prefetched.block(0)
    wait_for(lambda: len(steps) == 3 * SIZE)  # without another request
    for step in range(SIZE, 10 * SIZE, SIZE):
        prefetched.block(step)
        assert len(steps) <= step + 3 * SIZE
    wait_for(lambda: len(steps) == 12 * SIZE)
    assert steps == list(range(12 * SIZE))
    (name,) = names
    assert name.startswith(THREAD)


def test_a_step_that_must_wait_is_counted(make: Callable[..., Prefetch]) -> None:
    goes_on = threading.Event()

    def read(step: int) -> Numbers:
        assert step < SIZE or goes_on.wait(60.0)
        return numbers(step)

    prefetched = make(read)
    prefetched.block(0)
    before = prefetched.waited
    threading.Timer(0.2, goes_on.set).start()
    prefetched.block(SIZE)
    assert prefetched.waited - before > 0.1
    wait_for(lambda: all(result.done() for result in prefetched._results))
    before = prefetched.waited
    prefetched.block(2 * SIZE)
    assert prefetched.waited - before < 0.1


def test_an_error_of_the_thread_reaches_the_step_with_its_traceback(make: Callable[..., Prefetch]) -> None:
    def broken_disk(step: int) -> Numbers:
        if step == 9:
            raise OSError("the disk went away")
        return numbers(step)

    prefetched = make(broken_disk)
    prefetched.block(0)
    prefetched.block(4)  # although the error is there already
    for _ in range(2):
        with pytest.raises(OSError, match="the disk went away") as caught:
            prefetched.block(8)
        assert "broken_disk" in [frame.name for frame in traceback.extract_tb(caught.value.__traceback__)]
    assert_same(prefetched.block(12)[1][0], numbers(12))  # it still serves


def test_closing_leaves_requested_blocks_unread() -> None:
    first, goes_on = threading.Event(), threading.Event()
    steps: list[int] = []

    def read(step: int) -> Numbers:
        steps.append(step)
        if step == SIZE:
            first.set()
            assert goes_on.wait(60.0)
        return numbers(step)

    prefetched = Prefetch(blocks(read), CPU)
    prefetched.block(0)
    assert first.wait(60.0)
    threading.Timer(0.2, goes_on.set).start()
    prefetched.close()
    assert steps == list(range(2 * SIZE))
    assert not threads()
    assert_same(prefetched.block(SIZE)[1][0], numbers(SIZE))  # a new thread
    prefetched.close()
    prefetched.close()


def test_a_block_is_as_many_batches_as_its_bytes_allow(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = torch.zeros(25, dtype=torch.float32), torch.zeros(2, 50, dtype=torch.uint8)  # 200 bytes
    for most_bytes, batches in (
        (10**9, 64),
        (64 * 200, 64),
        (64 * 200 - 1, 32),
        (1000, 4),
        (200, 1),
        (10, 1),
    ):
        monkeypatch.setattr(prefetch, "BLOCK_BYTES", most_bytes)
        assert prefetch.batches_in_block(64, rows) == batches


@pytest.mark.usefixtures("stays")
@pytest.mark.parametrize(
    ("conditioned", "bytes_of_a_block"), [(False, 2**25), (True, 2**25), (True, 10**4), (True, 1)]
)
def test_the_critic_is_that_of_a_log_on_the_device(
    monkeypatch: pytest.MonkeyPatch, transitions: Transitions, conditioned: bool, bytes_of_a_block: int
) -> None:
    monkeypatch.setattr(prefetch, "BLOCK_BYTES", bytes_of_a_block)
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
    monkeypatch.setattr("cvl_pipeline.methods.off_policy.fits", lambda *_: False)
    with pytest.raises(InputError, match=r"'iql' needs the whole log on the GPU.* 50%.*accelerator=cpu"):
        IQL(IQL.Parameters()).train(make_data(transitions, 4, make_rewards(transitions)), 0)


@pytest.mark.usefixtures("stays")
def test_the_log_is_read_from_its_file(tmp_path: Path, transitions: Transitions) -> None:
    save_artifact(tmp_path / "log.safetensors", "transitions", transitions)
    log = load_artifact(tmp_path / "log.safetensors")
    module = ContrastiveDynamics(make_data(log, 4), dynamics_parameters(), 0)
    module.on_fit_start()
    assert module._train_sampler.transitions.observations.data_ptr() == log.observations.data_ptr()
    assert_same(module.batch(1), module.read(module._draw_block(0)[1]))
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
        entry = module._draw_block(step // DRAWN)[step % DRAWN]
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
@pytest.mark.parametrize("single", [False, True])
def test_batches_on_a_gpu_are_never_overwritten(single: bool) -> None:
    """Steps read a batch long after it was asked for, while the next ones are copied."""
    gpu = torch.device("cuda", torch.cuda.current_device())
    prefetched = Prefetch(blocks(single=single), gpu)
    weight = torch.ones(2000, 2000, device=gpu)
    sums = []
    for step in range(0, 200, SIZE):
        _, batches = prefetched.block(step)
        for rows in batches:
            weight @ weight  # the GPU is behind
            sums.append((rows.whole.sum(), rows.picture.double().sum()))
        del batches, rows
    prefetched.close()
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
