"""The programs of docs/suites.md for SLURM and Kubernetes."""

from __future__ import annotations

import re
import warnings
from typing import Any

import pytest
import yaml

from tests.project import PROJECT


def program(word: str) -> dict[str, Any]:
    """Run the program of the page that mentions a word; return its names."""
    blocks = re.findall(r"```python\n(.*?)```", (PROJECT / "docs/suites.md").read_text(), re.DOTALL)
    (text,) = [block for block in blocks if word in block]
    names: dict[str, Any] = {"__name__": "page"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exec(text, names)
    return names


def test_the_script_for_slurm() -> None:
    pytest.importorskip("dask_jobqueue")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cluster = program("SLURMCluster")["make_cluster"]()
        script = cluster.job_script()
        cluster.close()
    for line in ("#SBATCH --cpus-per-task=4", "#SBATCH --signal=TERM@120", "cd /shared/cvl-pipeline"):
        assert line in script.splitlines()
    assert re.search(r"^\.venv/bin/python -m distributed\S+ tcp://\S+ .*--nthreads 1 ", script, re.MULTILINE)


def test_the_manifest_for_kubernetes() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("dask_kubernetes")
    manifest = yaml.safe_load(program("make_cluster_spec")["make_manifest"]())
    assert manifest["kind"] == "DaskCluster"
    worker = manifest["spec"]["worker"]
    (container,) = worker["spec"]["containers"]
    assert (worker["replicas"], container["args"][:4]) == (20, ["dask", "worker", "--nthreads", "1"])
    assert container["resources"]["requests"]["cpu"] == "4"
