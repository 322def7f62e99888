"""Search for better parameters."""

from cvl_pipeline.kedro.pipelines.tuning.pipeline import create_pipeline

__all__ = ["create_pipeline"]
