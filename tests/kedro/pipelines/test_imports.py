from __future__ import annotations

import subprocess
import sys

CODE = """
import sys
from cvl_pipeline.kedro.pipeline_registry import register_pipelines
from cvl_pipeline.kedro.settings import HOOKS
register_pipelines()
print(*sorted({name.partition(".")[0] for name in sys.modules}))
"""
SLOW = {"lightning", "metaworld", "minari", "optuna", "plotly", "s3fs", "boto3"}


def test_commands_import_no_slow_library_that_only_some_nodes_need() -> None:
    result = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    assert "torch" in result.stdout.split()
    assert SLOW.isdisjoint(result.stdout.split())
