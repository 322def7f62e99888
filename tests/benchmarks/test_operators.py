from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import operators, speed


def test_groups_of_operators_add_up_to_the_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operators, "STEPS", 3)
    speed.write_log(tmp_path, episodes=10, steps=20)
    row = operators.milliseconds_by_group(tmp_path, speed.Configuration("critic", (16, 16), 32))
    assert sum(value for name, value in row.items() if name != "step") == pytest.approx(row["step"])
    # If torch renames an operator, its group becomes empty.
    assert all(row[name] > 0.0 for name in operators.GROUPS)
