"""Square matrix products in float32, one per step: the maximum speed of the machine."""

from __future__ import annotations

import sys

import torch

from benchmarks.peers.harness import clocked, given_job, report

SIZE = 1024


def main() -> None:
    """Multiply and report the time."""
    job = given_job(sys.argv[1])
    left, right, result = torch.rand(3, SIZE, SIZE, device=job.device)

    def steps_of(steps: int) -> int:
        for _ in range(steps):
            torch.mm(left, right, out=result)
        if job.device == "cuda":
            torch.cuda.synchronize()
        return steps

    report(job, clocked(steps_of), ["torch"], torch.cuda.max_memory_allocated)


if __name__ == "__main__":
    main()
