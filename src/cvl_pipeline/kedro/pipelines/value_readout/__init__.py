"""Stage 3: compute action values from the dynamics and rewards."""

from cvl_pipeline.kedro.pipelines.value_readout.pipeline import create_pipeline

__all__ = ["create_pipeline"]
