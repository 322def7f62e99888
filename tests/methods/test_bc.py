from __future__ import annotations

import pytest
import torch

from cvl_pipeline.methods.bc import BC
from cvl_pipeline.objectives.training import train_policy
from cvl_pipeline.testing.builders import policy_parameters
from tests.methods.toys import make_episodes, method_parameters


@pytest.mark.parametrize("discrete", [False, True])
def test_bc_is_the_objective_of_that_name_with_the_same_network_and_training(discrete: bool) -> None:
    data = make_episodes(discrete)
    training = {"steps": 12, "learning_rate": 0.01}
    shared = {"hidden": (5, 6), "encoder": {"name": "identity"}}
    method = BC(method_parameters("bc", training, **shared))
    result = method.train(data, 3)
    expected = train_policy(
        data, policy_parameters(objective="bc", training=training, **shared), 3
    )  # fmt: skip
    assert result.history.equals(expected.history)
    assert result.history["step"].tolist() == [4, 8, 12]
    torch.testing.assert_close(result.policy.state_dict(), expected.policy.state_dict(), rtol=0, atol=0)


def test_rewards_change_nothing() -> None:
    with_rewards, without = (
        BC(method_parameters("bc")).train(make_episodes(rewards=rewards), 0) for rewards in (True, False)
    )
    assert with_rewards.history.equals(without.history)
