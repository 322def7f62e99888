from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace

import pytest

from cvl_pipeline.errors import InputError
from cvl_pipeline.kedro import fleet
from cvl_pipeline.kedro.fleet import _train, seeds_of
from cvl_pipeline.testing.builders import dynamics_parameters, make_data, make_transitions


@pytest.mark.parametrize(
    ("text", "seeds"), [("3", [3]), ("0-3,8", [0, 1, 2, 3, 8]), ("5, 1-2,2", [1, 2, 5]), ("7-7", [7])]
)
def test_seeds(text: str, seeds: list[int]) -> None:
    assert seeds_of(text) == seeds


@pytest.mark.parametrize(
    "text", ["", "a", "3-1", "-2", "1-", "0-999999999", "1,,2", "1.5", "0-3,99999999999"]
)
def test_what_is_no_seed_is_one_line(text: str) -> None:
    with pytest.raises(InputError, match=f"^--seeds {re.escape(text)}: '.*' is not a seed or a range; write"):
        seeds_of(text)


def test_parameters_that_differ_between_seeds_are_one_line(tmp_path: Path) -> None:
    data = make_data(make_transitions([9, 9], [True, False]), 1)
    inputs = {
        seed: {
            **data.parts(),
            "params:contrastive_dynamics": dynamics_parameters({"steps": 60}, temperature=0.1 * seed),
            "checkpoints": tmp_path,
        }
        for seed in (1, 2)
    }
    with pytest.raises(InputError, match="of seed 2 differs from that of seed 1, so their critics cannot"):
        _train(inputs)


def test_a_seed_whose_own_run_diverges_leaves_the_others_done(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[int] = []

    class Session:
        """Stands for Kedro's: the run of seed 0 diverges after the fleet."""

        def __init__(self, seed: int) -> None:
            self.seed = seed

        def __enter__(self) -> Session:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        @classmethod
        def create(cls, runtime_params: dict[str, int], **_: object) -> Session:
            return cls(runtime_params["seed"])

        def run(self, to_nodes: tuple[str, ...], **_: object) -> None:
            if self.seed == 0 and not to_nodes:
                raise FloatingPointError("the loss became nan at step 480")
            done.append(self.seed)

    monkeypatch.setattr(fleet, "settings", SimpleNamespace(SESSION_CLASS=Session))
    with pytest.raises(
        FloatingPointError,
        match=r"1 of 3 seeds failed, the others are done: seed 0: the loss became nan at step 480",
    ):
        fleet.run_fleet([0, 1, 2], None, {}, None)
    assert done == [0, 1, 2, 1, 2]
