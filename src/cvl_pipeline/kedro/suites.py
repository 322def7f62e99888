"""Suites on Kedro: plans from files and options, the work of a worker, and the commands."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
from kedro.framework.project import settings

from cvl_pipeline.environments.video import ranked_episodes
from cvl_pipeline.errors import TERMINATED, InputError
from cvl_pipeline.io.children import sigterm_raised, start_child
from cvl_pipeline.io.location import Location, is_url
from cvl_pipeline.io.owner import owner
from cvl_pipeline.io.storage import shown, write_atomically
from cvl_pipeline.kedro.configuration import CheckedConfigLoader, project_folder, project_loader
from cvl_pipeline.kedro.provenance.locks import IN_USE, InUseError, Lease, acquire, release
from cvl_pipeline.schema import flattened, nested
from cvl_pipeline.sources.environment import environment_for
from cvl_pipeline.suites.engine import DaskEngine, Outcome, shares
from cvl_pipeline.suites.parameters import FOLDER, read_suite
from cvl_pipeline.suites.plan import Cell, Plan, Unit, check_names, network_steps
from cvl_pipeline.suites.progress import display, status_lines
from cvl_pipeline.suites.records import (
    END,
    START,
    VIDEO_RANK,
    Record,
    behaviour_of,
    commit,
    episodes_of,
    machine,
    missing_methods,
    read_log,
    read_record,
    shown_command,
    summary,
    video_file,
    videos_of,
    write_record,
)
from cvl_pipeline.suites.run import Schedule, State, run_units
from cvl_pipeline.training.devices import available_cores, visible_devices

KEDRO: tuple[str, ...] = (sys.executable, "-m", "kedro")
"""The command that runs units; its first word in records is ``kedro``."""

_stopping: set[str] = set()
"""Sessions whose units are to end."""
_processes: dict[int, tuple[str, subprocess.Popen[bytes]]] = {}
"""Runs in this process, by number, with their sessions."""


def make_plan(
    name: str,
    *,
    axes: str | None = None,
    params: Mapping[str, Any] | None = None,
    keep: bool = True,
    **options: Any,
) -> Plan:
    """Make the plan of a suite of the project in the current folder.

    Args:
        name: of the suite.
        axes: name of a set.
        params: nested parameters of ``--params``.
        keep: whether the data of finished cells is kept.
        options: fields of the suite that replace those of its file; None changes nothing.

    Raises:
        InputError: no such suite, or a faulty value in it or in the options.
    """
    project = project_folder()
    suite = read_suite(project / settings.CONF_SOURCE, name).chosen(axes, **options)
    # As kedro run does. Later, the plan alone says which environment it is: workers may have another variable.
    suite = suite.model_copy(update={"env": suite.env or os.environ.get("KEDRO_ENV") or None})
    given = flattened(dict(params or {}))
    place = {"data.root": suite.data_root} if suite.data_root else {}
    loader = project_loader(suite.env, nested({**suite.overrides, **given, **place}), project=project)
    run = loader.run_parameters()
    root = suite.data_root or f"{run.data.root}/{FOLDER}/{name}"
    records = suite.records or f"{root}/records"
    if not keep and is_url(root):
        raise InputError(f"--delete-data: the data is at a URL, {root}; delete it there")
    root, records = (path if is_url(path) else str(project / path) for path in (root, records))
    plan = Plan(name, suite, network_steps(run, suite.budget), given, root, records, project, keep=keep)
    check_names(plan)
    return plan


def _loader(plan: Plan, parameters: Mapping[str, Any]) -> CheckedConfigLoader:
    return project_loader(plan.suite.env, nested(parameters), project=plan.project)


def check_plan(plan: Plan) -> None:
    """Raise InputError if a run of the plan has a faulty parameter, or an unknown task.

    Seeds and presets do not depend on tasks, so not all combinations are checked.
    """
    seen: set[tuple[str, str]] = set()
    for cell in plan.cells():
        parts = {("task", cell.task), ("preset", cell.preset)}  # a dataset may have the name of a preset
        if parts <= seen:
            continue
        seen |= parts
        place = f"{Path(settings.CONF_SOURCE) / FOLDER / plan.name}.yml, {cell.task}"
        try:
            parameters = {**plan.parameters(cell, plan.methods), **plan.place(cell)}
            run = _loader(plan, parameters).run_parameters()
            environment_for(run.dataset, run.evaluation)
        except InputError as error:
            raise InputError(f"{place}: {error}") from None


def locate(plan: Plan, path: str) -> Location:
    """Return a file of the plan, with the credentials of its URL."""
    if not is_url(path):
        return Location(path)
    data = plan.data
    return _loader(plan, data | ({"data.root": plan.root} if data else {})).location(path)


def record_location(plan: Plan, cell: Cell) -> Location:
    """Return the place of a cell's record."""
    return locate(plan, f"{plan.records}/{cell.name}.json")


def read_records(plan: Plan) -> list[Record]:
    """Read all records at hand, in the order of the cells; raises InputError if one has other settings."""
    found = (read_record(plan, cell, record_location(plan, cell)) for cell in plan.cells())
    return [record for record in found if record is not None]


def state_path(plan: Plan) -> Path:
    """Path of the file with the state of the suite, on this machine."""
    return locate(plan, f"{plan.root}/{plan.name}.state.json").path


@contextmanager
def hold(location: Location, what: str) -> Iterator[None]:
    """Hold the lock of a file, and its lease if it is at a URL.

    Raises:
        InUseError: another run has it.
    """
    lock = acquire(location.path, what)
    lease = None
    try:
        lease = Lease(location, what) if location.is_remote else None
        yield
    finally:
        if lease is not None:
            lease.release()
        release(lock)


def lock_location(plan: Plan, name: str) -> Location:
    """Return the place of one of the suite's locks."""
    return locate(plan, f"{plan.root}/.locks/{FOLDER}/{name}.lock")


def own_lock(plan: Plan) -> Location:
    """Return the lock of the whole suite on this machine: another one may help."""
    return Location(str(lock_location(plan, f"suite-{plan.name}").path))


def work(plan: Plan, unit: Unit, session: str, variables: Mapping[str, str]) -> Outcome:
    """Run a unit, unless its record has all results already; called in a worker.

    Args:
        plan: of the suite.
        unit: to run.
        session: that ``stop`` may end.
        variables: of the run's environment.
    """
    start = time.monotonic()
    if not plan.project.is_dir():  # another machine's
        plan = replace(plan, project=project_folder())
    try:
        with hold(lock_location(plan, unit.cell.name), f"cell {unit.cell.name} of suite {plan.name}"):
            state, text = _work(plan, unit, session, variables)
    except InUseError as error:
        return Outcome("busy", str(error))
    except (InputError, OSError) as error:
        return Outcome("failed", str(error), time.monotonic() - start)
    return Outcome(state, text, time.monotonic() - start)  # type: ignore[arg-type]


def _work(plan: Plan, unit: Unit, session: str, variables: Mapping[str, str]) -> tuple[str, str]:
    cell = unit.cell
    record = record_location(plan, cell)
    before = read_record(plan, cell, record)
    missing = missing_methods(before, unit.methods)
    if not missing:
        assert before is not None
        return "done", f"{summary(before)}; by another run"
    # CVL is the first row of every run. If its artifacts are at hand, it is not trained again.
    methods = tuple(dict.fromkeys([unit.methods[0], *missing]))
    code, command = commit(plan.project), plan.command(cell, methods)
    log = locate(plan, f"{plan.data_root(cell)}/run.log")
    log.fetch()
    status = _run(plan, command, log.path, session, variables)
    log.publish()
    if status in (TERMINATED, -15) and session in _stopping:
        return "stopped", "it goes on with the same command"
    if status:
        last = _last_line(log.path)
        return ("busy" if IN_USE in last else "failed"), f"status {status}, {log}: {last}"
    seconds, interrupted = read_log(log.path.read_text(errors="replace"))
    loader = _loader(plan, {**plan.parameters(cell, methods), **plan.place(cell)})
    run = {
        "command": shown_command(command, plan.data_root(cell), cell),
        "commit": code if code == commit(plan.project) else None,
        "machine": machine(),
        "threads": plan.threads,
        "interrupted": interrupted,
        "seconds": seconds,
    }
    results = {name: episodes_of(_artifact(loader, "{method}_rollouts", method=name)) for name in methods}
    without = [name for name in missing if not _keep_video(plan, cell, loader, name, results[name])]
    behaviour = behaviour_of(_artifact(loader, "metrics"))
    written = write_record(plan, cell, record, results, behaviour, run)
    if not plan.keep and not missing_methods(written, plan.methods):
        shutil.rmtree(plan.data_root(cell))
    lacking = f"; no videos of {', '.join(without)}, {log} says why" if plan.videos(cell) and without else ""
    return "done", summary(written) + lacking


def _keep_video(
    plan: Plan, cell: Cell, loader: CheckedConfigLoader, method: str, results: dict[str, Any]
) -> bool:
    """Put the video of a method's median episode beside the record; return whether there is one.

    The data of a cell may be deleted, or may be out of reach of a reader of the records.
    """
    video = _artifact(loader, "{method}_video_{rank}", method=method, rank=VIDEO_RANK)
    if not video.exists() or not (content := video.read_bytes()):  # empty: it could not be rendered
        return False
    place = locate(plan, f"{plan.records}/{video_file(vars(cell), method)}")
    write_atomically(place.path, lambda path: path.write_bytes(content))
    place.publish()
    table = pd.read_parquet(_artifact(loader, "{method}_rollouts", method=method), columns=["return"])
    results["video"] = ranked_episodes(table)[VIDEO_RANK]
    return True


def _artifact(loader: CheckedConfigLoader, dataset: str, **names: str) -> Path:
    """Return the local path of an artifact; the names fill in the pattern of its dataset."""
    filepath = loader["catalog"][dataset]["filepath"]
    for name, value in names.items():
        filepath = filepath.replace(f"{{{name}}}", value)
    location = loader.location(filepath)
    location.fetch()
    return location.path


def _run(plan: Plan, command: list[str], log: Path, session: str, variables: Mapping[str, str]) -> int:
    """Run a command in the project, append its output to a log, and return its status."""
    log.parent.mkdir(parents=True, exist_ok=True)
    # Dask sets the first two in its workers. The command says which folder of conf/ the run has.
    without = ("MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "KEDRO_ENV")
    environment = {name: value for name, value in os.environ.items() if name not in without}
    # The process beside a run has threads of its own. Wide, so that lines are not broken.
    environment |= {"OMP_NUM_THREADS": str(max(1, plan.threads // 2)), "COLUMNS": "1000", **variables}
    with log.open("ab") as file:
        file.write(f"{START} {time.strftime('%Y-%m-%dT%H:%M:%S%z')} {shlex.join(command)}\n".encode())
        file.flush()
        process = start_child(
            [*KEDRO, *command[1:]], environment, stdout=file, stderr=subprocess.STDOUT, cwd=plan.project
        )
        _processes[process.pid] = (session, process)
        if session in _stopping:
            process.terminate()
        status = process.wait()
        del _processes[process.pid]
        if not status:
            file.write(f"{END}\n".encode())
    return status


def stop(session: str) -> None:
    """End all units of a session in this worker: their runs save their training."""
    _stopping.add(session)
    for other, process in tuple(_processes.values()):
        if other == session:
            process.terminate()


def _last_line(log: Path) -> str:
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1].strip() if lines else ""


def run_command(
    name: str, jobs: int | None, threads: int | None, scheduler: str | None, delete_data: bool, **options: Any
) -> list[str]:
    """Run the units that are not finished, and write the report; return the names of those that failed.

    Raises:
        InputError: a faulty suite or option, the suite runs already on this machine, or the scheduler is gone.
        SystemExit: SIGTERM; the runs have saved their training.
    """
    plan = make_plan(name, keep=not delete_data, **options)
    devices = visible_devices() if scheduler is None else ()
    wanted = threads or plan.suite.threads
    workers, share = shares(jobs, wanted, len(devices), available_cores())
    plan = replace(plan, threads=share if scheduler is None else wanted or 1)
    check_plan(plan)
    with hold(own_lock(plan), f"suite {name}"), sigterm_raised():
        units = plan.units()
        done = _done(plan, units)
        state = State(len(units), len(done), owner=owner())
        if len(done) < len(units):
            _run_units(plan, units, done, state, workers, devices, scheduler)
    records = read_records(plan)
    if records:
        print(_report(plan, records))  # noqa: T201
    return list(state.failed)


def _run_units(
    plan: Plan,
    units: list[Unit],
    done: set[str],
    state: State,
    workers: int,
    devices: tuple[str, ...],
    scheduler: str | None,
) -> None:
    engine = DaskEngine(plan, work, stop, workers=workers, devices=devices, scheduler=scheduler)
    state.dashboard, state.slots = engine.dashboard, engine.slots
    place = "this machine" if scheduler is None else scheduler
    print(  # noqa: T201
        f"{plan.name}: {len(done)} of {len(units)} units are done; {state.slots} at once on {place}, each with "
        f"{plan.threads} {'core' if plan.threads == 1 else 'cores'}; dashboard: {state.dashboard}; logs: "
        f"{_shown(plan.root)}/<cell>/run.log",
        flush=True,
    )
    with display(plan.name, state, state_path(plan)) as (report, changed), engine:
        run_units(engine, Schedule(units, done), state, report, changed)


def _shown(place: str) -> str:
    return place if is_url(place) else shown(Path(place))


def _done(plan: Plan, units: Iterable[Unit]) -> set[str]:
    """Names of the units whose results are recorded."""
    records = {cell: read_record(plan, cell, record_location(plan, cell)) for cell in plan.cells()}
    return {unit.name for unit in units if not missing_methods(records[unit.cell], unit.methods)}


def status_command(**options: Any) -> list[str]:
    """Return lines on the state of a suite."""
    plan = make_plan(**options)
    units = plan.units()
    state = State.read(state_path(plan)) or State(len(units), 0)
    done = _done(plan, units)
    if state.is_alive is False:  # it was killed
        state.running = {}
    names = {unit.name for unit in units}
    state.running = {unit: since for unit, since in state.running.items() if unit in names - done}
    state.failed = {unit: reason for unit, reason in state.failed.items() if unit in names - done}
    state.total, state.done = len(units), len(done)
    return status_lines(plan.name, state, _shown(plan.root))


def report_command(**options: Any) -> str:
    """Write the report from the records at hand, and return its tables."""
    plan = make_plan(**options)
    records = read_records(plan)
    if not records:
        raise InputError(
            f"suite {plan.name} has no records in {_shown(plan.records)}: kedro suite run {plan.name}"
        )
    return _report(plan, records)


def _report(plan: Plan, records: list[Record]) -> str:
    from cvl_pipeline.suites.report import write_report  # imports matplotlib

    folder = locate(plan, f"{plan.records}/report.md").path.parent
    for record in records:
        for name in videos_of(record):
            locate(plan, f"{plan.records}/{video_file(record, name)}").fetch()
    text, files = write_report(records, plan, folder)
    for file in files:
        locate(plan, f"{plan.records}/{file}").publish()
    return f"{text}\n\nReport: {_shown(plan.records)}/{files[-1]}"


def cancel_command(**options: Any) -> str:
    """End the process that runs a suite on this machine, and wait for its end.

    Raises:
        InputError: no such process, or it is on another machine.
    """
    plan = make_plan(**options)
    state = State.read(state_path(plan))
    alive = state is not None and state.is_alive
    if state is None or alive is False:
        raise InputError(f"suite {plan.name} does not run on this machine")
    if alive is None:
        raise InputError(f"suite {plan.name} runs on {state.owner.get('host')}: cancel it there")
    number = int(state.owner["pid"])
    os.kill(number, signal.SIGTERM)
    while state.is_alive:
        time.sleep(0.2)
    return f"suite {plan.name} (process {number}) has ended; kedro suite run {plan.name} goes on"
