"""Stage 4: from the values to a policy, and the cloned control beside it."""

from cvl_pipeline.kedro.pipelines.policy_extraction.pipeline import create_pipeline

__all__ = ["create_pipeline"]
