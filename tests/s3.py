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
    """Address and credentials of a bucket.

    Attributes:
        url: address of the bucket.
        options: credentials, as in credentials.yml.
    """

    url: str
    options: dict[str, Any]

    @property
    def files(self) -> Any:
        """fsspec's file system of the bucket, without a cache."""
        import fsspec  # type: ignore[import-untyped]

        return fsspec.filesystem("s3", **self.options, use_listings_cache=False)

    def names(self, below: str = "") -> list[str]:
        """Paths of all files in the bucket."""
        paths = self.files.find(f"{self.url}/{below}")
        return [str(path).partition("/")[2] for path in paths]


@contextmanager
def serve() -> Iterator[str]:
    """Start a server that accepts any key; yield its address."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


def make_bucket(endpoint: str) -> Bucket:
    """Create an empty bucket."""
    bucket = Bucket(
        f"s3://laboratory-{next(_numbers)}", {"key": "user", "secret": SECRET, "endpoint_url": endpoint}
    )
    bucket.files.mkdir(bucket.url)
    return bucket
