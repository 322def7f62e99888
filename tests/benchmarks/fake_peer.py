"""A peer with two thousand steps per second by a clock of its own, to test how peers are run."""

from __future__ import annotations

import sys

from benchmarks.peers import harness
from benchmarks.peers.harness import clocked, given_job, report


class Clock:
    """Stands in for the module ``time``, so that the speed does not depend on the machine."""

    now = 0.0

    def perf_counter(self) -> float:
        return self.now


clock = Clock()


def steps_of(steps: int) -> int:
    clock.now += steps / 2000.0
    return steps


if __name__ == "__main__":
    harness.time = clock  # type: ignore[assignment, attr-defined]
    job = given_job(sys.argv[1])
    assert job.log.exists()
    if job.batch == 1024:
        raise MemoryError("too large an error")
    report(job, clocked(steps_of), ["numpy"], lambda: 0)
