"""Kedro connectors: every artifact is written atomically and checked on load."""

from cvl_pipeline.kedro.datasets.artifacts import ArtifactDataset
from cvl_pipeline.kedro.datasets.files import (
    ExportDataset,
    FigureDataset,
    JSONDataset,
    PageDataset,
    ParquetDataset,
    VideoDataset,
)

__all__ = [
    "ArtifactDataset",
    "ExportDataset",
    "FigureDataset",
    "JSONDataset",
    "PageDataset",
    "ParquetDataset",
    "VideoDataset",
]
