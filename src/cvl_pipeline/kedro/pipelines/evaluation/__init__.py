"""Stage 5: the policies in the real environment, beside the behaviour data."""

from cvl_pipeline.kedro.pipelines.evaluation.pipeline import create_pipeline

__all__ = ["create_pipeline"]
