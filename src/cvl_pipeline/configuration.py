"""Kedro's configuration loader, with the parameters checked and at hand in the catalog."""

from __future__ import annotations

from functools import cache
from pathlib import PurePosixPath
from typing import Any

from kedro.config import OmegaConfigLoader
from omegaconf import OmegaConf

from cvl_pipeline.pipelines.parameters import check_parameters


class CheckedConfigLoader(OmegaConfigLoader):
    """Validates the parameters as soon as they are read and resolves ``${artifact_folder:}``.

    The catalog files what no reward touches under ``data/<layer>/${artifact_folder:}/``, which is
    ``<dataset>/seed_<n>`` of the parameters in force, ``--params`` included, and what follows from a reward
    under ``data/<layer>/${reward_folder:}/``, which is the same folder for the dataset's own reward and one
    named after the reward inside it for any other.
    """

    def __getitem__(self, key: str) -> dict[str, Any]:
        """Load one kind of configuration; raises InputError on faulty parameters."""
        # Once for all entries of a catalog: reading the files takes a hundred milliseconds.
        folders = cache(self._folders)
        # Resolvers are global and Kedro never replaces one: without this, a second session in the same
        # process would file its artifacts under the first one's seed.
        OmegaConf.register_new_resolver("artifact_folder", lambda: folders()[0], replace=True)
        OmegaConf.register_new_resolver("reward_folder", lambda: folders()[1], replace=True)
        config = super().__getitem__(key)
        if key == "parameters":
            check_parameters(config)
        return config

    def _folders(self) -> tuple[str, str]:
        """What ``${artifact_folder:}`` and ``${reward_folder:}`` stand for."""
        parameters = check_parameters(super().__getitem__("parameters"))
        folder = PurePosixPath(parameters.dataset.folder, f"seed_{parameters.seed}")
        return str(folder), str(folder / parameters.reward.folder)
