"""Stage 1: episodes from a source into the container, checked, split and measured."""

from cvl_pipeline.kedro.pipelines.data_ingestion.pipeline import create_pipeline

__all__ = ["create_pipeline"]
