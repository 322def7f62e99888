"""Other processes that hold the lock or the lease of some data."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

LOCK = """
import os, sys, time
from pathlib import Path
from cvl_pipeline.kedro.provenance.locks import acquire
file = acquire(Path(sys.argv[1]), "data")
ours, childs = os.pipe()
if len(sys.argv) > 2:
    if os.fork() == 0:
        os.write(childs, b"forked")
        time.sleep(5)  # outlives its parent
        os._exit(0)
    os.read(ours, 6)
print("held", flush=True)
time.sleep(600)
"""
LEASE = """
import json, sys, time
from pathlib import Path
from cvl_pipeline.io.location import Location
from cvl_pipeline.kedro.provenance.locks import Lease
lease = Lease(Location(sys.argv[1], json.loads(sys.argv[2]), Path("unused")), "data")
print("held", flush=True)
time.sleep(600)
"""
Holder = subprocess.Popen[str]


@contextmanager
def lock_holder(path: Path, *, child: bool = False) -> Iterator[Holder]:
    """A process that holds the lock, with a child that lives longer if you want one."""
    with _running(LOCK, str(path), *(["with a child"] if child else [])) as process:
        yield process


@contextmanager
def lease_holder(address: str, options: dict[str, Any]) -> Iterator[Holder]:
    """A process that holds the lease at a URL."""
    with _running(LEASE, address, json.dumps(options)) as process:
        yield process


@contextmanager
def _running(code: str, *arguments: str) -> Iterator[Holder]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with subprocess.Popen(
        [sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()
