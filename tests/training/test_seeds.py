from __future__ import annotations

import pytest
import torch

from cvl_pipeline.training.seeds import STREAMS, stream_seed


def test_streams_steps_and_runs_share_no_seed() -> None:
    seeds = {
        stream_seed(seed, stream, step) for seed in range(5) for stream in STREAMS for step in range(200)
    }
    assert len(seeds) == 5 * len(STREAMS) * 200


def test_seeds_are_the_same_in_every_process_and_version() -> None:
    # Resumption and reproducible results need these numbers never to change.
    assert stream_seed(0, "training", 0) == 15793235383387715774
    assert stream_seed(7, "baseline", 3) == stream_seed(7, "baseline", 3)


def test_torch_accepts_every_seed() -> None:
    for step in range(200):
        torch.Generator().manual_seed(stream_seed(2**32 - 1, "training", step))


def test_unknown_stream_raises() -> None:
    with pytest.raises(ValueError, match="not in"):
        stream_seed(0, "trianing", 0)
