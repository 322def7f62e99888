"""Random streams of one run that never overlap."""

from __future__ import annotations

import numpy as np

STREAMS = (
    "training", "validation", "initialisation", "references", "baseline", "proposals", "tuning", "regression",
    "goals", "rollouts", "judging",
)  # fmt: skip


def stream_seed(seed: int, stream: str, step: int) -> int:
    """Seed of the generator of one step of one stream.

    Args:
        seed: of the run.
        stream: one of STREAMS.
        step: non-negative.
    """
    return int(np.random.SeedSequence([seed, STREAMS.index(stream), step]).generate_state(1, np.uint64)[0])
