"""What runs units: ``submit`` and ``poll``. The engine here is a cluster of Dask."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from importlib import import_module
from types import TracebackType
from typing import Any, Literal, Protocol

from cvl_pipeline.errors import InputError, one_line
from cvl_pipeline.suites.plan import Plan, Unit

POLL = 0.2
"""Seconds between looks at the units that run."""
PATIENCE = 120.0
"""Seconds in which units that are stopped must have saved their training."""
SETTINGS = {
    # A unit is a process of its own, so a worker's profile says nothing.
    "distributed.worker.profile.enabled": False,
    # A worker that died is replaced. Dask takes a replacement for lost that needs more than 15 s to start, as on a busy
    # machine, and closes it: the suite would go on with one worker less.
    "distributed.deploy.lost-worker-timeout": "1 hour",
}
"""Dask's, for a cluster of this machine."""


@dataclass(frozen=True)
class Outcome:
    """The end of a unit.

    Attributes:
        state: ``busy`` if another run works on the same data; ``stopped`` if it was told to end.
        text: the results or the reason, for a line.
        seconds: that it took.
    """

    state: Literal["done", "failed", "busy", "stopped"]
    text: str
    seconds: float = 0.0


class Engine(Protocol):
    """Runs units somewhere."""

    @property
    def slots(self) -> int:
        """Number of units that can run at once now."""

    def submit(self, unit: Unit) -> None:
        """Start a unit."""

    def poll(self, seconds: float) -> list[tuple[Unit, Outcome]]:
        """Return the units that have ended, after ``seconds`` at most."""


Work = Callable[[Plan, Unit, str, Mapping[str, str]], Outcome]
"""Runs a unit in a worker: its plan, the unit, the session that it belongs to, and variables of its environment."""


class DaskEngine:
    """Runs each unit as a task of a Dask cluster: one of this machine, or any that has a scheduler."""

    def __init__(
        self,
        plan: Plan,
        work: Work,
        stop: Callable[[str], None],
        *,
        workers: int = 1,
        devices: tuple[str, ...] = (),
        scheduler: str | None = None,
    ) -> None:
        """Start a cluster, or connect to one.

        Args:
            plan: of the units.
            work: runs a unit in a worker; importable there.
            stop: ends the units of a session in a worker; importable there.
            workers: of a cluster of this machine.
            devices: GPUs of this machine, which its workers share.
            scheduler: address of a running scheduler; None: a cluster of this machine.

        Raises:
            InputError: no scheduler answers.
            ImportError: Dask is not installed.
        """
        dask = _distributed()
        self._plan, self._work, self._stop, self._devices = plan, work, stop, devices
        self._scheduler = scheduler
        self._session = uuid.uuid4().hex
        self._cluster: Any = None
        self._futures: dict[str, tuple[Unit, Any]] = {}
        logging.getLogger("distributed").setLevel(logging.CRITICAL)  # workers that die are no news
        self._settings = ExitStack()
        if scheduler is None:
            self._settings.enter_context(import_module("dask").config.set(SETTINGS))
            self._cluster = dask.LocalCluster(
                n_workers=workers, threads_per_worker=1, memory_limit=0, dashboard_address="127.0.0.1:0",
                silence_logs=logging.CRITICAL,
            )  # fmt: skip
            self._client = dask.Client(self._cluster)
        else:
            try:
                self._client = dask.Client(scheduler, timeout=20)
            except (OSError, ValueError) as error:
                raise InputError(
                    f"--scheduler: no Dask scheduler answers at '{scheduler}' ({one_line(error)[:200]}); give the "
                    "address that it prints when it starts, such as tcp://10.0.0.1:8786"
                ) from None

    def __enter__(self) -> DaskEngine:
        """Return the engine."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop the units that still run, which save their training, and close the cluster."""
        if self._futures and self._client.status == "running":
            self._end_units()
        self._client.close(timeout=10)
        if self._cluster is not None:
            self._cluster.close(timeout=20)
        self._settings.close()

    @property
    def dashboard(self) -> str:
        """Address of Dask's dashboard."""
        return str(self._client.dashboard_link)

    @property
    def slots(self) -> int:
        """Number of units that can run at once now."""
        return sum(self._client.nthreads().values())

    def submit(self, unit: Unit) -> None:
        """Start a unit."""
        key = f"{unit.name}-{uuid.uuid4().hex}"  # never the result of a former attempt
        future = self._client.submit(
            _run,
            self._work,
            self._plan,
            unit,
            self._session,
            self._devices,
            key=key,
            pure=False,
        )
        self._futures[key] = (unit, future)

    def poll(self, seconds: float) -> list[tuple[Unit, Outcome]]:
        """Return the units that have ended, after ``seconds`` at most.

        Raises:
            InputError: the scheduler is gone.
        """
        end = time.monotonic() + seconds
        while True:
            if self._client.status != "running":
                raise InputError(
                    f"the scheduler at {self._scheduler or 'this machine'} is gone; start one, and run the same "
                    "command again: finished units are not run again"
                )
            ended = [key for key, (_, future) in self._futures.items() if future.done()]
            if ended or time.monotonic() >= end:
                return [self._take(key) for key in ended]
            time.sleep(POLL)

    def _take(self, key: str) -> tuple[Unit, Outcome]:
        """Return the outcome of a future that has ended, and release it: its results are on disk."""
        unit, future = self._futures.pop(key)
        if future.status == "finished":
            outcome: Outcome = future.result()
        elif future.status == "cancelled":
            outcome = Outcome("stopped", "cancelled")
        elif isinstance(error := future.exception(), _distributed().KilledWorker):
            outcome = Outcome(
                "failed", f"KilledWorker: {error.allowed_failures + 1} workers died while they ran it"
            )
        else:
            outcome = Outcome("failed", one_line(error))
        future.release()
        return unit, outcome

    def _end_units(self) -> None:
        """Cancel units that wait, and stop those that run."""
        processing = {key for keys in self._client.processing().values() for key in keys}
        waiting = [future for key, (_, future) in self._futures.items() if key not in processing]
        self._client.cancel(waiting)
        self._futures = {key: pair for key, pair in self._futures.items() if key in processing}
        self._client.run(self._stop, self._session, on_error="ignore")
        end = time.monotonic() + PATIENCE
        while self._futures and time.monotonic() < end and self._client.status == "running":
            self.poll(1.0)


def _distributed() -> Any:
    """Import Dask, which is optional and has no types."""
    return import_module("distributed")


def _run(work: Work, plan: Plan, unit: Unit, session: str, devices: tuple[str, ...]) -> Outcome:
    """Run a unit in a worker, on the worker's own device. Workers of another cluster have theirs already."""
    variables = {}
    if devices:
        variables["CUDA_VISIBLE_DEVICES"] = devices[int(_distributed().get_worker().name) % len(devices)]
    return work(plan, unit, session, variables)


def shares(jobs: int | None, threads: int | None, devices: int, cores: int) -> tuple[int, int]:
    """Number of workers, and cores of each.

    Args:
        jobs: workers that the user wants; None: one for each GPU, or for as many cores as a run has.
        threads: cores of a run; None: an equal share of them.
        devices: number of GPUs.
        cores: number of cores.
    """
    workers = jobs or devices or max(1, cores // (threads or 1))
    return workers, threads or max(1, cores // workers)
