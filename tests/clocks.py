"""A clock that advances only when a test says so."""

from __future__ import annotations

from typing import Any

import pytest


class FakeClock:
    """Stands in for the module ``time``: its seconds are those of the methods that have a price."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._monkeypatch = monkeypatch
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now

    def monotonic(self) -> float:
        return self.now

    def process_time(self) -> float:
        return self.now

    def price(self, owner: type, name: str, seconds: float) -> None:
        """Let every call of a method take that many seconds."""
        original = getattr(owner, name)

        def priced(*arguments: Any, **options: Any) -> Any:
            self.now += seconds
            return original(*arguments, **options)

        self._monkeypatch.setattr(owner, name, priced)
