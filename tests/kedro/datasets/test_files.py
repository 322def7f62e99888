from __future__ import annotations

import base64
import hashlib
import json
import re
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pandas as pd
import pytest
from kedro.io import DatasetError
from matplotlib.figure import Figure
from plotly import graph_objects

from cvl_pipeline.kedro.datasets import (
    ExportDataset,
    FigureDataset,
    JSONDataset,
    PageDataset,
    ParquetDataset,
    VideoDataset,
)
from cvl_pipeline.kedro.datasets.interactive import PlotlyDataset
from cvl_pipeline.reports.html import PREVIEW, SCRIPT, plotly_script
from cvl_pipeline.testing.builders import names_in
from tests.kedro.datasets.refusals import refusal

TABLE = pd.DataFrame(
    {"episode": [0, 1, 2], "part": ["train", "train", "validation"], "return": [0.1, np.nan, 1e9]}
)
REPORT: dict[str, Any] = {"success_rate": 0.5, "task": "reach-v3", "nested": {"a": [1, 2]}, "none": None}


def _figure() -> Figure:
    figure = Figure(figsize=(2, 2))
    figure.add_subplot().plot([0, 1], [1, 0])
    return figure


def test_a_table_is_loaded_as_it_was_saved(tmp_path: Path) -> None:
    dataset = ParquetDataset(filepath=str(tmp_path / "new" / "x.parquet"))
    dataset.save(TABLE)
    pd.testing.assert_frame_equal(dataset.load(), TABLE)
    assert names_in(tmp_path / "new") == ["x.parquet"]


def test_a_report_is_loaded_as_it_was_saved_and_is_indented(tmp_path: Path) -> None:
    path = tmp_path / "new" / "x.json"
    dataset = JSONDataset(filepath=str(path))
    dataset.save(REPORT)
    assert dataset.load() == REPORT
    assert path.read_text().splitlines()[1] == '  "success_rate": 0.5,'
    assert names_in(path.parent) == ["x.json"]


def test_a_report_may_hold_nan(tmp_path: Path) -> None:
    dataset = JSONDataset(filepath=str(tmp_path / "x.json"))
    dataset.save({"spearman": float("nan")})
    assert np.isnan(dataset.load()["spearman"])


def test_a_figure_becomes_a_picture(tmp_path: Path) -> None:
    path = tmp_path / "new" / "x.png"
    FigureDataset(filepath=str(path)).save(_figure())
    picture = matplotlib.image.imread(path)
    assert picture.shape[0] > 100
    assert picture[..., :3].min() < 0.9 < picture[..., :3].max()
    assert names_in(path.parent) == ["x.png"]


class _Unwritable:
    """Neither JSON nor an Arrow value."""


@pytest.mark.parametrize(
    ("kind", "name", "good", "bad"),
    [
        (JSONDataset, "x.json", REPORT, {"first": [1] * 1000, "then": _Unwritable()}),
        (ParquetDataset, "x.parquet", TABLE, pd.DataFrame({"a": [1, _Unwritable()]})),
        (FigureDataset, "x.png", _figure(), {"not": "a figure"}),
        (VideoDataset, "x.mp4", b"frames", "no bytes"),
    ],
)
def test_a_save_that_fails_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, kind: Any, name: str, good: Any, bad: Any
) -> None:
    dataset = kind(filepath=str(tmp_path / name))
    dataset.save(good)
    before = (tmp_path / name).read_bytes()
    with pytest.raises(DatasetError):
        dataset.save(bad)
    assert (tmp_path / name).read_bytes() == before
    assert names_in(tmp_path) == [name]
    dataset.save(good)  # and the dataset still knows its own path
    assert names_in(tmp_path) == [name]


@pytest.mark.parametrize(
    ("kind", "content"), [(JSONDataset, REPORT), (ParquetDataset, TABLE)], ids=["json", "parquet"]
)
def test_truncated_files_are_named_in_the_error(tmp_path: Path, kind: Any, content: Any) -> None:
    path = tmp_path / "x"
    dataset = kind(filepath=str(path))
    dataset.save(content)
    whole = path.read_bytes()
    for length in [*range(0, len(whole), max(1, len(whole) // 60)), len(whole) - 1]:
        path.write_bytes(whole[:length])
        message = refusal(dataset)
        assert str(path) in message
        assert "is damaged" in message or "was not written by cvl-pipeline" in message
        assert "delete it and rerun its stage" in message


@pytest.mark.parametrize("kind", [JSONDataset, ParquetDataset])
def test_files_of_other_programs_are_named_in_the_error(tmp_path: Path, kind: Any) -> None:
    path = tmp_path / "x"
    for content in (b"\x00\xff\xfe" * 50, b"PK\x03\x04 not what it should be"):
        path.write_bytes(content)
        message = refusal(kind(filepath=str(path)))
        assert str(path) in message
        assert "is damaged" in message or "was not written by cvl-pipeline" in message


@pytest.mark.parametrize("kind", [JSONDataset, ParquetDataset])
def test_missing_files_are_named_in_the_error(tmp_path: Path, kind: Any) -> None:
    message = refusal(kind(filepath=str(tmp_path / "nothing")))
    assert message == f"{tmp_path / 'nothing'} does not exist; run the stage that makes it"


def test_previews_show_the_description_and_the_content(tmp_path: Path) -> None:
    metadata = {"description": "Episodes & <more>."}
    table = ParquetDataset(filepath=str(tmp_path / "x.parquet"), metadata=metadata)
    table.save(TABLE)
    preview = str(table.preview(nrows=2))
    assert "Episodes &amp; &lt;more&gt;." in preview
    for text in ("episode", "part", "return", "train", "3 rows"):
        assert text in preview
    assert "validation" not in preview  # of the third row
    report = JSONDataset(filepath=str(tmp_path / "x.json"), metadata=metadata)
    report.save(REPORT)
    assert json.loads(report.preview()) == metadata | REPORT
    figure = FigureDataset(filepath=str(tmp_path / "x.png"), metadata=metadata)
    figure.save(_figure())
    preview = str(figure.preview())
    assert "Episodes &amp; &lt;more&gt;." in preview
    picture = re.search("src='data:image/png;base64,(.*?)'", preview)
    assert picture is not None
    assert base64.b64decode(picture[1]) == (tmp_path / "x.png").read_bytes()


def test_a_video_is_its_bytes_and_plays_in_the_preview(tmp_path: Path) -> None:
    video = VideoDataset(filepath=str(tmp_path / "x.mp4"), metadata={"description": "The <best> one."})
    video.save(b"frames")
    assert video.load() == (tmp_path / "x.mp4").read_bytes() == b"frames"
    preview = str(video.preview())
    assert "The &lt;best&gt; one." in preview
    assert f"src='data:video/mp4;base64,{base64.b64encode(b'frames').decode()}'" in preview
    video.save(b"")
    assert "<video" not in str(video.preview())
    assert "could not be recorded" in str(video.preview())


PAGE = f'<script src="{SCRIPT}" defer></script>left out {PREVIEW[0]}<table>ü</table>{PREVIEW[1]} left out'


def test_an_exported_folder_is_written_with_its_contract_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def files(*names: str) -> dict[str, bytes]:
        sums = {name: hashlib.sha256(name.encode()).hexdigest() for name in names}
        contract = json.dumps({"files": sums}).encode()
        return {**{name: name.encode() for name in names}, "policy.json": contract}

    folder = tmp_path / "cvl_exported"
    export = ExportDataset(filepath=str(folder / "policy.json"), metadata={"description": "It acts."})
    assert not export.exists()
    export.save(files("a", "b/1/c"))
    assert export.exists()
    assert (folder / "b/1/c").read_bytes() == b"b/1/c"
    assert json.loads(export.preview())["description"] == "It acts."
    (folder / "mine.txt").write_text("notes")
    export.save(files("a", "d"))
    assert names_in(folder) == ["a", "d", "mine.txt", "policy.json"]  # and no folders of a former export
    written: list[str] = []
    (folder / "a").write_text("damaged")
    assert export.fault() == "a differs from its checksum"
    assert not export.exists()
    (folder / "a").write_text("a")
    assert export.exists()
    monkeypatch.setattr(
        "cvl_pipeline.deploy.folder.write_atomically", lambda path, _: written.append(path.name)
    )
    export.save({**files("a", "d"), "e": b""})
    assert written == ["a", "d", "e", "policy.json"]
    (folder / "d").unlink()
    assert export.fault() == "d is missing"
    assert not export.exists()


def test_pages_share_one_script_and_find_it(tmp_path: Path) -> None:
    script = tmp_path / "my reports" / SCRIPT
    pages = []
    for place in ("door/seed_0", "door/seed_0/success", "."):
        path = tmp_path / "my reports" / place / "page.html"
        page = PageDataset(filepath=str(path), script={"filepath": str(script)})
        page.save(PAGE)
        address = re.search('src="(.*?)"', page.load())
        assert address is not None
        assert (path.parent / address[1]).resolve() == script
        pages.append(path)
    assert script.read_bytes() == plotly_script()
    assert sorted(tmp_path.rglob("*.*")) == sorted([script, *pages])
    script.write_text("of another version")
    page.save(PAGE)
    assert script.read_bytes() == plotly_script()
    script.unlink()
    assert page.fault() == f"{SCRIPT} is missing"
    assert not page.exists(), "so a run makes it again"


def test_the_preview_of_a_page_is_what_needs_no_script(tmp_path: Path) -> None:
    page = PageDataset(
        filepath=str(tmp_path / "page.html"),
        script={"filepath": str(tmp_path / SCRIPT)},
        metadata={"description": "The run."},
    )
    page.save(PAGE)
    preview = str(page.preview())
    assert "The run." in preview
    assert "<table>ü</table>" in preview
    assert "left out" not in preview
    assert "<script" not in preview


def test_an_interactive_figure_has_its_description_as_the_subtitle(tmp_path: Path) -> None:
    figure = graph_objects.Figure(
        graph_objects.Scatter(x=[0, 1], y=[2.0, 3.0]), {"title": {"text": "Values"}}
    )
    dataset = PlotlyDataset(filepath=str(tmp_path / "x.json"), metadata={"description": "A figure."})
    dataset.save(figure)
    assert dataset.load() == figure
    title = dict(dataset.preview())["layout"]["title"]
    assert title["text"] == "Values"
    assert title["subtitle"] == {"text": "A figure."}
