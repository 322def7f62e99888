"""Export of policies for robots and servers."""

from cvl_pipeline.kedro.pipelines.export.pipeline import create_pipeline

__all__ = ["create_pipeline"]
