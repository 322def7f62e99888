from __future__ import annotations

import re

import pytest
from rich.console import Console

from cvl_pipeline.training.progress import progress_bar


def test_description_of_a_bar_is_no_markup(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    with progress_bar() as progress:
        progress.add_task("[bold]ns:dog:x[/]", total=1)
    assert "[bold]ns:dog:x[/]" in capsys.readouterr().out


def test_a_pipe_receives_lines_of_a_long_bar_more_and_more_rarely(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 0.0
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr("cvl_pipeline.training.progress.time.monotonic", lambda: now)
    with progress_bar() as progress:
        task = progress.add_task("Learning", total=200)
        for _ in range(200):
            now += 1.0
            progress.advance(task)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.strip()]
    assert [re.search(r"(\d+)/200", line)[1] for line in lines] == [  # type: ignore[index]
        "2", "6", "14", "30", "62", "122", "182", "200",
    ]  # fmt: skip
    assert all(line.startswith("Learning ") for line in lines)


def test_a_notebook_without_widgets_gets_text_and_no_warning(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rich would warn in one, and warnings are errors here."""
    monkeypatch.setattr("rich._console", Console(force_jupyter=True))
    monkeypatch.setattr("cvl_pipeline.training.progress.find_spec", lambda name: None)
    with progress_bar() as progress:
        progress.update(progress.add_task("Training", total=2), completed=2)
    assert "Training" in capsys.readouterr().out
