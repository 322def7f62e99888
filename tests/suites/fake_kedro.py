"""Stands for ``kedro run``: writes the files that a suite reads, and logs nodes as a run does.

The folder FAKES of the environment has a file ``<task>`` for each task that behaves badly: ``hold`` waits until the
file is gone, ``kill`` kills the parent process, ``fail`` ends with status 1. With a file ``no_gl``, videos are empty.
Each start and end is a line in its ``calls.txt``.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

import fsspec  # type: ignore[import-untyped]
import pyarrow as pa
import pyarrow.parquet as pq

RATES = {"cvl": 4, "bc": 1, "iql": 2}
"""Solved episodes of four."""


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def main() -> None:
    given = dict(part.split("=") for part in sys.argv[-1].split(","))
    fakes, root, task = Path(os.environ["FAKES"]), given["data.root"], given["dataset.task"]
    folder = f"{task if 'dataset.preset' not in given else task + '-' + given['dataset.preset']}/seed_{given['seed']}"

    def note(event: str) -> None:
        with (fakes / "calls.txt").open("a") as file:
            file.write(f"{event} {root.rpartition('/')[2]} {os.getpid()} {os.getppid()} {sys.argv[-1]}\n")

    note("start")
    behaviour = fakes / task
    while behaviour.exists() and (text := behaviour.read_text()):
        if text == "fail":
            sys.exit("Error: the disk is full")
        if text == "kill":
            os.kill(os.getppid(), signal.SIGKILL)
        time.sleep(0.05)
    methods = ["cvl", *(name.split(".")[1] for name in given if name.endswith(".method"))]
    options = json.loads(os.environ.get("FAKE_S3", "{}"))
    files = fsspec.filesystem("s3" if options else "file", **options)
    say("02:17:11 INFO     1/9 contrastive_dynamics.train -> critic, dynamics_history (20.5 s)")
    for name in methods:
        success = [True] * RATES[name] + [False] * (4 - RATES[name])
        path = f"{root}/07_model_output/{folder}/{name}_rollouts.parquet"
        files.makedirs(path.rpartition("/")[0], exist_ok=True)
        with files.open(path, "wb") as file:
            pq.write_table(pa.table({"success": success, "return": [1.23456789] * 4}), file)
        if "evaluation.videos.size" in given:
            path = f"{root}/08_reporting/{folder}/{name}_video_median.mp4"
            files.makedirs(path.rpartition("/")[0], exist_ok=True)
            with files.open(path, "wb") as file:
                file.write(b"" if (fakes / "no_gl").exists() else f"film of {name}".encode())
        say(f"         INFO     2/9 policy_extraction.train_{name} -> {name}_policy (3.2 s, beside)")
    path = f"{root}/08_reporting/{folder}/metrics.json"
    files.makedirs(path.rpartition("/")[0], exist_ok=True)
    with files.open(path, "w") as file:
        file.write(json.dumps({"behaviour.success_rate": 0.25}))
    for node in ("value_readout.label", "value_readout.read_out"):
        say(f"         INFO     3/9 {node} -> labels (0.5 s)")
    note("end")


if __name__ == "__main__":
    main()
