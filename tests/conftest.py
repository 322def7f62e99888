"""Settings of all tests, and fixtures that several files share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings

from cvl_pipeline.episodes.container import Rewards, Transitions
from cvl_pipeline.testing.builders import make_rewards, make_transitions
from tests import s3

# Several threads change the order of sums, and the suite runs beside other work.
torch.set_num_threads(1)
# The same examples every time, so that failures can be repeated.
settings.register_profile("repeatable", derandomize=True, deadline=None, max_examples=50, database=None)
settings.load_profile("repeatable")


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """Address of an S3 server on this machine."""
    with s3.serve() as endpoint:
        yield endpoint


@pytest.fixture
def bucket(s3_endpoint: str) -> s3.Bucket:
    """An empty bucket."""
    return s3.make_bucket(s3_endpoint)


@pytest.fixture
def transitions() -> Transitions:
    """Six short episodes, terminated and truncated ones mixed, one of a single step."""
    return make_transitions([5, 1, 7, 3, 9, 4], [True, False, False, True, False, True])


@pytest.fixture
def rewards(transitions: Transitions) -> Rewards:
    return make_rewards(transitions)
