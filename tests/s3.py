"""An S3 server on this machine, and a bucket of it."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

SECRET = "qu1te-s3cret/value"
_numbers = itertools.count()


@dataclass(frozen=True)
class Bucket:
    """What a test has to know of it.

    Attributes:
        url: of the bucket.
        options: that reach it, as in credentials.yml.
    """

    url: str
    options: dict[str, Any]

    @property
    def files(self) -> Any:
        """fsspec's file system of it, which shows what is there now."""
        import fsspec  # type: ignore[import-untyped]

        return fsspec.filesystem("s3", **self.options, use_listings_cache=False)

    def names(self, below: str = "") -> list[str]:
        """Every file, by its path in the bucket."""
        found = self.files.find(f"{self.url}/{below}")
        return [str(name).partition("/")[2] for name in found]


@contextmanager
def serve() -> Iterator[str]:
    """The address of a server that knows any key."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


def make_bucket(endpoint: str) -> Bucket:
    """An empty one."""
    bucket = Bucket(
        f"s3://laboratory-{next(_numbers)}", {"key": "user", "secret": SECRET, "endpoint_url": endpoint}
    )
    bucket.files.mkdir(bucket.url)
    return bucket
