"""Every command of README and docs, run in a fresh clone: its exit status, its time and its last words.

``python -m benchmarks.commands --clone FOLDER`` clones this checkout, installs it with ``make``, writes the files that
a reader would bring (a log of a robot, a recording, a reward of one's own), and runs each command, page by page. A
``kedro run`` that names no environment takes the sizes of ``conf/smoke``. Commands that take hours, and servers, are
interrupted after a while. What cannot run here has its reason in ``NOT_RUN``. Commands with a record are not run again.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import yaml

from benchmarks.common import PROJECT, RESULTS, markdown, write_record, write_section

PAGES = sorted([
    *(PROJECT / name for name in ("README.md", "CONTRIBUTING.md", "conf/README.md", "data/README.md")),
    *(PROJECT / "docs").rglob("*.md"),
])  # fmt: skip
NOTEBOOKS = sorted((PROJECT / "notebooks").glob("*.ipynb"))
NOT_HERE = {
    "#!/bin/bash": "a job file of SLURM, which this machine does not have",
    "cd ": "the shell's own; each command starts in the project's folder",
    "curl ": "it asks that server",
    "dask ": "a cluster of the reader's; tests/suites starts a scheduler and workers",
    "CUDA_VISIBLE_DEVICES=0 dask worker": "as dask scheduler",
    "docker ": "no container can be built here",
    "git clone": "the clone in which all others run",
    "cvl init": "tests/integration/test_packaging.py runs it, with the wheel in an environment of its own",
    "kubectl ": "a cluster of the reader's",
    "python kubernetes_cluster.py": "a cluster of the reader's; tests/suites/test_pages.py runs the script",
    "mkdir mine": "for cvl init",
    "printf 'POSTGRES": "for docker compose",
    "source .venv/bin/activate": "the shell's own",
    "trap ": "SLURM",
    "uv ": "it needs PyTorch's index, which cannot be reached here",
    "wait ": "SLURM",
    "wandb ": "it uploads to an account of the reader's",
    "MLSERVER_HOST=": "`make bench-deploy` starts and asks this server",
    "CVL_LEROBOT_PYTHON=": "LeRobot's package, in an environment of the reader's",
    ".venv/bin/pre-commit install": "it changes hooks of git; make lint runs what they run",
    "kedro mlflow": "of a plugin that the lock does not have",
}  # fmt: skip
"""How commands begin that neither ``python -m benchmarks.commands`` runs nor the tests check, and why."""
NOT_RUN = NOT_HERE | {
    "export ": "the shell's own",
    "python -m benchmarks.commands": "the command that runs all others",
    "make test": "`.ci/run` runs it, in a fresh clone of its own",
    'pip install "cvl-pipeline': "not published yet; tests/integration/test_packaging.py installs the wheel",
    "pip install 'cvl-pipeline": "not published yet; tests/integration/test_packaging.py installs the wheel",
    "pip install torch --index-url": "PyTorch's index cannot be reached here; make tries it first",
    "kedro suite run metaworld-50 --scheduler": "a cluster of the reader's",
    "kedro run --params data.root=s3": "a bucket of the reader's; tests/integration/test_remote.py has one",
    "kedro run --params data.root=/scratch": "a disk of the reader's",
    "kedro run --pipelines data_ingestion,tuning --params tuning.storage=study_database": "for docker compose",
    ".venv/bin/kedro run --params \"contrastive_dynamics.training.nodes": "SLURM",
    'kedro run --params "contrastive_dynamics.training.nodes': "a second machine",
    "python -m benchmarks.references": "hours; docs/benchmarks.md has what was measured by it",
    "mlflow server": "of the extra `mlflow`, which the lock does not have",
    "pip install kedro-mlflow": "it would be part of every command after it",
    'pip install "cvl-pipeline[mlflow': "the lock does not have it",
}  # fmt: skip
"""How commands begin that are not run, and why."""
REFUSED = {
    "kedro run --params \"dataset.source=d4rl,dataset.task=hopper-medium-v2\"": "no download",
    "kedro run --params \"dataset.source=minari": "no download",
    "kedro run --params \"dataset.source=lerobot,dataset.task=lerobot/pusht": "no download",
    "kedro run --params \"dataset.source=ogbench,dataset.task=cube-single-play-singletask-task2-v0\"": "no download",
    "kedro run --params \"dataset.source=d4rl,dataset.task=hopper-medium-v2,baselines": "no download",
    'kedro run --params "dataset.source=lerobot,dataset.path=recordings/pick_cube,dataset.instruction': "the "
    "recording that was brought has other tasks",
    "kedro suite cancel quick": "it has ended",
    "kedro run --params \"contrastive_dynamics.training.loggers=tensorboard mlflow": "the lock has no mlflow",
    "kedro run --env robot --params evaluation.environment=CartPole-v1": "the robot has other actions than a cart",
}  # fmt: skip
"""How commands begin that must end with an error here, and why."""
LONG = (
    "make baselines", "make rivals", "make faults", "make viz", "kedro suite run rivals",
    "kedro suite run metaworld-50", "kedro suite run ogbench", "tensorboard ",
    ".venv/bin/kedro tuning dashboard", "kedro tuning dashboard",
)  # fmt: skip
"""How commands begin that are interrupted after ``--patience`` seconds: they take hours, or serve until then."""


ROBOT = """
import gymnasium
import numpy as np


class ReachEnv(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (4,), np.float32)
    action_space = gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.state = np.zeros(4, np.float32)
        return self.state.copy(), {}

    def step(self, action):
        self.state[:2] += 0.2 * action
        return self.state.copy(), -float(np.abs(self.state[:2]).sum()), False, False, {}
"""
"""The environment of the robot's log."""


def text_of(page: Path) -> str:
    """The Markdown of a page or a notebook."""
    if page.suffix == ".md":
        return page.read_text()
    cells = json.loads(page.read_text())["cells"]
    return "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")


def blocks(page: Path, language: str) -> list[str]:
    """The blocks of a language in a page."""
    return re.findall(rf"```{language}\n(.*?)```", text_of(page), re.DOTALL)


def lines(page: Path) -> list[str]:
    """The commands of a page, one line each."""
    found = [line for block in blocks(page, "bash") for line in block.replace("\\\n", "").splitlines()]
    return [line for line in found if line.strip() and not line.startswith(("#SBATCH", "# "))]


def bring_files(clone: Path) -> None:
    """Write into a clone what the commands of the pages take from their reader."""
    generator = np.random.default_rng(0)
    episodes, steps = 20, 30
    rows = episodes * steps
    run, step = np.divmod(np.arange(rows), steps)
    actions = generator.uniform(-1.0, 1.0, (rows, 2))
    moves = np.concatenate([actions, generator.normal(0.0, 0.1, (rows, 2))], axis=1).reshape(
        episodes, steps, 4
    )
    states = np.cumsum(moves * 0.2, axis=1).reshape(rows, 4)
    reward = -np.abs(states[:, :2]).sum(axis=1)
    columns = {
        "x": states[:, 0], "y": states[:, 1], "joint_1": states[:, 2], "joint_2": states[:, 3],
        "torque_0": actions[:, 0], "torque_1": actions[:, 1], "reward": reward, "fell": 0 * run, "run": run, "t": step,
    }  # fmt: skip
    table = np.stack(list(columns.values()), axis=1)
    np.savetxt(clone / "robot.csv", table, delimiter=",", header=",".join(columns), comments="", fmt="%.6g")
    np.savez(
        clone / "robot.npz",
        observations=states,
        actions=actions,
        rewards=reward,
        terminated=0 * run,
        truncated=step == steps - 1,
    )
    with h5py.File(clone / "robot.h5", "w") as file:
        angles = np.stack([np.cos(states[:, 0]), np.sin(states[:, 0]), states[:, 1]], axis=1)
        after = np.concatenate([angles[1:], angles[-1:]])
        after[steps - 1 :: steps] += 0.01
        values = {
            "angle": angles,
            "angle_after": after,
            "torque": 2 * actions[:, :1],
            "reward": reward,
            "run": run,
        }
        for name, value in values.items():
            file[name] = value
    with h5py.File(clone / "hopper_medium-v2.hdf5", "w") as file:
        flags = step == steps - 1
        values = {
            "observations": generator.normal(size=(rows, 11)), "actions": generator.uniform(-1.0, 1.0, (rows, 3)),
            "rewards": generator.normal(size=rows), "terminals": 0 * run, "timeouts": flags,
        }  # fmt: skip
        for name, value in values.items():
            file[name] = value.astype(bool) if name in ("terminals", "timeouts") else value.astype(np.float32)
    shutil.copytree(clone / "tests/fixtures/lerobot/v30", clone / "recordings/pick_cube")
    robot = yaml.safe_load(blocks(clone / "docs/own-data.md", "yaml")[0])
    small = yaml.safe_load((clone / "conf/smoke/parameters.yml").read_text())
    robot = small | robot  # the sizes of smoke, the log of the page
    (clone / "conf/robot").mkdir()
    (clone / "conf/robot/parameters.yml").write_text(yaml.safe_dump(robot))
    reward_of_ones_own = next(
        block for block in blocks(clone / "docs/own-data.md", "python") if "def fast" in block
    )
    (clone / "my_rewards.py").write_text(reward_of_ones_own)
    (clone / "my_robot.py").write_text(ROBOT)


def run(line: str, clone: Path, patience: float, limit: float) -> dict[str, Any]:
    """Run one command of a page as its reader would, and tell how it ended."""
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("KEDRO", "PYTHON"))
    }
    environment |= {
        "PATH": f"{clone / '.venv/bin'}:{os.environ['PATH']}",
        "PYTHONPATH": ".",
        "KEDRO_DISABLE_TELEMETRY": "1",
    }
    if "--env " not in line and re.search(r"kedro (run|fleet|artifacts|tuning)", line):
        environment["KEDRO_ENV"] = "smoke"
    log = clone / "command.log"
    start, stopped = time.perf_counter(), False
    with log.open("w") as file:
        process = subprocess.Popen(
            ["bash", "-c", line], cwd=clone, env=environment, stdin=subprocess.DEVNULL, stdout=file, stderr=file,
            start_new_session=True,
        )  # fmt: skip
        try:
            process.wait(patience if line.startswith(LONG) else limit)
        except subprocess.TimeoutExpired:
            stopped = True
            os.killpg(process.pid, signal.SIGINT)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    words = [word.strip() for word in log.read_text(errors="replace").splitlines() if word.strip()]
    last = next((word for word in reversed(words) if word.startswith("Error")), words[-1] if words else "")
    return {
        "status": None if stopped else process.returncode,
        "seconds": round(time.perf_counter() - start, 1),
        "last": re.sub(r"\s+", " ", last.replace(f"{clone}/", "").replace(str(Path.home()), "~"))[:200],
    }


def outcome(entry: dict[str, Any]) -> str:
    """What a reader needs to know about how a command ended."""
    line = entry["command"]
    reason = next((why for start, why in REFUSED.items() if line.startswith(start)), None)
    if "why" in entry:
        return f"not run: {entry['why']}"
    if "status" not in entry:
        return "not run yet"
    if entry["status"] is None:
        return "works until it is interrupted" if line.startswith(LONG) else "too long"
    if entry["status"] and reason:
        return f"refused, as it must be: {reason}"
    return "" if not entry["status"] else entry["last"]


def table(entries: list[dict[str, Any]]) -> str:
    """The commands as a table of Markdown."""
    rows = [
        {
            "page": entry["page"],
            "command": f"`{entry['command'].partition('  #')[0].strip()}`".replace("|", "\\|"),
            "status": "" if entry.get("status") is None else entry["status"],
            "seconds": "" if "seconds" not in entry else f"{entry['seconds']:.0f}",
            "outcome": outcome(entry).replace("|", "\\|"),
        }
        for entry in entries
    ]
    return markdown(pd.DataFrame(rows), digits=0)


def main() -> None:
    """Run the commands and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clone", type=Path, help="the folder of the fresh clone; none: write the page only")
    parser.add_argument("--only", default="", help="words that a page's name must contain")
    parser.add_argument(
        "--patience", type=float, default=60.0, help="seconds until a long command is interrupted"
    )
    parser.add_argument("--limit", type=float, default=900.0, help="seconds that any other command may take")
    arguments = parser.parse_args()
    clone = arguments.clone.resolve() if arguments.clone else None
    path = RESULTS / "commands.json"
    known = json.loads(path.read_text())["commands"] if path.exists() else []
    done = {(entry["page"], entry["command"]): entry for entry in known}
    if clone and not clone.exists():
        subprocess.run(["git", "clone", "--quiet", str(PROJECT), str(clone)], check=True)
        subprocess.run(["make", ".venv/installed"], cwd=clone, check=True)
        bring_files(clone)
    entries: list[dict[str, Any]] = []
    for page in [*PAGES, *NOTEBOOKS]:
        for line in lines(page):
            name = str(page.relative_to(PROJECT))
            why = next((reason for start, reason in NOT_RUN.items() if line.startswith(start)), None)
            entry = {"page": name, "command": line}
            if why:
                entries.append({**entry, "why": why})
            elif (name, line) in done:
                entries.append(done[name, line])
            elif clone and arguments.only in name:
                print(shlex.join([name, line]), flush=True)  # noqa: T201
                entries.append({**entry, **run(line, clone, arguments.patience, arguments.limit)})
                print(entries[-1], flush=True)  # noqa: T201
                done[name, line] = entries[-1]
                write_record(path, commands=list(done.values()))
            else:
                entries.append(entry)
    finished = [entry for entry in entries if "status" in entry or "why" in entry]
    write_record(path, measured=clone is not None, commands=finished)
    write_section(PROJECT / "docs/tried.md", "commands", table(entries))
    failed = [entry for entry in entries if entry.get("status") and not outcome(entry).startswith("refused")]
    sys.exit(f"{len(failed)} commands failed" if failed else 0)


if __name__ == "__main__":
    main()
