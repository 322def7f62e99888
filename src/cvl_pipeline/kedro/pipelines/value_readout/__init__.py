"""Stage 3: from the dynamics and rewards to the value of every action."""

from cvl_pipeline.kedro.pipelines.value_readout.pipeline import create_pipeline

__all__ = ["create_pipeline"]
