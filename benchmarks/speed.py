"""Gradient steps per second and memory of training, compared with peers (docs/speed.md).

This package and every peer do the same jobs: the same random log, networks and batch size. Each job runs in its
own process, in turn for several rounds, on one core (for equal numbers of threads). The fastest round counts.
Compilation and warm-up are not timed. Peers are installed from PyPI into ``.venv-peers`` on first use. A peer that
cannot be installed or run is skipped, and the benchmark reports the reason. ``benchmarks.gpu`` is for GPUs.

    python -m benchmarks.speed
    python -m benchmarks.speed --write-docs   # write the last run's tables into docs/speed.md
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Generator

from benchmarks.common import PROJECT, RESULTS, machine, markdown, write_record, write_section
from benchmarks.peers.harness import Job
from benchmarks.peers.product import SIZE
from benchmarks.scaling import weak_scaling
from benchmarks.shared import shared
from cvl_pipeline.api import EpisodeData, IngestionParameters
from cvl_pipeline.dynamics.parameters import DynamicsParameters
from cvl_pipeline.episodes.container import Split, Transitions
from cvl_pipeline.episodes.preparation import fit_normalisation
from cvl_pipeline.io.artifacts import save_artifact
from cvl_pipeline.objectives.awr import AdvantageWeightedRegression

OBSERVATION, ACTION, EPISODES, STEPS = 39, 4, 360, 200
"""Sizes of a Meta-World log; every tenth episode is held out."""
REPRESENTATION = 64
ENVIRONMENTS = PROJECT / ".venv-peers"
DOCS = PROJECT / "docs/speed.md"
LONGEST = 900
"""Time limit in seconds of an installation or a job."""
BEGIN, END = "<!-- speed: written by benchmarks.speed -->", "<!-- end of speed -->"


@dataclass(frozen=True)
class Configuration:
    """A network and batch size to train."""

    stage: str
    hidden: tuple[int, ...]
    batch: int

    def __str__(self) -> str:
        """Return the name in the tables."""
        return f"{self.stage}, hidden {self.hidden}, batch {self.batch}"


CRITICS = (Configuration("critic", (256, 256), 256), Configuration("critic", (256, 256), 1024))
LARGE = Configuration("critic", (1024, 1024), 1024)
POLICY = Configuration("policy", (256, 256), 256)
CONFIGURATIONS = (*CRITICS, LARGE, POLICY)
PRODUCT = Configuration("product", (), SIZE)


@dataclass(frozen=True)
class Contender:
    """This package or a peer.

    Attributes:
        name: name in the tables.
        module: script that takes a Job as JSON and prints one line of JSON.
        configurations: configurations that it trains.
        arithmetic: ``equal``, or the differences from this package.
        environment: folder of its virtual environment in ENVIRONMENTS; None: the current environment.
        requirements: arguments of the ``pip install`` commands of the environment, in order.
        method: method to run, for scripts with several.
        precision: precision of matrix products.
    """

    name: str
    module: str
    configurations: tuple[Configuration, ...]
    arithmetic: str
    environment: str | None = None
    requirements: tuple[tuple[str, ...], ...] = ()
    method: str = ""
    precision: str = "float32"


OURS = Contender("cvl-pipeline", "benchmarks.peers.ours", CONFIGURATIONS, "equal")
"""Numerator of the ratio."""
PRODUCTS = Contender("matrix product", "benchmarks.peers.product", (PRODUCT,), "")
TORCH = "torch==2.13.0"
D3RLPY = (("d3rlpy==2.8.1", TORCH),)
JAX = ("jax[cuda12]==0.10.2" if torch.cuda.is_available() else "jax==0.10.2", "optax==0.2.8")
ONE_CORE = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
CONTENDERS = (
    OURS,
    Contender(
        "cvl-pipeline, bfloat16", "benchmarks.peers.ours", CONFIGURATIONS, "products in bfloat16",
        precision="bfloat16",
    ),
    Contender(
        "JAX loop", "benchmarks.peers.jax_loop", CONFIGURATIONS, "equal",
        environment="jax", requirements=(JAX,),
    ),
    Contender(
        "contrastive-rl-pytorch", "benchmarks.peers.contrastive_rl", CRITICS,
        "inputs not standardised, anchors uniform; AdamW, gradients clipped, no cosine",
        environment="contrastive-rl-pytorch", requirements=(("contrastive-rl-pytorch==0.5.15", TORCH),),
    ),
    Contender(
        "JaxGCRL", "benchmarks.peers.jaxgcrl", CRITICS,
        "inputs not standardised; raw representations, logits without a matrix product; a penalty and "
        "accuracies besides; no cosine; batches drawn as by the JAX loop",
        # Its own requirements need a CUDA build that is not on PyPI; its losses run with any JAX.
        environment="jaxgcrl",
        requirements=((*JAX, "flax==0.12.7"), ("--no-deps", "jaxgcrl==0.2.8")),
    ),
    *(
        Contender(
            f"d3rlpy {method}", "benchmarks.peers.d3rlpy", (POLICY,), arithmetic,
            environment="d3rlpy", requirements=D3RLPY, method=method,
        )
        for method, arithmetic in (
            ("BC", "squared error, no weights, no learned deviation, no cosine"),
            ("TD3+BC", "another method: two Q per step, the policy every second"),
            ("IQL", "another method: two Q, V and the policy per step"),
        )
    ),
    *(
        Contender(
            f"TorchRL {method}", "benchmarks.peers.torchrl", (POLICY,), arithmetic,
            environment="torchrl", requirements=(("torchrl==0.14.1", TORCH),), method=method,
        )
        for method, arithmetic in (
            ("TD3+BC", "another method: two Q per step, the policy every second"),
            ("IQL", "another method: two Q, V and the policy per step"),
        )
    ),
)  # fmt: skip


def write_log(folder: Path, episodes: int = EPISODES, steps: int = STEPS) -> None:
    """Write a random log: artifacts for this package, and its training episodes as ``log.npz`` for peers."""
    generator = Generator().manual_seed(0)
    transitions = Transitions(
        observations=torch.randn(episodes * (steps + 1), OBSERVATION, generator=generator),
        actions=torch.rand(episodes * steps, ACTION, generator=generator) * 2.0 - 1.0,
        episode_starts=torch.arange(episodes + 1) * steps,
        terminated=torch.zeros(episodes, dtype=torch.bool),
        truncated=torch.ones(episodes, dtype=torch.bool),
        action_low=-torch.ones(ACTION),
        action_high=torch.ones(ACTION),
    )
    held_out = torch.arange(episodes) % 10 == 9
    split = Split(torch.where(~held_out)[0], torch.where(held_out)[0])
    normalisation = fit_normalisation(transitions, split, IngestionParameters().std_floor)
    for kind, artifact in EpisodeData(transitions, split, normalisation).parts().items():
        save_artifact(folder / f"{kind}.safetensors", kind, artifact)
    train = transitions.select(split.train)
    advantages, rewards = torch.randn(2, len(train), generator=generator)
    arrays = {**vars(train), **vars(normalisation), "advantages": advantages, "rewards": rewards}
    np.savez(
        folder / "log.npz", **{name: value.numpy() for name, value in arrays.items() if value is not None}
    )


def operations_of_a_step(configuration: Configuration) -> int:
    """Count the floating-point operations of the matrix products in one training step of the critic.

    A product of (B, I) and (I, O) takes 2 B I O. The forward pass has every layer of phi, with OBSERVATION +
    ACTION inputs, every layer of psi, with OBSERVATION + 1 inputs, and the logits, (B, D) by (D, B). The
    backward pass takes twice as much, for the gradients of both factors. The first layers take only as much
    as forward, because their inputs need no gradient.
    """
    batch = configuration.batch
    total = 3 * 2 * batch * batch * REPRESENTATION
    for inputs in (OBSERVATION + ACTION, OBSERVATION + 1):
        sizes = [inputs, *configuration.hidden, REPRESENTATION]
        products = [2 * batch * size_in * size_out for size_in, size_out in pairwise(sizes)]
        total += 3 * sum(products) - products[0]
    return total


class NotInstalled(RuntimeError):  # noqa: N818
    """A peer's environment cannot be created."""


def python_of(contender: Contender) -> Path:
    """Return the interpreter of a contender's environment; create the environment if missing or outdated.

    Raises:
        NotInstalled: the environment cannot be created; the message is one line.
    """
    if contender.environment is None:
        return Path(sys.executable)
    folder = ENVIRONMENTS / contender.environment
    python, installed = folder / "bin/python", folder / "installed"
    wanted = json.dumps(contender.requirements)
    if not installed.exists() or installed.read_text() != wanted:
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        commands = [[sys.executable, "-m", "venv", "--clear", str(folder)]]
        commands += [[*pip, *arguments] for arguments in contender.requirements]
        print(f"creating {folder}", flush=True)  # noqa: T201
        try:
            for command in commands:
                output(command)
        except RuntimeError as error:
            raise NotInstalled(str(error)) from None
        installed.write_text(wanted)
    return python


def _stay_on_one_core() -> None:
    """Give this process one of its cores, by which XLA chooses its threads."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, [max(os.sched_getaffinity(0))])


def output(command: Sequence[str], one_core: bool = False, limit: float = LONGEST) -> str:
    """Run a command and return its output; raise RuntimeError with the last error line if it fails.

    Args:
        command: the command.
        one_core: whether it gets one core.
        limit: its time limit in seconds.
    """
    # PYTHONPATH and similar variables belong to this environment, not to the peer's.
    filtered = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    own = command[0] == sys.executable
    environment = (dict(os.environ) if own else filtered) | (ONE_CORE if one_core else {})
    try:
        done = subprocess.run(
            command,
            cwd=PROJECT,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=limit,
            preexec_fn=_stay_on_one_core if one_core else None,
        )
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"not finished within {limit:g} seconds") from None
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines()
        errors = [line for line in lines if "error" in line.lower()]
        raise RuntimeError((errors or lines or [f"status {done.returncode}"])[-1].strip())
    return done.stdout


def do(contender: Contender, job: Job) -> dict[str, Any]:
    """Run a contender's script and return its result; raise RuntimeError if it fails."""
    command = [str(python_of(contender)), "-m", contender.module, json.dumps(asdict(job))]
    text = output(command, one_core=job.device == "cpu")
    result: dict[str, Any] = json.loads(text.strip().splitlines()[-1])
    return result


def job_of(
    contender: Contender, configuration: Configuration, folder: Path, device: str, seconds: float
) -> Job:
    """Build a job with this package's default settings and the configuration's sizes."""
    critic, policy = DynamicsParameters(), AdvantageWeightedRegression.Parameters()
    return Job(
        folder=str(folder), stage=configuration.stage, hidden=configuration.hidden,
        batch=configuration.batch, representation=REPRESENTATION, precision=contender.precision,
        device=device, seconds=seconds, method=contender.method, discount=critic.discount,
        temperature=critic.temperature, per_episode=critic.segments_per_episode,
        learning_rate=critic.training.learning_rate, beta=policy.beta, max_weight=policy.max_weight,
    )  # fmt: skip


def measure(folder: Path, contenders: Sequence[Contender], rounds: int, seconds: float) -> dict[str, Any]:
    """Run all jobs of all contenders in turn, for several rounds.

    Args:
        folder: folder of the log.
        contenders: contenders, including OURS.
        rounds: number of rounds.
        seconds: timed seconds of training per round.

    Returns:
        ``rows``, one per contender and configuration; ``product_rate``, in operations per second; ``versions``;
        ``left_out``, skipped jobs with reasons.
    """
    results: dict[tuple[Contender, Configuration], list[dict[str, Any]]] = {}
    left_out: dict[str, str] = {}
    for turn in range(rounds):
        for configuration in (*CONFIGURATIONS, PRODUCT):
            for contender in (*contenders, PRODUCTS):
                if configuration not in contender.configurations:
                    continue
                title = f"{contender.name}; {configuration}"
                if title in left_out or contender.name in left_out:
                    continue
                try:
                    done = do(contender, job_of(contender, configuration, folder, "cpu", seconds))
                except RuntimeError as error:
                    missing = isinstance(error, NotInstalled)  # then skip all its jobs
                    left_out[contender.name if missing else title] = str(error)
                    print(f"left out: {title}: {error}", flush=True)  # noqa: T201
                    continue
                results.setdefault((contender, configuration), []).append(done)
                speed = done["steps"] / done["seconds"]
                print(f"round {turn + 1}: {title}: {speed:.1f} per second", flush=True)  # noqa: T201
    rows = [
        {
            "contender": contender.name,
            "arithmetic": contender.arithmetic,
            **asdict(configuration),
            "precision": contender.precision,
            "steps_per_second": max(done["steps"] / done["seconds"] for done in several),
            "rounds": [done["steps"] / done["seconds"] for done in several],
            "timed_seconds": sum(done["seconds"] for done in several),
            "peak_memory_mib": max(done["peak_memory_mib"] for done in several),
        }
        for (contender, configuration), several in results.items()
    ]
    products = [row["steps_per_second"] for row in rows if row["contender"] == PRODUCTS.name]
    return {
        "rows": [row for row in rows if row["contender"] != PRODUCTS.name],
        "product_rate": 2 * SIZE**3 * max(products, default=float("nan")),
        "versions": {
            contender.environment or "ours": several[-1]["versions"]
            for (contender, *_), several in results.items()
            if contender != PRODUCTS
        },
        "left_out": left_out,
    }


def shares(folder: Path, seconds: float) -> list[dict[str, Any]]:
    """Time per part of our critic's training step, one row per configuration; see ``peers.ours.shares``."""
    return [
        asdict(configuration) | {"microseconds": do(OURS, job_of(OURS, as_shares, folder, "cpu", seconds))}
        for configuration in (*CRITICS, LARGE)
        for as_shares in [Configuration("shares", configuration.hidden, configuration.batch)]
    ]


def rows_of(record: dict[str, Any], configuration: Configuration) -> list[dict[str, Any]]:
    """Rows of the record with a configuration."""
    return [
        row
        for row in record["rows"]
        if Configuration(row["stage"], tuple(row["hidden"]), row["batch"]) == configuration
    ]


def speed_of(record: dict[str, Any], name: str, configuration: Configuration) -> float:
    """Steps per second in the record; NaN if it has none."""
    for row in rows_of(record, configuration):
        if row["contender"] == name:
            return float(row["steps_per_second"])
    return float("nan")


def ratio(record: dict[str, Any], configuration: Configuration) -> float:
    """Our steps per second over those of the fastest peer with equal arithmetic; NaN without one."""
    peers = {
        row["contender"]
        for row in record["rows"]
        if row["arithmetic"] == "equal" and row["contender"] != OURS.name
    }
    speeds = [speed_of(record, peer, configuration) for peer in peers]
    fastest = max((speed for speed in speeds if speed == speed), default=float("nan"))
    return speed_of(record, OURS.name, configuration) / fastest


def summary(record: dict[str, Any]) -> dict[str, float]:
    """Compute the summary numbers.

    ``ratio_...`` is our speed over that of the JAX loop, for the critics of CRITICS and LARGE. ``matmul_fraction`` is
    the rate of the matrix products in LARGE's steps as a fraction of the rate of one large matrix product. ``shared``
    is the share of its speed per CPU second that training keeps beside busy processes (``benchmarks.shared``).
    """
    done = operations_of_a_step(LARGE) * speed_of(record, OURS.name, LARGE)
    small, medium = CRITICS
    return {
        "ratio_256": ratio(record, small),
        "ratio_1024": ratio(record, medium),
        "ratio_wide": ratio(record, LARGE),
        "matmul_fraction": done / record["product_rate"],
        "shared": record["shared"],
    }


def tables(record: dict[str, Any]) -> str:
    """Format the record as Markdown."""
    parts = []
    for configuration in CONFIGURATIONS:
        rows = rows_of(record, configuration)
        if not rows:
            continue
        own = speed_of(record, OURS.name, configuration)
        table = pd.DataFrame(rows).sort_values("steps_per_second", ascending=False)
        cells = pd.DataFrame(
            {
                "": table["contender"],
                "steps/s": table["steps_per_second"].map("{:.1f}".format),
                "ours / it": (own / table["steps_per_second"]).map("{:.2f}".format),
                "peak memory, MiB": table["peak_memory_mib"].map("{:.0f}".format),
                "arithmetic": table["arithmetic"],
            }
        )
        parts.append(f"**{configuration}**:\n\n{markdown(cells)}")
    if record["shares"]:
        parts.append("Time of a training step of our critic, by part:\n\n" + markdown(_shares_table(record)))
    if record["scaling"]:
        scaling = pd.DataFrame(record["scaling"])
        counts = scaling[["processes", "batch"]].astype(int).astype(str)
        parts.append(
            "Weak scaling: the critic with hidden (256, 256) by one process and by two with as much each, "
            "one thread a process:\n\n"
            + markdown(counts.join(scaling[["steps_per_second", "efficiency"]]), digits=2)
        )
    operations = operations_of_a_step(LARGE)
    numbers, rate = record["summary"], record["product_rate"]
    parts.append(
        f"Ours over the JAX loop of equal arithmetic: {numbers['ratio_256']:.2f} at batch 256, "
        f"{numbers['ratio_1024']:.2f} at batch 1024, {numbers['ratio_wide']:.2f} at hidden {LARGE.hidden}, batch "
        f"{LARGE.batch}. The matrix products of a step of the last take {operations / 1e9:.2f} GFLOP; times steps per "
        f"second, {numbers['matmul_fraction']:.2f} of the {rate / 1e9:.0f} GFLOP/s of a product of two {SIZE} x {SIZE} "
        f"matrices. Beside busy processes, training keeps {numbers['shared']:.2f} of its steps per CPU second."
    )
    left_out = [f"- left out: {title}: {reason}" for title, reason in record["left_out"].items()]
    versions = "; ".join(
        f"{name} ({', '.join(f'{package} {version}' for package, version in packages.items())})"
        for name, packages in record["versions"].items()
    )
    parts.append(
        "\n".join(
            [
                f"- **Command:** `{record['command']}` (`make bench-speed`)",
                f"- **Machine:** {record['machine']}",
                f"- **Versions:** {versions}",
                *left_out,
            ]
        )
    )
    return "\n\n".join(parts)


def _shares_table(record: dict[str, Any]) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "": f"hidden {tuple(row['hidden'])}, batch {row['batch']}",
            "step, µs": f"{row['microseconds']['step']:.0f}",
        }
        | {
            name: f"{100.0 * value / row['microseconds']['step']:.0f} %"
            for name, value in row["microseconds"].items()
            if name != "step"
        }
        for row in record["shares"]
    )


def write_docs(record: dict[str, Any]) -> None:
    """Write the tables between the two marks of docs/speed.md."""
    write_section(DOCS, "speed", tables(record))


def main() -> None:
    """Measure, save and print the results; the last line has the summary numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=3.0, help="timed seconds per round")
    parser.add_argument("--only", nargs="+", help="prefixes of the names of the peers to run")
    parser.add_argument("--write-docs", action="store_true", help="write the last run's tables to the docs")
    arguments = parser.parse_args()
    path = RESULTS / "speed.json"
    if arguments.write_docs:
        write_docs(json.loads(path.read_text()))
        return
    chosen = [
        contender
        for contender in CONTENDERS
        if not arguments.only or contender is OURS or contender.name.startswith(tuple(arguments.only))
    ]
    load = os.getloadavg()[0]
    if load > 0.5:
        print(f"other work is running (load {load:.1f}); it affects all results", flush=True)  # noqa: T201
    with tempfile.TemporaryDirectory() as folder:
        write_log(Path(folder))
        measured = measure(Path(folder), chosen, arguments.rounds, arguments.seconds)
        measured["shares"] = shares(Path(folder), arguments.rounds * arguments.seconds)
        measured["scaling"] = [row for critic in CRITICS for row in weak_scaling(Path(folder), critic.batch)]
    measured["shared"] = shared()
    measured["summary"] = summary(measured)
    record = write_record(path, machine=machine() + ", of which one is used", load_before=load, **measured)
    print(tables(record))  # noqa: T201
    print(" ".join(f"{name}={value:.2f}" for name, value in record["summary"].items()))  # noqa: T201


if __name__ == "__main__":
    main()
