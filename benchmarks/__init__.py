"""Scripts that produce the tables of docs/, with code that the tests share."""

from contextlib import suppress

with suppress(ModuleNotFoundError):  # in a peer's own environment
    import cvl_pipeline  # noqa: F401  # before torch, whose threads then wait as in the pipeline
