"""Judge the policies from the log alone, where no environment can run them."""

from cvl_pipeline.kedro.pipelines.judging.pipeline import create_pipeline

__all__ = ["create_pipeline"]
