"""Exported policies beside torch: parity, CPU time, size, start-up, and a million calls (docs/deploy.md).

Actors have the default sizes and random weights. One thread. The fastest of several rounds counts.

    python -m benchmarks.deploy
"""

from __future__ import annotations

import argparse
import json
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

from benchmarks.common import RESULTS, markdown, write_record
from cvl_pipeline.deploy.export import export_policy
from cvl_pipeline.deploy.parameters import ExportParameters
from cvl_pipeline.deploy.runner import CONTRACT, POLICY_FILE, load_policy
from cvl_pipeline.episodes.container import Normalisation, Transitions
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


def _data(kind: str) -> Transitions:
    lengths, ends = [200] * 6, [False] * 6
    if kind == "categorical":
        return make_discrete_transitions(lengths, ends, ACTION)
    data = make_transitions(lengths, ends, OBSERVATION, ACTION)
    if "image" not in kind:
        return data
    shape = (len(data.observations), PIXELS, PIXELS, 3)
    pixels = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return replace(data, observations=pixels)


def _policy(kind: str, data: Transitions) -> Policy:
    size, actions = data.observations.shape[-1], data.actions.shape[1]
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
    for batch in (1, 64):
        states = data.observations[:batch].numpy()
        for name, function in (("runner", loaded.select_action), ("torch", policy.act)):
            row[f"{name}, us, batch {batch}"] = round(_microseconds(lambda f=function, s=states: f(s)))  # type: ignore[misc]
    return row


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


def main() -> None:
    """Measure all, and write the record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=CALLS, help="calls of the endurance test")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        rows = []
        for kind in ("gaussian", "categorical", "best of 32", "goals", "image"):
            rows.append(measure(kind, place / kind))
            print(rows[-1], flush=True)  # noqa: T201
        folder = str(place / "gaussian")
        save = "from cvl_pipeline.api import load; import torch"
        startup = {
            "runner_cpu_seconds": _startup(
                "import sys; sys.path.insert(0, sys.argv[1]); import runner; runner.load_policy(sys.argv[1])",
                folder,
            ),
            "torch_cpu_seconds": _startup(save),
        }
        calls = endurance(place / "gaussian", options.calls)
    write_record(RESULTS / "deploy.json", actors=rows, startup=startup, endurance=calls)
    print(markdown(pd.DataFrame(rows)), startup, calls, sep="\n")  # noqa: T201


if __name__ == "__main__":
    main()
