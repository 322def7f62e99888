from __future__ import annotations

import pytest

from cvl_pipeline.training.devices import visible_devices


@pytest.mark.parametrize(
    ("value", "expected"),
    [("2,5", ("2", "5")), ("", ()), ("-1", ()), ("GPU-5e1, GPU-7f0", ("GPU-5e1", "GPU-7f0"))],
)
def test_devices_are_those_that_the_user_lets_be_seen(
    monkeypatch: pytest.MonkeyPatch, value: str, expected: tuple[str, ...]
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
    assert visible_devices() == expected
