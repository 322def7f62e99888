"""A peer with two thousand steps per second, to test how peers are run."""

from __future__ import annotations

import sys
import time

from benchmarks.peers.harness import clocked, given_job, report


def steps_of(steps: int) -> int:
    time.sleep(steps / 2000.0)
    return steps


if __name__ == "__main__":
    job = given_job(sys.argv[1])
    assert job.log.exists()
    if job.batch == 1024:
        raise MemoryError("too large an error")
    report(job, clocked(steps_of), ["numpy"], lambda: 0)
