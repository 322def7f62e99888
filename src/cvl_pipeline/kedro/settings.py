"""Kedro settings."""

from typing import Any

from cvl_pipeline.kedro.configuration import CheckedConfigLoader, ProjectContext
from cvl_pipeline.kedro.hooks import CheckInputs, FollowParameters, ReportNodes, ReportResults
from cvl_pipeline.kedro.provenance.hooks import TrustArtifacts
from cvl_pipeline.kedro.tracking import LogResults

HOOKS = (FollowParameters(), CheckInputs(), TrustArtifacts(), ReportNodes(), ReportResults(), LogResults())
CONTEXT_CLASS = ProjectContext
CONFIG_LOADER_CLASS = CheckedConfigLoader
CONFIG_LOADER_ARGS: dict[str, Any] = {
    "base_env": "base",
    "default_run_env": "local",
}
