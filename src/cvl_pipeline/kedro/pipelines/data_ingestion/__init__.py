"""Stage 1: read episodes from a source, check and split them, compute statistics."""

from cvl_pipeline.kedro.pipelines.data_ingestion.pipeline import create_pipeline

__all__ = ["create_pipeline"]
