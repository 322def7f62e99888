"""All parameters of a run, checked together before anything starts."""

from __future__ import annotations

from typing import Any

from cvl_pipeline.parameters import StageParameters, validated
from cvl_pipeline.tuning.parameters import TuningParameters


class RunParameters(StageParameters):
    """The whole parameter file."""

    tuned: bool  # take the best parameters that a study of this dataset found; --params still overrides them
    tuning: TuningParameters

    @property
    def stages(self) -> StageParameters:
        """Those of the stages alone."""
        return StageParameters(**{name: getattr(self, name) for name in StageParameters.model_fields})


def check_parameters(raw: dict[str, Any]) -> RunParameters:
    """Validate the merged parameter files and ``--params``.

    Raises:
        InputError: one line with every fault: the field's full name, its value, and what it may be.
    """
    return validated(RunParameters, raw)
