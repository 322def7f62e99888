"""Stage 4: policies, CVL's from the values and those of the baselines."""

from cvl_pipeline.kedro.pipelines.policy_extraction.pipeline import create_pipeline

__all__ = ["create_pipeline"]
