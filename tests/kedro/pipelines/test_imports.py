from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.project import PROJECT

COMMAND = """
import atexit, sys
atexit.register(lambda: print("imported:", *{name.partition(".")[0] for name in sys.modules}))
from kedro.framework.cli.cli import main
sys.argv = ["kedro", *sys.argv[1:]]
main()
"""
SLOW = {
    "boto3", "h5py", "lightning", "matplotlib", "metaworld", "minari", "mujoco", "optuna", "plotly", "s3fs", "scipy",
}  # fmt: skip
"""Libraries that only some nodes need."""
NODES = {"gymnasium", "pandas", "pyarrow", "torch"}
"""Libraries that nodes need."""
OF_KEDRO = {"pandas", "pyarrow"}
"""Libraries that Kedro imports by itself when it fills a catalog."""


@pytest.mark.parametrize(
    ("command", "unneeded"),
    [
        ("--help", SLOW | NODES),
        ("registry list", SLOW | NODES),
        ("artifacts status", SLOW | NODES - OF_KEDRO),
    ],
)
def test_a_command_imports_no_slow_library_that_it_does_not_need(command: str, unneeded: set[str]) -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(PROJECT / "src"), *sys.path])}
    result = subprocess.run(
        [sys.executable, "-c", COMMAND, *command.split()],
        cwd=PROJECT, env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    (line,) = [line for line in result.stdout.splitlines() if line.startswith("imported:")]
    assert "kedro" in line.split()
    assert not unneeded & set(line.split())
    assert "type hints" not in result.stdout + result.stderr  # Kedro warns of those that it cannot resolve
