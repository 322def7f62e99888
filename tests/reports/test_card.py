from __future__ import annotations

from typing import Any

import pytest

from cvl_pipeline.reports.card import MARKDOWN, PAGE, card, judged, judged_from_log
from tests.reports.test_page import JUDGEMENT

METRICS = {
    "environment": "door-open-v3", "episodes": 20, "behaviour_episodes": 100, "confidence": 0.95,
    "protocol": "deterministic policy", "seed": 0,
    "cvl.success_rate": 0.85, "cvl.success_rate_ci_low": 0.7, "cvl.success_rate_ci_high": 1.0,
    "cvl.return_mean": None, "cvl.return_mean_ci_low": None, "cvl.return_mean_ci_high": None,
    "behaviour.success_rate": 0.5, "behaviour.success_rate_ci_low": 0.4, "behaviour.success_rate_ci_high": 0.6,
    "bc.success_rate": 0.123,
}  # fmt: skip


def _contract(discrete: bool = False, metrics: dict[str, Any] | None = METRICS) -> dict[str, Any]:
    return {
        "observations": [{"name": "state", "shape": [3], "dtype": "float32", "names": ["x[m]", "y|z", "<w>"]}],
        "action": {
            "discrete": discrete, "size": 2, "dtype": "float32", "low": [-1.0, 0.0], "high": [1.0, 1.0], "names": None,
        },
        "value": None,
        "normalisation": "inside",
        "control_hz": None,
        "parity": {"observations": 50, "largest_error": 1.2e-7, "tolerance": 2e-4, "other_choices": 0},
        "versions": {"torch": "2.13.0"},
        "about": {
            "method": "CVL", "task": "door <open>", "dataset": "door-open-v3", "seed": 0, "reward": "dataset",
            "training_episodes": 90, "held_out_episodes": 10, "transitions": 5000, "judged": judged(metrics, "cvl"),
            "goals": None,
        },
    }  # fmt: skip


@pytest.mark.parametrize("name", [MARKDOWN, PAGE])
def test_the_card_says_what_it_learned_from_and_how_it_was_judged(name: str) -> None:
    text = card(_contract(), video=True)[name].decode()
    for words in (
        "90 for training, 10 held out; 5000 transitions",
        "0.85 [0.70, 1.00], 95 % interval",
        "0.50 [0.40, 0.60], 95 % interval",
        "unknown",
        "from -1, 0 to 1",
        "judged in door-open-v3 alone",
        "video.mp4",
    ):
        assert words in text, words
    assert "0.123" not in text  # of another policy


def test_names_of_the_users_own_break_neither_the_page_nor_a_table() -> None:
    files = card(_contract())
    assert "<w>" not in files[PAGE].decode()
    assert "door &lt;open&gt;" in files[PAGE].decode()
    assert "y\\|z" in files[MARKDOWN].decode()
    assert "<script src" not in files[PAGE].decode()
    assert "video" not in files[MARKDOWN].decode()


@pytest.mark.parametrize("name", [MARKDOWN, PAGE])
def test_the_card_has_the_judgement_from_the_log_and_its_limits(name: str) -> None:
    contract = _contract(metrics=None)
    contract["about"]["judged_from_log"] = judged_from_log(JUDGEMENT, "cvl")
    text = card(contract)[name].decode()
    assert "Judged from the log alone" in text
    assert "0.25 [-0.125, 0.5]" in text
    assert "It says; it cannot say." in text
    assert "Nobody has judged it in an environment." in text
    assert judged_from_log(None, "cvl") is None


def test_a_policy_that_nobody_judged_says_so() -> None:
    text = card(_contract(discrete=True, metrics=None))[MARKDOWN].decode()
    assert "Nobody has judged it in an environment." in text
    assert "one of 2, as a whole number from 0 on" in text


def test_a_policy_for_goals_is_not_the_one_that_was_judged_on_them() -> None:
    assert "goals" not in card(_contract())[MARKDOWN].decode()
    contract = _contract(metrics={**METRICS, "environment": "goals of door"})
    assert "does not see it" not in card(contract)[MARKDOWN].decode(), (
        "a policy without goals was judged without"
    )
    contract["about"]["goals"] = 16
    text = card(contract)[MARKDOWN].decode()
    assert "It moves to 16 goals, observations of the log's kind" in text
    assert "The exported one does not see it" in text
