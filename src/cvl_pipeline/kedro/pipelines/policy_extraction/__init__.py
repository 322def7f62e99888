"""Stage 4: train CVL's policy from the values, and the baselines' policies."""

from cvl_pipeline.kedro.pipelines.policy_extraction.pipeline import create_pipeline

__all__ = ["create_pipeline"]
