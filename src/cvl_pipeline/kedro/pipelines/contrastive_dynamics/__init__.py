"""Stage 2: the implicit dynamics, trained contrastively and without rewards."""

from cvl_pipeline.kedro.pipelines.contrastive_dynamics.pipeline import create_pipeline

__all__ = ["create_pipeline"]
