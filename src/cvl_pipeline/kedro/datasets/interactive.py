"""Interactive pictures as Kedro datasets, apart from the others because plotly comes with an extra."""

from __future__ import annotations

import json
from typing import Any

from kedro_datasets._typing import PlotlyPreview
from kedro_datasets.plotly import json_dataset
from plotly.utils import PlotlyJSONEncoder

from cvl_pipeline.kedro.datasets.atomic import Atomic


class PlotlyDataset(Atomic, json_dataset.JSONDataset):
    """An interactive figure as JSON."""

    def load(self) -> Any:
        """Read a figure."""
        return self._read(super().load)

    def preview(self) -> PlotlyPreview:
        """The figure with the description as its subtitle, for kedro-viz."""
        figure = self.load().to_plotly_json()
        title = figure["layout"].get("title") or {}
        figure["layout"]["title"] = {**title, "subtitle": {"text": self.description}}
        return PlotlyPreview(json.loads(PlotlyJSONEncoder().encode(figure)))
