"""Stage 5: evaluate the policies in the environment and compare them with the behaviour data."""

from cvl_pipeline.kedro.pipelines.evaluation.pipeline import create_pipeline

__all__ = ["create_pipeline"]
