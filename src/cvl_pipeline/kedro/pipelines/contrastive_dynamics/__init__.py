"""Stage 2: contrastive training of the dynamics, without rewards."""

from cvl_pipeline.kedro.pipelines.contrastive_dynamics.pipeline import create_pipeline

__all__ = ["create_pipeline"]
