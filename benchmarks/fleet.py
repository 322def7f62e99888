"""Training of many critics of equal shapes as one, by batched products: a fleet (docs/speed.md).

S members (seeds) take their gradient steps together, as in ``kedro fleet``. The benchmark first checks that a fleet
ends with the weights of S single trainings. Then it measures member-steps per second, on the CPU (processor time too)
and on a GPU, if there is one, with steps captured as CUDA graphs. Single trainings are ``ContrastiveDynamics`` without
Lightning, which a fleet does not need for its steps either.

    python -m benchmarks.fleet
    python -m benchmarks.fleet --only gpu   # needs no Kedro and no simulator
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor

from cvl_pipeline.dynamics.fleet import Fleet
from cvl_pipeline.dynamics.module import ContrastiveDynamics
from cvl_pipeline.dynamics.parameters import DynamicsParameters
from cvl_pipeline.episodes.container import Split, Transitions
from cvl_pipeline.episodes.data import EpisodeData
from cvl_pipeline.episodes.parameters import IngestionParameters
from cvl_pipeline.episodes.preparation import fit_normalisation
from cvl_pipeline.training.graph import StepGraph
from cvl_pipeline.training.module import DRAWN
from cvl_pipeline.training.vector import Adam

PROJECT = Path(__file__).parents[1]
OBSERVATION, ACTION, EPISODES, STEPS = 39, 4, 360, 200
"""Sizes of a Meta-World log; every tenth episode is held out."""
TRAINING = 3000
"""Gradient steps of a whole training, over which the learning rate falls."""
CHECKED, TOLERANCE = 20, 1e-4
"""Steps after which fleets are compared with single trainings; largest relative difference of weights and losses."""
DEADLINE = 75.0
"""Seconds after which no measurement on the GPU begins."""


@dataclass(frozen=True)
class Size:
    """Hidden layers and batch of a critic."""

    hidden: tuple[int, ...]
    batch: int

    def __str__(self) -> str:
        """Return the name in the tables."""
        return f"{self.hidden} x {self.batch}"


STARTED = time.perf_counter()
CPU_SIZES = (Size((256, 256), 256), Size((64, 64), 256))
GPU_SIZES = (Size((256, 256), 256), Size((1024, 1024), 1024))
CPU_MEMBERS, GPU_MEMBERS = (1, 4, 16), (1, 4, 16, 64)


def random_log(episodes: int = EPISODES, steps: int = STEPS) -> EpisodeData:
    """Make a random log of the sizes of ``benchmarks.speed``; a quarter of its episodes are terminated."""
    generator = Generator().manual_seed(0)
    transitions = Transitions(
        observations=torch.randn(episodes * (steps + 1), OBSERVATION, generator=generator),
        actions=torch.rand(episodes * steps, ACTION, generator=generator) * 2.0 - 1.0,
        episode_starts=torch.arange(episodes + 1) * steps,
        terminated=torch.arange(episodes) % 4 == 0,
        truncated=torch.arange(episodes) % 4 != 0,
        action_low=-torch.ones(ACTION),
        action_high=torch.ones(ACTION),
    )
    held_out = torch.arange(episodes) % 10 == 9
    split = Split(torch.where(~held_out)[0], torch.where(held_out)[0])
    normalisation = fit_normalisation(transitions, split, IngestionParameters().std_floor)
    return EpisodeData(transitions, split, normalisation)


def single_module(data: EpisodeData, size: Size, seed: int) -> ContrastiveDynamics:
    """Make the module of a single training with default parameters."""
    training = {"steps": TRAINING, "batch_size": size.batch}
    parameters = DynamicsParameters.model_validate({"hidden": size.hidden, "training": training})
    return ContrastiveDynamics(data, parameters, seed)


def fleet_of(
    data: EpisodeData, size: Size, members: int, device: torch.device, captured: bool = False
) -> Fleet:
    """Make a fleet of seeds from 0."""
    return Fleet([single_module(data, size, seed) for seed in range(members)], device, captured)


class Runner:
    """A fleet for ``timed``."""

    def __init__(self, fleet: Fleet) -> None:
        """Begin with the first step."""
        self.fleet, self.next = fleet, 0

    def run(self, steps: int) -> Tensor:
        """Take steps, and return the last one's losses, (S,)."""
        for step in range(self.next, self.next + steps):
            losses = self.fleet.step(step % TRAINING)
        self.next += steps
        return losses

    def wait(self) -> None:
        """Wait for the device."""
        if self.fleet.values.device.type == "cuda":
            torch.cuda.synchronize()


def difference(
    data: EpisodeData, size: Size, members: int, device: torch.device, captured: bool = False
) -> dict[str, float]:
    """Compare a fleet with single trainings after CHECKED steps.

    Rounding decides whether a ReLU is on whose input is nearly zero, and the sign of Adam's first moves. So one member
    in ten or so leaves its twin by far more than rounding, and so does a single training from weights that are
    rounded otherwise: the median member says whether the arithmetic is equal.

    Returns:
        ``median`` and ``largest`` over members of the norm of the difference over the norm of the weights; ``rounding``
        and ``largest_rounding``, the same of single trainings that begin a rounding away; ``losses``, the largest
        relative difference of the last losses.
    """
    fleet = fleet_of(data, size, members, device, captured)
    losses = Runner(fleet).run(CHECKED).cpu()
    apart: dict[str, list[float]] = {"fleet": [], "rounding": [], "losses": []}
    for member in range(members):
        loss, expected = _reference(data, size, member, device)
        _, other = _reference(data, size, member, device, rounding=True)
        apart["fleet"].append(float((fleet.values[member] - expected).norm() / expected.norm()))
        apart["rounding"].append(float((other - expected).norm() / expected.norm()))
        apart["losses"].append(abs(float(losses[member]) / loss - 1.0))
    return {
        "median": statistics.median(apart["fleet"]),
        "largest": max(apart["fleet"]),
        "rounding": statistics.median(apart["rounding"]),
        "largest_rounding": max(apart["rounding"]),
        "losses": max(apart["losses"]),
    }


def _reference(
    data: EpisodeData, size: Size, seed: int, device: torch.device, rounding: bool = False
) -> tuple[float, Tensor]:
    """Train as ``OfflineModule.training_step`` does; return the last loss and the weights, (N,).

    Args:
        data: the log.
        size: of the critic.
        seed: of the training.
        device: where to train.
        rounding: whether the initial weights are changed by about one rounding.
    """
    module = single_module(data, size, seed)
    if rounding:
        generator = Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in module.trained_parameters():
                parameter.mul_(1.0 + 2.0**-23 * torch.randn(parameter.shape, generator=generator).sign())
    training = Reference(module, device)
    loss = training.run(CHECKED)
    return float(loss), module._vector.values.detach()


class Reference:
    """The single training of the pipeline, without Lightning, for ``timed``."""

    def __init__(self, module: ContrastiveDynamics, device: torch.device, captured: bool = False) -> None:
        """Move the module to the device; the step may be a CUDA graph, as in the pipeline."""
        self.module, self.next = module.to(device), 0
        module.on_fit_start()
        self._optimizer = module.configure_optimizers()
        assert isinstance(self._optimizer, Adam)
        self._graph = StepGraph(module, self._optimizer, 0, DRAWN) if captured else None

    def run(self, steps: int) -> Tensor:
        """Take steps, and return the last one's loss."""
        end = self.next + steps
        while self.next < end:
            first = self.next % TRAINING
            count = min(DRAWN, end - self.next, TRAINING - first)
            if self._graph is None:
                count, loss = 1, self._step(first)
            else:
                loss = self._graph.run(first, count, lambda name, value: None)[-1]
            self.next += count
        return loss

    def _step(self, step: int) -> Tensor:
        loss, _ = self.module.gradient_step(self.module.batch(step))
        self._optimizer.param_groups[0]["lr"] = self.module.learning_rate(step)
        self._optimizer.step()
        return loss.detach()

    def wait(self) -> None:
        """Wait for the device."""
        if self.module.device.type == "cuda":
            torch.cuda.synchronize()


def timed(runner: Runner | Reference, members: int, seconds: float, chunk: int) -> dict[str, float]:
    """Take chunks of steps for some seconds.

    Returns:
        ``rate``: member-steps per second; ``processor``: processor milliseconds per member-step, of all threads;
        ``step``: milliseconds per step.
    """
    runner.wait()
    start, processor, steps = time.perf_counter(), time.process_time(), 0
    while not steps or time.perf_counter() - start < seconds:
        runner.run(chunk)
        runner.wait()
        steps += chunk
    elapsed, processor = time.perf_counter() - start, time.process_time() - processor
    return {
        "rate": members * steps / elapsed,
        "processor": 1e3 * processor / (members * steps),
        "step": 1e3 * elapsed / steps,
    }


def best(rounds: Sequence[dict[str, float]]) -> dict[str, float]:
    """The fastest round by wall-clock time, and the fewest processor seconds."""
    return {
        "rate": max(row["rate"] for row in rounds),
        "processor": min(row["processor"] for row in rounds),
        "step": min(row["step"] for row in rounds),
    }


def cpu_runner(data: EpisodeData, size: Size, members: int) -> Runner | Reference:
    """Make what is timed on the CPU; no members: one single training."""
    if not members:
        return Reference(single_module(data, size, 0), torch.device("cpu"))
    return Runner(fleet_of(data, size, members, torch.device("cpu")))


def chunk_of(members: int) -> int:
    """Steps between two looks at the clock: about as much work for every number of members."""
    return max(2, 32 // max(members, 1))


def measure_cpu(data: EpisodeData, seconds: float, rounds: int) -> list[dict[str, Any]]:
    """Measure single trainings and fleets in turn, for each number of threads, and then two processes of each."""
    rows: list[dict[str, Any]] = []
    for size in CPU_SIZES:
        for threads in sorted({1, os.cpu_count() or 1}):
            torch.set_num_threads(threads)
            runners = {members: cpu_runner(data, size, members) for members in (0, *CPU_MEMBERS)}
            for members, runner in runners.items():
                runner.run(chunk_of(members))
            results: dict[int, list[dict[str, float]]] = {members: [] for members in runners}
            for _ in range(rounds):
                for members, runner in runners.items():
                    results[members].append(timed(runner, max(members, 1), seconds, chunk_of(members)))
            for members, measured in results.items():
                row = {"size": str(size), "threads": threads, "processes": 1, "members": members}
                rows.append(row | best(measured))
                print(as_text(rows[-1]), flush=True)  # noqa: T201
        torch.set_num_threads(1)
        for members in (0, CPU_MEMBERS[-1]) if (os.cpu_count() or 1) > 1 else ():
            row = {"size": str(size), "threads": 1, "processes": 2, "members": members}
            rows.append(row | best([_two(size, members, seconds) for _ in range(rounds)]))
            print(as_text(rows[-1]), flush=True)  # noqa: T201
    return rows


def _two(size: Size, members: int, seconds: float) -> dict[str, float]:
    """Measure two processes with one thread each at the same time: as studies run today, or a fleet in each."""
    job = {"hidden": size.hidden, "batch": size.batch, "members": members, "seconds": 2.0 * seconds}
    command = [sys.executable, "-m", "benchmarks.fleet", "--worker", json.dumps(job)]
    own = {**os.environ, "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            command, cwd=PROJECT, stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True, env=own
        )
        for _ in range(2)
    ]
    for process in processes:  # until both are ready
        assert process.stdout is not None
        process.stdout.readline()
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    outputs = [json.loads(process.communicate()[0].splitlines()[-1]) for process in processes]
    return {
        "rate": sum(output["rate"] for output in outputs),
        "processor": sum(output["processor"] for output in outputs) / 2.0,
        "step": max(output["step"] for output in outputs),
    }


def work(job: dict[str, Any]) -> None:
    """Measure in a process of ``_two``, from the moment that a line arrives."""
    members = job["members"]
    runner = cpu_runner(random_log(), Size(tuple(job["hidden"]), job["batch"]), members)
    runner.run(chunk_of(members))
    print("ready", flush=True)  # noqa: T201
    sys.stdin.readline()
    print(json.dumps(timed(runner, max(members, 1), job["seconds"], chunk_of(members))), flush=True)  # noqa: T201


def as_text(row: dict[str, Any]) -> str:
    """Format a row for the terminal."""
    return ", ".join(
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in row.items()
    )


def measure_gpu(
    data: EpisodeData, device: torch.device, seconds: float, sizes: Sequence[Size] = GPU_SIZES
) -> list[dict[str, Any]]:
    """Measure single trainings and fleets; a measurement that fails is a row with the error.

    ``members`` 0 is the single training with the pipeline's networks. Any device serves, without graphs on the CPU.
    """
    graphs = device.type == "cuda"
    rows: list[dict[str, Any]] = []
    for size in sizes:
        variants = [(0, False), (16, False), *((members, graphs) for members in (0, *GPU_MEMBERS))]
        for members, captured in variants:
            row: dict[str, Any] = {"size": str(size), "members": members, "captured": captured}
            if time.perf_counter() - STARTED > DEADLINE:
                row["error"] = "no time left"
            else:
                try:
                    row |= _gpu_row(data, size, device, seconds, members, captured)
                except Exception as error:
                    traceback.print_exc()
                    row["error"] = f"{type(error).__name__}: {error}"[:300]
            gc.collect()
            if graphs:
                try:
                    torch.cuda.empty_cache()
                except Exception:
                    traceback.print_exc()
            rows.append(row)
            print(as_text(row), flush=True)  # noqa: T201
    return rows


def _gpu_row(
    data: EpisodeData, size: Size, device: torch.device, seconds: float, members: int, captured: bool
) -> dict[str, float]:
    graphs = device.type == "cuda"
    if graphs:
        torch.cuda.reset_peak_memory_stats()
    runner: Runner | Reference
    if members:
        runner = Runner(fleet_of(data, size, members, device, captured))
    else:
        runner = Reference(single_module(data, size, 0), device, captured)
    chunk = max(8, DRAWN // max(members, 1)) if graphs else 2
    runner.run(chunk)
    row = timed(runner, max(members, 1), seconds, chunk)
    if isinstance(runner, Runner):
        begin = time.perf_counter()
        runner.fleet.block(1)
        runner.wait()
        # Milliseconds of the step above.
        row["sampling"] = 1e3 * (time.perf_counter() - begin) / DRAWN
    if graphs:
        row["peak_mib"] = torch.cuda.max_memory_allocated() / 2**20
    return row


def cpu_ratio(rows: Sequence[dict[str, Any]]) -> float:
    """Processor time per member-step of a single training over that of the largest fleet, at the first size."""
    of = {
        row["members"]: row["processor"]
        for row in rows
        if row["size"] == str(CPU_SIZES[0]) and row["threads"] == 1 and row["processes"] == 1
    }
    return float(of[0] / of[CPU_MEMBERS[-1]]) if of else math.nan


def gpu_ratio(rows: Sequence[dict[str, Any]]) -> float:
    """Member-steps per second of 16 members over those of a single training, both captured, at the first size."""

    def fastest(members: Sequence[int]) -> float:
        return max(
            (
                row["rate"]
                for row in rows
                if row["size"] == str(GPU_SIZES[0]) and row["members"] in members and "rate" in row
            ),
            default=math.nan,
        )

    return fastest([16]) / fastest([0, 1])


def save(record: dict[str, Any], parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Write the record: with the others, or to the folder $OUT where the pipeline's API cannot be imported."""
    try:
        from benchmarks.common import RESULTS, record_path, write_record

        write_record(record_path(RESULTS / "fleet.json", parser, options), **record)
    except Exception as error:
        print(f"no record in benchmarks/results: {type(error).__name__}: {error}", flush=True)  # noqa: T201
    if "OUT" in os.environ:
        try:
            path = Path(os.environ["OUT"]) / "fleet.json"
            about = {"machine": f"{platform.machine()}, torch {torch.__version__}"}
            path.write_text(json.dumps(about | record, indent=2) + "\n")
        except OSError as error:
            print(f"no record in $OUT: {error}", flush=True)  # noqa: T201


def checks(data: EpisodeData, device: torch.device) -> list[dict[str, Any]]:
    """Compare fleets with single trainings."""
    rows: list[dict[str, Any]] = []
    for size, members in ((Size((256, 256), 256), 8), (Size((64, 64), 256), 5)):
        row: dict[str, Any] = {"device": device.type, "size": str(size), "members": members}
        try:
            row |= difference(data, size, members, device, captured=device.type == "cuda")
        except Exception as error:
            if device.type == "cpu":
                raise
            traceback.print_exc()
            row["error"] = f"{type(error).__name__}: {error}"[:300]
        rows.append(row)
        print(f"after {CHECKED} steps: {as_text(row)}", flush=True)  # noqa: T201
    return rows


def main() -> None:
    """Check, measure, save; the last line has the gain of 16 members on CPU and GPU."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--only", choices=["cpu", "gpu", "check"], help="one part")
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=3, help="of the measurements on the CPU")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(json.loads(options.worker))
        return
    data = random_log()
    gpu = torch.cuda.is_available() and options.only in (None, "gpu")
    record: dict[str, Any] = {"cores": os.cpu_count(), "load_before": os.getloadavg()[0], "checks": []}
    if options.only in (None, "cpu", "check"):
        record["checks"] += checks(data, torch.device("cpu"))
        if max(max(row["median"], row["losses"]) for row in record["checks"]) > TOLERANCE:
            sys.exit(f"a fleet differs from single trainings by more than {TOLERANCE}")
    record["gpu"] = []
    if gpu:
        device = torch.device("cuda")
        record["device"] = torch.cuda.get_device_name()
        record["checks"] += checks(data, device)
        record["gpu"] = measure_gpu(data, device, options.seconds)
    record["cpu"] = (
        measure_cpu(data, options.seconds, options.rounds) if options.only in (None, "cpu") else []
    )
    if options.only != "check":
        save(record, parser, options)
    ratios = {"cpu": cpu_ratio(record["cpu"]), "gpu": gpu_ratio(record["gpu"])}
    texts = (f"{name}={'n/a' if math.isnan(ratio) else f'{ratio:.2f}'}" for name, ratio in ratios.items())
    print("fleet: " + " ".join(texts))  # noqa: T201


if __name__ == "__main__":
    main()
