"""Sources of episodes: simulators, published datasets and your own logs."""

FORMATS = ("hdf5", "lerobot", "minari")
"""Formats that ``kedro export-dataset`` writes. Here, because the command line imports no source."""
