"""Messages of datasets that cannot be loaded."""

from __future__ import annotations

from typing import Any

import pytest
from kedro.io import DatasetError

from cvl_pipeline.errors import InputError, causes


def refusal(dataset: Any) -> str:
    """The message of the InputError behind Kedro's own error, which the command line looks for in the same way."""
    with pytest.raises(DatasetError) as caught:
        dataset.load()
    return next(str(cause) for cause in causes(caught.value) if isinstance(cause, InputError))
