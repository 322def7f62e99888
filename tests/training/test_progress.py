from __future__ import annotations

import pytest

from cvl_pipeline.training.progress import progress_bar


def test_description_of_a_bar_is_no_markup(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    with progress_bar() as progress:
        progress.add_task("[bold]ns:dog:x[/]", total=1)
    assert "[bold]ns:dog:x[/]" in capsys.readouterr().out
