"""Scripts that produce the tables of docs/, with code that the tests share."""

import cvl_pipeline  # noqa: F401  # before torch, whose threads then wait as in the pipeline
