"""Exported policies beside torch: parity, CPU time, size, start-up, a million calls, and MLServer (docs/deploy.md).

Actors have the default sizes and random weights. One thread. The fastest of several rounds counts. MLServer is
installed from PyPI into ``.venv-peers`` on first use. The tables of docs/deploy.md are written from the record.

    python -m benchmarks.deploy
    python -m benchmarks.deploy --write-docs    # only the tables, from the record that exists
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from benchmarks.common import PROJECT, RESULTS, markdown, write_record, write_section
from benchmarks.serving import CLIENTS, mlserver
from benchmarks.serving import measure as serve
from cvl_pipeline.api import save
from cvl_pipeline.deploy.export import export_policy
from cvl_pipeline.deploy.parameters import ExportParameters
from cvl_pipeline.deploy.runner import CONTRACT, POLICY_FILE, load_policy
from cvl_pipeline.episodes.container import Normalisation, Transitions
from cvl_pipeline.episodes.parts import Layout
from cvl_pipeline.networks.actor import Policy, make_actor
from cvl_pipeline.networks.critic import ContrastiveCritic, CriticShape
from cvl_pipeline.networks.goal_policy import GoalPolicy, make_goal_actor
from cvl_pipeline.objectives.best_of_n import BestOfN
from cvl_pipeline.readout.q_function import QFunction
from cvl_pipeline.readout.readouts import ExactReadout
from cvl_pipeline.testing.builders import make_discrete_transitions, make_transitions, split_first

OBSERVATION, ACTION, HIDDEN, PIXELS = 39, 4, (256, 256), 64
REFERENCES, PROPOSALS, GOALS = 4096, 32, 16
SECONDS, ROUNDS = 0.3, 5
CALLS = 10**6
ACTORS = ("gaussian", "categorical", "best of 32", "goals", "image", "parts")
SERVED = 1000
"""Calls of a served policy, for each number of clients; slow policies get a quarter."""
DOCS = PROJECT / "docs/deploy.md"


def _data(kind: str) -> Transitions:
    lengths, ends = [200] * 6, [False] * 6
    if kind == "categorical":
        return make_discrete_transitions(lengths, ends, ACTION)
    if kind == "parts":
        return _with_camera(lengths)
    data = make_transitions(lengths, ends, OBSERVATION, ACTION)
    if "image" not in kind:
        return data
    shape = (len(data.observations), PIXELS, PIXELS, 3)
    pixels = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return replace(data, observations=pixels)


def _with_camera(lengths: list[int]) -> Transitions:
    """Numbers, and a camera."""
    data = make_transitions(lengths, [False] * len(lengths), OBSERVATION, ACTION)
    rows = len(data.observations)
    generator = torch.Generator().manual_seed(0)
    camera = torch.randint(0, 256, (rows, PIXELS, PIXELS, 3), dtype=torch.uint8, generator=generator)
    parts = {"state": data.observations, "image": camera}
    layout = Layout.of(parts)
    return replace(data, observations=layout.pack(parts), parts=layout)


def _policy(kind: str, data: Transitions) -> Policy:
    size = sum(part.shape[-1] for part in data.parts.parts) if data.parts else data.observations.shape[-1]
    actions = data.actions.shape[1]
    scale = 60.0 if data.images else 1.0
    normalisation = Normalisation(
        torch.full((size,), 128.0 if data.images else 0.0), torch.full((size,), scale), torch.zeros(actions),
        torch.ones(actions),
    )  # fmt: skip
    shape = CriticShape(
        tuple(data.observations.shape[1:]), actions, HIDDEN, 64, "unit_norm", 0.1, False, 0.9, False
    )
    if kind == "goals":
        critic = ContrastiveCritic(shape, normalisation).requires_grad_(False)
        return GoalPolicy(
            make_goal_actor(data, normalisation, HIDDEN, {}), critic, data.observations[:GOALS].clone()
        )
    actor = make_actor(data, normalisation, HIDDEN)
    if kind != "best of 32":
        return actor
    psi = nn.functional.normalize(torch.randn(REFERENCES, 64), dim=-1)
    readout = ExactReadout(
        temperature=torch.tensor(0.1), horizons=torch.zeros(0, dtype=torch.int64), discount=0.97,
        self_normalised=True, psi=psi, rewards=torch.rand(REFERENCES),
        log_weights=torch.full((REFERENCES,), -float(np.log(REFERENCES))),
    )  # fmt: skip
    q = QFunction(ContrastiveCritic(shape, normalisation).requires_grad_(False), readout)
    return BestOfN(actor, q, actor.noise(PROPOSALS, torch.Generator().manual_seed(0)))


def _microseconds(function: Callable[[], object]) -> float:
    """CPU time of a call, the fastest of the rounds; other processes do not disturb it much."""
    best = float("inf")
    for _ in range(ROUNDS):
        start, calls = time.process_time(), 0
        while time.process_time() - start < SECONDS / ROUNDS or calls < 3:
            function()
            calls += 1
        best = min(best, (time.process_time() - start) / calls)
    return 1e6 * best


RUNNER_START = "import sys; sys.path.insert(0, sys.argv[1]); import runner; runner.load_policy(sys.argv[1])"
TORCH_START = "import sys; import cvl_pipeline as cvl; cvl.load(sys.argv[1])"


def _startup(code: str, *arguments: str) -> float:
    """CPU seconds of a process that runs code."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", code, *arguments], check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def _write(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def measure(kind: str, folder: Path) -> dict[str, Any]:
    """Export one actor and compare it with torch."""
    torch.manual_seed(0)
    data = _data(kind)
    policy = _policy(kind, data).eval()
    start = time.process_time()
    files = export_policy(policy, data, split_first(data, 5), ExportParameters())
    seconds = time.process_time() - start
    loaded = load_policy(_write(folder, files), outside="ignore")
    parity = json.loads(files[CONTRACT])["parity"]
    row: dict[str, Any] = {
        "actor": kind, "largest error": f"{parity['largest_error']:.1e}", "other choices": parity["other_choices"],
        "kB": round(len(files[POLICY_FILE]) / 1000), "export, CPU s": round(seconds, 1),
    }  # fmt: skip
    saved = folder.with_suffix(".safetensors")
    save(policy, saved)
    row["runner, start, CPU s"] = round(_startup(RUNNER_START, str(folder)), 2)
    row["torch, start, CPU s"] = round(_startup(TORCH_START, str(saved)), 2)
    for batch in (1, 64):
        states = _rows(data, batch)
        for name, function in (("runner", loaded.select_action), ("torch", policy.act)):
            row[f"{name}, us, batch {batch}"] = round(_microseconds(lambda f=function, s=states: f(s)))  # type: ignore[misc]
    return row


def _rows(data: Transitions, count: int) -> Any:
    """The first observations, as a runner takes them."""
    if data.parts is None:
        return data.observations[:count].numpy()
    return {name: part.numpy() for name, part in data.parts.unpack(data.observations[:count]).items()}


def endurance(folder: Path, calls: int) -> dict[str, Any]:
    """Call a policy many times: memory and the action must stay the same."""

    def resident() -> int:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * resource.getpagesize()

    policy = load_policy(folder, outside="ignore")
    state = np.linspace(-1.0, 1.0, OBSERVATION, dtype=np.float32)
    first = policy.select_action(state)
    for _ in range(1000):
        policy.select_action(state)
    before, start = resident(), time.process_time()
    for _ in range(calls):
        last = policy.select_action(state)
    return {
        "calls": calls, "resident_before_bytes": before, "resident_growth_bytes": resident() - before,
        "last_is_first": bool(np.array_equal(first, last)),
        "cpu_microseconds_per_call": 1e6 * (time.process_time() - start) / calls,
    }  # fmt: skip


def tables(record: dict[str, Any]) -> dict[str, str]:
    """Return the tables of docs/deploy.md, by the names of their marks."""
    actors, served = [], []
    for row in record["actors"]:
        actors.append({
            "actor": row["actor"], "largest error": row["largest error"], "kB": _short(row["kB"]),
            **{
                f"{name}, {count} row{'s' if count > 1 else ''}": _short(row[f"{name}, us, batch {count}"])
                for count in (1, 64) for name in ("runner", "torch")
            },
            **{f"{name}, start, s": _short(row[f"{name}, start, CPU s"]) for name in ("runner", "torch")},
        })  # fmt: skip
        alone, *clients = record["served"][row["actor"]]["rows"]
        served.append({"actor": row["actor"], "the runner alone": _p50_p99(alone)} | {
            f"{count} client{'s' if count > 1 else ''}": _p50_p99(one)
            for count, one in zip(CLIENTS, clients, strict=True)
        } | {"actions/s, 64 clients": _short(clients[-1]["actions/s"])})  # fmt: skip
    return {
        "exported": markdown(pd.DataFrame(actors)).strip(), "served": markdown(pd.DataFrame(served)).strip(),
    }  # fmt: skip


def _p50_p99(row: dict[str, Any]) -> str:
    return f"{_short(row['p50, ms'])} / {_short(row['p99, ms'])}"


def _short(value: float) -> str:
    """Three digits, and never an exponent."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def write_docs(record: dict[str, Any]) -> None:
    """Write the tables of docs/deploy.md."""
    for name, table in tables(record).items():
        write_section(DOCS, name, table)


def main() -> None:
    """Measure all, and write the record and the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--calls", type=int, default=CALLS, help="calls of the endurance test")
    parser.add_argument(
        "--write-docs", action="store_true", help="write the tables from the record, measure nothing"
    )
    options = parser.parse_args()
    path = RESULTS / "deploy.json"
    if options.write_docs:
        write_docs(json.loads(path.read_text()))
        return
    torch.set_num_threads(1)
    load = os.getloadavg()[0]
    if load > 0.5:
        print(f"other work is running (load {load:.1f}); it affects all results", flush=True)  # noqa: T201
    command, begin = mlserver(), time.perf_counter()
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        rows, served = [], {}
        for kind in ACTORS:
            rows.append(measure(kind, place / kind))
            asked = SERVED if kind in ("gaussian", "categorical") else SERVED // 4
            latencies, answers = serve(place / kind, command, asked)
            served[kind] = {"calls": asked, "rows": latencies, **answers}
            print(rows[-1], served[kind], flush=True)  # noqa: T201
        calls = endurance(place / "gaussian", options.calls)
    record = write_record(
        path,
        load=load,
        seconds=round(time.perf_counter() - begin),
        actors=rows,
        served=served,
        endurance=calls,
    )
    write_docs(record)
    print(*tables(record).values(), calls, sep="\n\n")  # noqa: T201


if __name__ == "__main__":
    main()
