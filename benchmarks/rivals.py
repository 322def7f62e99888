"""All methods on all tasks and presets: success, and time to train (docs/benchmarks.md, protocol in rivals.yml).

A cell is a task, a preset and a seed: one ``kedro run`` of all methods. A finished cell has a record, one line of JSON,
and is not run again; a cell that was interrupted goes on. A method that a record lacks is added to it. At the end, the
tables and a picture are made from the records.

    python -m benchmarks.rivals                              # the test cells
    python -m benchmarks.rivals --set tuning --seeds 0 --jobs 2
    python -m benchmarks.rivals --report                     # the tables of the records at hand
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
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any

import pandas as pd
import yaml
from omegaconf import OmegaConf

from benchmarks import rivals_report
from benchmarks.common import PROJECT, RESULTS, kedro_command, machine
from cvl_pipeline.environments.rollouts import available_cores
from cvl_pipeline.errors import InputError
from cvl_pipeline.io.storage import write_atomically
from cvl_pipeline.kedro.configuration import CheckedConfigLoader
from cvl_pipeline.kedro.settings import CONFIG_LOADER_ARGS
from cvl_pipeline.methods.base import METHODS
from cvl_pipeline.schema import flattened, nested

PROTOCOL = PROJECT / "benchmarks/rivals.yml"
CODE = ("src", "conf", "requirements.lock")
"""What results follow from."""
VARIANT = rivals_report.VARIANT
NODE = re.compile(r"\d+/\d+ (\S+) -> .*\((\d+\.\d) s(?:, beside)?\)")
"""The line that a run prints after each node."""
START, END = "# start", "# finished"
"""Lines in a cell's log, around each run."""


@dataclass(frozen=True, order=True)
class Cell:
    """One entry of the table: all methods are trained and evaluated on the same data."""

    seed: int
    preset: str
    task: str
    budget: int = 1

    @property
    def name(self) -> str:
        """Name of its record, and of its folder of data."""
        return f"{self.task}_{self.preset}_seed{self.seed}_x{self.budget}"


@dataclass(frozen=True)
class Plan:
    """What every cell has in common.

    Attributes:
        methods: names of methods, ``cvl`` among them, and of variants, ``<method>__<variant>``.
        variants: settings of variants, by method and name.
        uses: CVL's networks that a method uses (``critic``, ``regression``), by its name.
        episodes: number of evaluation episodes.
        env: folder of conf/ with other settings.
        given: more parameters, by their full names. They win.
        threads: cores of a run.
        records: folder of the records.
        data: folder of the data of all cells.
        keep: whether the data of a finished cell is kept.
    """

    methods: tuple[str, ...]
    variants: Mapping[str, Mapping[str, Mapping[str, Any]]]
    uses: Mapping[str, Sequence[str]]
    episodes: int
    env: str | None
    given: Mapping[str, Any]
    threads: int
    records: Path
    data: Path
    keep: bool

    def steps(self, budget: int) -> dict[str, int]:
        """Gradient steps of CVL's critic, regression and policy; raises InputError on faulty parameters."""
        parameters = _loader(self.env, self.given).run_parameters()
        regression = parameters.value_readout.regression
        steps = {
            "contrastive_dynamics.training.steps": parameters.contrastive_dynamics.training.steps,
            "policy_extraction.training.steps": parameters.policy_extraction.training.steps,
        }
        if regression:
            steps["value_readout.regression.steps"] = regression.steps
            steps["value_readout.regression.value_steps"] = regression.value_steps
        return {name: budget * count for name, count in steps.items()}

    def settings(self, cell: Cell) -> dict[str, Any]:
        """Parameters of a cell that decide the results of all methods."""
        settings: dict[str, Any] = {"dataset.task": cell.task, "seed": cell.seed}
        if cell.preset != "mixed":  # the default of every source
            settings["dataset.preset"] = cell.preset
        settings["evaluation.episodes"] = self.episodes
        return settings | self.steps(cell.budget) | dict(self.given)

    def baselines(self, cell: Cell, methods: Sequence[str]) -> dict[str, Any]:
        """Parameters that choose methods beside CVL, each with the steps of all of CVL's networks."""
        steps = self.steps(cell.budget)
        of_network = {"critic": "contrastive_dynamics.", "regression": "value_readout."}
        chosen: dict[str, Any] = {} if "bc" in methods else {"baselines.bc": None}  # conf/base has it
        for name in methods:
            if name == "cvl":
                continue
            method, _, variant = name.partition(VARIANT)
            entry = {"method": method}
            if method != "cvl":  # a variant of CVL's extraction, from the critic at hand
                used = tuple(of_network[network] for network in self.uses.get(method, ()))
                own = sum(count for field, count in steps.items() if not field.startswith(used))
                entry["training.steps"] = own
            if variant:
                entry |= flattened(self.variants[method][variant])
            chosen |= {f"baselines.{name}.{field}": value for field, value in entry.items()}
        return chosen

    def command(self, cell: Cell, methods: Sequence[str]) -> list[str]:
        """The command of a cell."""
        place = {
            "data.root": str(self.data / cell.name),
            "data_ingestion.workers": self.threads,
            "evaluation.workers": self.threads,
        }
        parameters = self.settings(cell) | self.baselines(cell, methods) | place | dict(self.given)
        texts = (f"{name}={'null' if value is None else value}" for name, value in parameters.items())
        return kedro_command(
            "--only-missing-outputs",
            *(["--env", self.env] if self.env else []),
            *(["--runner", "SequentialRunner"] if self.threads == 1 else []),
            params=",".join(texts),
        )

    def check(self, cell: Cell) -> None:
        """Raise InputError if the cell has a faulty parameter."""
        parameters = self.settings(cell) | self.baselines(cell, self.methods) | dict(self.given)
        _loader(self.env, parameters).run_parameters()

    def record_path(self, cell: Cell) -> Path:
        """Path of a cell's record."""
        return self.records / f"{cell.name}.json"

    def record(self, cell: Cell) -> dict[str, Any] | None:
        """Read a cell's record.

        Raises:
            InputError: it was made with other settings.
        """
        path = self.record_path(cell)
        if not path.exists():
            return None
        record: dict[str, Any] = json.loads(path.read_text())
        now = {"env": self.env, **self.settings(cell)}
        before = record["settings"]
        changed = [name for name in {**now, **before} if now.get(name) != before.get(name)]
        if changed:
            raise InputError(
                f"{path} was made with other settings ({', '.join(changed)}); delete it, or name another --records"
            )
        return record

    def missing(self, cell: Cell) -> list[str]:
        """Methods whose results the cell's record lacks."""
        record = self.record(cell)
        return [name for name in self.methods if record is None or name not in record["methods"]]


def _loader(env: str | None, parameters: Mapping[str, Any]) -> CheckedConfigLoader:
    return CheckedConfigLoader(
        str(PROJECT / "conf"), env=env, runtime_params=nested(parameters), **CONFIG_LOADER_ARGS
    )


def given_parameters(text: str) -> dict[str, Any]:
    """Parse ``--params`` into values by full names."""
    values: Any = OmegaConf.to_container(OmegaConf.from_dotlist([part for part in text.split(",") if part]))
    return flattened(values)


def cells(seeds: Sequence[int], presets: Sequence[str], tasks: Sequence[str], budget: int) -> list[Cell]:
    """List the cells in their order."""
    return [Cell(seed, preset, task, budget) for seed in seeds for preset in presets for task in tasks]


def read_log(text: str) -> tuple[dict[str, float], bool]:
    """Read a cell's log: the seconds of every node, of its last run, and whether any run was interrupted."""
    seconds, running, interrupted = {}, False, False
    for line in text.splitlines():
        if line.startswith(START):
            interrupted |= running
            running = True
        elif line.startswith(END):
            running = False
        elif match := NODE.search(line):
            seconds[match[1]] = float(match[2])
    return seconds, interrupted


def results(data: Path, methods: Sequence[str]) -> dict[str, Any]:
    """Read success and return of every episode of a finished cell.

    Raises:
        InputError: the simulator does not report success.
    """
    found: dict[str, Any] = {}
    for name in methods:
        (path,) = data.glob(f"07_model_output/**/{name}_rollouts.parquet")
        table = pd.read_parquet(path)
        if table["success"].isna().any():
            raise InputError(f"{path}: success is not known")
        found[name] = {
            "success": table["success"].astype(int).tolist(),
            "returns": [float(f"{value:.6g}") for value in table["return"]],
        }
    return found


def behaviour(data: Path) -> float:
    """Success rate of the behaviour data of a finished cell."""
    (path,) = data.glob("08_reporting/**/metrics.json")
    return float(json.loads(path.read_text())["behaviour.success_rate"])


def commit() -> str | None:
    """The git commit of the code; None if the code has changes that are not committed, or is not in git."""

    def git(*arguments: str) -> str | None:
        done = subprocess.run(["git", *arguments], cwd=PROJECT, capture_output=True, text=True, check=False)
        return None if done.returncode else done.stdout.strip()

    return git("rev-parse", "HEAD") if git("status", "--porcelain", "--", *CODE) == "" else None


def write_record(
    plan: Plan, cell: Cell, methods: Sequence[str], log: str, code: str | None
) -> dict[str, Any]:
    """Add a finished run to the cell's record; results that it has already stay as they are."""
    data = plan.data / cell.name
    before = plan.record(cell) or {"behaviour": behaviour(data), "runs": [], "methods": {}}
    seconds, interrupted = read_log(log)
    run = {
        "command": shlex.join(["kedro", *plan.command(cell, methods)[1:]]).replace(
            str(data), f"data/{cell.name}"
        ),
        "commit": code,
        "machine": machine(),
        "threads": plan.threads,
        "interrupted": interrupted,
        "seconds": seconds,
    }
    number = len(before["runs"])
    new = {name: {"run": number, **values} for name, values in results(data, methods).items()}
    record = {
        **vars(cell),
        "settings": {"env": plan.env, **plan.settings(cell)},
        "behaviour": before["behaviour"],
        "runs": [*before["runs"], run],
        "methods": new | before["methods"],
    }
    text = json.dumps(record, separators=(",", ":")) + "\n"
    write_atomically(plan.record_path(cell), lambda path: path.write_text(text))
    return record


class Runner:
    """Runs cells, several at once."""

    def __init__(self, plan: Plan) -> None:
        """Start with no process."""
        self._plan = plan
        self._processes: set[subprocess.Popen[bytes]] = set()
        self._stopping = Event()

    def run(self, todo: Sequence[Cell], jobs: int) -> list[Cell]:
        """Run the cells in their order and write their records; return those that failed."""
        failed = []
        with ThreadPoolExecutor(jobs) as pool:
            futures = {pool.submit(self._cell, cell): cell for cell in todo}
            try:
                for number, future in enumerate(as_completed(futures), 1):
                    cell = futures[future]
                    try:
                        text = future.result()
                    except (RuntimeError, InputError) as error:
                        failed.append(cell)
                        text = f"failed: {error}"
                    print(f"{number}/{len(todo)} {cell.name}: {text}", flush=True)  # noqa: T201
            except BaseException:  # Ctrl+C, SIGTERM: the runs save their training, and go on next time
                self._stopping.set()
                pool.shutdown(wait=False, cancel_futures=True)
                for process in tuple(self._processes):
                    process.terminate()
                raise
        return failed

    def _cell(self, cell: Cell) -> str:
        """Run a cell; return a line on its results; raises RuntimeError if the run fails."""
        plan, start = self._plan, time.perf_counter()
        code, data = commit(), plan.data / cell.name
        # CVL is the first row of every run. If its artifacts are at hand, it is not trained again.
        methods = list(dict.fromkeys(["cvl", *plan.missing(cell)]))
        data.mkdir(parents=True, exist_ok=True)
        log = data / "run.log"
        with log.open("ab") as file:
            command = plan.command(cell, methods)
            file.write(f"{START} {time.strftime('%Y-%m-%dT%H:%M:%S%z')} {shlex.join(command)}\n".encode())
            file.flush()
            process = subprocess.Popen(
                command, cwd=PROJECT, stdout=file, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
                # The process beside a run has threads of its own. Wide, so that lines are not broken.
                env=os.environ | {"OMP_NUM_THREADS": str(max(1, plan.threads // 2)), "COLUMNS": "1000"},
            )  # fmt: skip
            self._processes.add(process)
            if self._stopping.is_set():
                process.terminate()
            status = process.wait()
            self._processes.discard(process)
            if status:
                lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
                raise RuntimeError(f"status {status}, {log}: {lines[-1].strip()}")
            file.write(f"{END}\n".encode())
        record = write_record(plan, cell, methods, log.read_text(), code if code == commit() else None)
        if not plan.keep:
            shutil.rmtree(data)
        rates = (
            f"{name} {sum(values['success']) / len(values['success']):.2f}"
            for name, values in record["methods"].items()
        )
        return f"{', '.join(rates)} ({time.perf_counter() - start:.0f} s)"


def known_methods(
    wanted: Sequence[str] | None, protocol: Sequence[str], variants: Mapping[str, Mapping[str, Any]]
) -> tuple[str, ...]:
    """Return the methods to compare, CVL first; a name of your own choice must exist.

    Raises:
        InputError: an unknown method or variant.
    """
    for name in wanted or ():
        method, _, variant = name.partition(VARIANT)
        METHODS[method]
        known = variants.get(method, {})
        if variant and variant not in known:
            raise InputError(
                f"{PROTOCOL.name} has no variant '{variant}' of '{method}'; there are: {', '.join(known) or 'none'}"
            )
    absent = [name for name in protocol if name not in METHODS.names]
    if absent and not wanted:
        print(f"not in this version: {', '.join(absent)}", flush=True)  # noqa: T201
    chosen = wanted or [name for name in protocol if name in METHODS.names]
    return tuple(dict.fromkeys(["cvl", *chosen]))


def _parser(protocol: Mapping[str, Any]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    add = parser.add_argument
    add("--set", choices=list(protocol["sets"]), default="test", help="cells of rivals.yml (default: test)")
    add("--tasks", nargs="+", help="instead of those of the set")
    add("--presets", nargs="+", help="instead of those of the set")
    add("--seeds", nargs="+", type=int, help="instead of those of the set")
    add("--methods", nargs="+", help="instead of those of rivals.yml; or its variants, <method>__<variant>; cvl is always among them")
    add("--budget", type=int, choices=(1, 10), default=1, help="factor of all gradient steps")
    add("--jobs", type=int, help="cells at once (default: one per core, or per --threads cores)")
    add("--threads", type=int, default=1, help="cores of a cell (default: 1, for times that compare)")
    add("--env", help="folder of conf/ with other settings, such as smoke")
    add("--params", default="", help="more kedro --params, such as dataset.episodes=100")
    add("--records", type=Path, default=RESULTS / "rivals", help="folder of the records and the report")
    add("--data-root", type=Path, default=PROJECT / "data/rivals", help="folder of the data of all cells")
    keep = parser.add_mutually_exclusive_group()
    keep.add_argument("--keep-data", action="store_true", help="keep the data of finished cells (default)")
    keep.add_argument("--delete-data", action="store_true", help="delete the data of a cell when it is done")
    add("--report", action="store_true", help="run nothing; only make the report")
    return parser


def main() -> None:
    """Run the cells that have no record yet, and make the report."""
    protocol = yaml.safe_load(PROTOCOL.read_text())
    options = _parser(protocol).parse_args()
    axes = {
        name: getattr(options, name) or protocol["sets"][options.set][name]
        for name in ("seeds", "presets", "tasks")
    }
    chosen = cells(**axes, budget=options.budget)
    failed: list[Cell] = []
    try:
        plan = Plan(
            known_methods(options.methods, protocol["methods"], protocol["variants"]),
            protocol["variants"], protocol["uses"], protocol["evaluation_episodes"], options.env, given_parameters(options.params),
            options.threads, options.records.resolve(), options.data_root.resolve(), not options.delete_data,
        )  # fmt: skip
        if not options.report:
            for cell in chosen:
                plan.check(cell)
            todo = [cell for cell in chosen if plan.missing(cell)]
            print(f"{len(chosen) - len(todo)} of {len(chosen)} cells are done", flush=True)  # noqa: T201
            signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
            jobs = options.jobs or max(1, available_cores() // options.threads)
            failed = Runner(plan).run(todo, jobs)
        records = [record for cell in chosen if (record := plan.record(cell)) is not None]
    except InputError as error:
        sys.exit(f"Error: {error}")
    if records:
        print(rivals_report.write(records, plan.methods, axes, plan.records))  # noqa: T201
    else:
        print("no records")  # noqa: T201
    if failed:
        sys.exit(f"{len(failed)} cells failed: {', '.join(cell.name for cell in failed)}")


if __name__ == "__main__":
    main()
