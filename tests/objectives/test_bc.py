from __future__ import annotations

import pytest

from tests.objectives.toys import episodes, loss_of, make_module, training_transitions


@pytest.mark.parametrize("objective", ["bc", "best_of_n"])
@pytest.mark.parametrize("discrete", [False, True])
def test_cloning_loss_is_the_negative_mean_log_probability(objective: str, discrete: bool) -> None:
    transitions = episodes(discrete)
    module = make_module(transitions, objective=objective)
    loss, metrics = loss_of(module)
    expected = -module.actor.log_prob(*training_transitions(transitions)).mean()
    assert loss == pytest.approx(float(expected.detach()), rel=1e-6)
    assert metrics == {}
