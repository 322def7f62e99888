"""Faults around a run: its data is moved, its lock is deleted, its reward is edited, its log has values elsewhere."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np

from tests.faults import injections
from tests.faults.references import RECORD, Contents, artifacts, lay
from tests.faults.runs import ENVIRONMENT, PARAMETERS, Outcome, command, make_project, run

MOVED = "data moved away"
UNLOCKED = "lock deleted, and a second run"
EDITED = "reward edited"
SECOND = "second.output"
"""Output of the second run."""

REWARD = "fault_reward"
REWARDED = f"{PARAMETERS},reward.source={REWARD}:reward"
"""Parameters of a run with a reward function of the user's own."""
BEFORE, AFTER = 1.0, -25.125
"""Factor of the reward before and after the edit; the texts differ in length, as Python's cache needs."""


def write_reward(root: Path, factor: float) -> None:
    """Write the module of the reward function, which is on the run's Python path."""
    (root / "src" / f"{REWARD}.py").write_text(
        f"def reward(observations, actions, next_observations):\n    return {factor} * next_observations[:, 0]\n"
    )


def edit_reward(path: Path) -> None:
    """Edit the module, as a user may during a run."""
    write_reward(Path(), AFTER)


def move_data(path: Path) -> None:
    """Move the folder of all data, as a user may during a run."""
    Path("data").rename("moved")


def move_back(root: Path) -> None:
    """Undo ``move_data``; what was written in the meantime is deleted."""
    if (root / "moved").exists():
        shutil.rmtree(root / "data", ignore_errors=True)
        (root / "moved").rename(root / "data")


def unlock_for_a_second_run(arguments: list[str]) -> Callable[[Path], None]:
    """Delete the lock of this run, and wait for a second one of the same command to end."""

    def act(path: Path) -> None:
        for lock in Path("data/.locks").rglob("*.lock"):
            lock.unlink()
        environment = {**os.environ, "KEDRO_ENV": ENVIRONMENT}
        with Path(SECOND).open("wb") as output:
            line = [sys.executable, "-m", "kedro", "run", *arguments]
            status = subprocess.call(line, stdout=output, stderr=subprocess.STDOUT, env=environment)
            output.write(f"\nstatus {status}\n".encode())

    return act


def second_of(root: Path) -> Outcome | None:
    """Return how the second run ended; None if the fault came too late for one."""
    if not (root / SECOND).exists():
        return None
    output, _, status = (root / SECOND).read_text(errors="replace").rpartition("\nstatus ")
    return Outcome(int(status), output, 0.0)


LOG = "log.hdf5"
OTHER = "other.hdf5"
"""File that holds the values of the log."""
ELSEWHERE = ("soft link", "hard link", "external link", "external storage", "virtual dataset")
MISSING = " whose file is missing"
UNWRITTEN = "chunks that were never written"
CHANGED = ", then changed"
LOGS = (
    *ELSEWHERE,
    *(f"{kind}{CHANGED}" for kind in ELSEWHERE),
    *(f"{kind}{MISSING}" for kind in ELSEWHERE[2:]),
    UNWRITTEN,
)
"""Logs whose values are not simply in them."""
OF_LOG = (
    "dataset.source=files,dataset.name=log,dataset.path=log.hdf5,dataset.columns.observations=observations,"
    "dataset.columns.actions=actions,dataset.columns.rewards=rewards,dataset.columns.terminated=null,"
    "dataset.columns.truncated=timeouts,data_ingestion.validation_fraction=0.3"
)


def of_log(reuse: bool = False) -> list[str]:
    """Return the arguments of a run that reads the log."""
    return command(["data_ingestion"], parameters=OF_LOG, reuse=reuse)


def _values(factor: float) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    ends = np.zeros(60, dtype=np.uint8)
    ends[14::15] = 1
    return {
        "observations": factor * generator.standard_normal((60, 3)).astype(np.float32),
        "actions": generator.uniform(-1.0, 1.0, (60, 2)).astype(np.float32),
        "rewards": factor * generator.standard_normal(60).astype(np.float32),
        "timeouts": ends,
    }


def write_log(root: Path, kind: str, factor: float) -> None:
    """Write a log of a kind, the same values for the same factor; ``plain``: all values are in it."""
    values = _values(factor)
    with h5py.File(root / OTHER, "w") as other:
        for name, content in values.items():
            other[name] = content
    (root / "values.bin").write_bytes(values["observations"].tobytes())
    with h5py.File(root / LOG, "w") as file:
        for name, content in values.items():
            if name != "observations" or kind == "plain":
                file[name] = content
            elif kind == "soft link":
                file["raw/states"] = content
                file[name] = h5py.SoftLink("/raw/states")
            elif kind == "hard link":
                file["a_first_name/states"] = content
                file[name] = file["a_first_name/states"]
            elif kind == "external link":
                file[name] = h5py.ExternalLink(OTHER, name)
            elif kind == "external storage":
                storage = [(str(root / "values.bin"), 0, content.nbytes)]
                file.create_dataset(name, content.shape, content.dtype, external=storage)
            elif kind == "virtual dataset":
                layout = h5py.VirtualLayout(content.shape, content.dtype)
                layout[:] = h5py.VirtualSource(root / OTHER, name, content.shape)
                file.create_virtual_dataset(name, layout)
            else:  # half of the chunks are never written
                dataset = file.create_dataset(name, content.shape, content.dtype, chunks=(15, 3))
                dataset[:30] = content[:30]


def remove_values(root: Path) -> None:
    """Delete the files that hold the values of a log."""
    for name in (OTHER, "values.bin"):
        (root / name).unlink()


def make_logs(folder: Path) -> dict[float, Contents]:
    """Return what undisturbed runs make of plain logs, by the factor of their values.

    Raises:
        RuntimeError: a run failed.
    """
    made = {}
    for factor in (BEFORE, AFTER):
        root = make_project(folder / f"log {factor}")
        write_log(root, "plain", factor)
        outcome = run(root, of_log())
        if outcome.status != 0:
            raise RuntimeError(f"a plain log was not read:\n{outcome.output}")
        made[factor] = without_records(artifacts(root))
    return made


def without_records(contents: Contents) -> Contents:
    """Return the artifacts alone: records name the files that were read."""
    return {path: content for path, content in contents.items() if not path.endswith(RECORD)}


def make_edited(folder: Path, newer: Contents) -> Contents:
    """Return what an undisturbed run makes with the edited reward.

    Raises:
        RuntimeError: the run failed.
    """
    root = make_project(folder / "edited")
    lay(root, newer)
    write_reward(root, AFTER)
    outcome = run(root, command(parameters=REWARDED, reuse=True))
    if outcome.status != 0:
        raise RuntimeError(f"a run with a reward of the user's own failed:\n{outcome.output}")
    return artifacts(root)


def at_some_call(draw: random.Random, calls: int, act: Callable[[Path], None]) -> Callable[[], None]:
    """Have ``act`` called before one of the first flushes of a run."""
    return injections.at_call("flush", draw.randint(1, max(1, calls)), act)
