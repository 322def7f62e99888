"""Kedro settings."""

from typing import Any

from cvl_pipeline.kedro.configuration import CheckedConfigLoader
from cvl_pipeline.kedro.hooks import CheckInputs, NarrateNodes, ReportResults
from cvl_pipeline.kedro.provenance.hooks import TrustArtifacts

HOOKS = (CheckInputs(), TrustArtifacts(), NarrateNodes(), ReportResults())
CONFIG_LOADER_CLASS = CheckedConfigLoader
CONFIG_LOADER_ARGS: dict[str, Any] = {
    "base_env": "base",
    "default_run_env": "local",
    # An environment changes single fields of a stage, not the whole stage.
    "merge_strategy": {"parameters": "soft"},
}
