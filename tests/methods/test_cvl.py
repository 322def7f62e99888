from __future__ import annotations

import pytest
import torch

from cvl_pipeline.errors import InputError
from cvl_pipeline.methods.base import METHODS
from cvl_pipeline.methods.cvl import CVL
from cvl_pipeline.objectives.training import train_policy
from cvl_pipeline.testing.builders import policy_parameters
from tests.methods.toys import make_episodes
from tests.objectives.toys import network_q


def test_extraction_is_awr_by_default_and_any_objective_by_name() -> None:
    assert CVL.Parameters().extraction.objective == "awr"
    parameters = METHODS.validate({"method": "cvl", "extraction": {"objective": "ddpg_bc", "alpha": 2.0}})
    assert isinstance(parameters, CVL.Parameters)
    assert parameters.extraction.objective == "ddpg_bc"
    with pytest.raises(ValueError, match="beta"):
        METHODS.validate({"method": "cvl", "extraction": {"objective": "ddpg_bc", "beta": 2.0}})


@pytest.mark.parametrize("objective", ["awr", "published"])
def test_cvl_trains_by_its_objective(objective: str) -> None:
    data = make_episodes()
    q = network_q(data.transitions)
    extraction = policy_parameters(objective=objective)
    result = CVL(CVL.Parameters(extraction=extraction)).train(data, 3, values=q)
    expected = train_policy(data, extraction, 3, values=q)
    assert result.history.equals(expected.history)
    torch.testing.assert_close(result.policy.state_dict(), expected.policy.state_dict(), rtol=0, atol=0)


def test_cvl_needs_a_critic() -> None:
    with pytest.raises(InputError, match="'awr' needs a critic and a readout"):
        CVL(CVL.Parameters(extraction=policy_parameters())).train(make_episodes(), 0)
