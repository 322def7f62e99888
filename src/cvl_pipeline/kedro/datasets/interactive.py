"""Interactive pictures as Kedro datasets, apart from the others because plotly comes with an extra."""

from __future__ import annotations

from typing import Any

from kedro_datasets.plotly import json_dataset

from cvl_pipeline.kedro.datasets.atomic import Atomic


class PlotlyDataset(Atomic, json_dataset.JSONDataset):
    """An interactive figure as JSON."""

    def save(self, data: Any) -> None:
        """Write a figure."""
        self._write_atomically(super().save, data)

    def load(self) -> Any:
        """Read a figure."""
        return self._read(super().load)
