"""Interactive pictures as Kedro datasets, apart from the others because plotly comes with an extra."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import plotly.io
from kedro_datasets._typing import PlotlyPreview
from plotly.utils import PlotlyJSONEncoder

from cvl_pipeline.kedro.datasets.base import FileDataset


class PlotlyDataset(FileDataset):
    """An interactive figure as JSON."""

    def _read(self, path: Path) -> Any:
        return plotly.io.from_json(path.read_text("utf-8"))

    def _content(self, data: Any) -> bytes:
        return str(data.to_json()).encode()

    def preview(self) -> PlotlyPreview:
        """The figure with the description as its subtitle, for kedro-viz."""
        figure = self.load().to_plotly_json()
        title = figure["layout"].get("title") or {}
        figure["layout"]["title"] = {**title, "subtitle": {"text": self.description}}
        return PlotlyPreview(json.loads(PlotlyJSONEncoder().encode(figure)))
