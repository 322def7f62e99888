"""Kedro's configuration loader, with the parameters checked and at hand in the catalog."""

from __future__ import annotations

import json
import logging
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any

from kedro.config import OmegaConfigLoader
from omegaconf import OmegaConf

from cvl_pipeline.errors import InputError
from cvl_pipeline.pipelines.parameters import RunParameters, check_parameters
from cvl_pipeline.storage import shown

logger = logging.getLogger(__name__)


class CheckedConfigLoader(OmegaConfigLoader):
    """Validates the parameters as soon as they are read and resolves the folders that the catalog names.

    ``${artifact_folder:}`` is ``<dataset>/seed_<n>`` of the parameters in force, ``--params`` included: what
    no reward touches is filed there. ``${reward_folder:}`` is the same folder for the dataset's own reward
    and one named after the reward inside it for any other; ``${tuning_folder:}`` that of a study, for all
    seeds of its dataset alike. ``${tuning_credentials:}`` is the entry of credentials.yml that
    ``tuning.storage`` names.

    With ``tuned`` the parameters that a study found best take the place of those in the files; ``--params``
    still has the last word.
    """

    _told = False

    def __getitem__(self, key: str) -> dict[str, Any]:
        """Load one kind of configuration; raises InputError on faulty parameters."""
        # Once for all entries of a catalog: reading the files takes a hundred milliseconds.
        folders = cache(self._folders)
        # Resolvers are global and Kedro never replaces one: without this, a second session in the same
        # process would file its artifacts under the first one's seed.
        for name in ("artifact_folder", "reward_folder", "tuning_folder", "tuning_credentials"):
            OmegaConf.register_new_resolver(name, lambda name=name: folders()[name], replace=True)
        config = super().__getitem__(key)
        if key == "parameters":
            parameters = check_parameters(config)
            if parameters.tuned:
                config = self._tuned(config)
                check_parameters(config)
        return config

    def _folders(self) -> dict[str, str | None]:
        """What the catalog's resolvers stand for."""
        # Without what a study found: it never changes which dataset, seed or reward is meant.
        parameters = check_parameters(super().__getitem__("parameters"))
        folder = PurePosixPath(parameters.dataset.folder, f"seed_{parameters.seed}")
        return {
            "artifact_folder": str(folder),
            "reward_folder": str(folder / parameters.reward.folder),
            "tuning_folder": str(_study_folder(parameters)),
            "tuning_credentials": parameters.tuning.storage,
        }

    def _tuned(self, config: dict[str, Any]) -> dict[str, Any]:
        """The parameters with those of the study in place; each that differs is told, once."""
        path = Path(self["catalog"]["best_parameters"]["filepath"])
        try:
            found: dict[str, Any] = json.loads(path.read_text())["parameters"]
        except FileNotFoundError:
            raise InputError(
                f"tuned=true, but {shown(path)} does not exist: search first, kedro run --pipelines "
                "data_ingestion,tuning, with the same dataset, reward and tuning.study"
            ) from None
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{shown(path)} is damaged ({type(error).__name__}); delete it and rerun tuning.choose"
            ) from None
        for name, value in found.items():
            *parents, last = name.split(".")
            place, given = config, dict(self.runtime_params or {})
            for parent in parents:
                place, given = place[parent], given.get(parent) or {}
            if last in given:
                continue  # --params has the last word
            if not self._told and place[last] != value:
                logger.info("tuned: %s is %s, not %s", name, value, place[last])
            place[last] = value
        self._told = True
        return config


def _study_folder(parameters: RunParameters) -> PurePosixPath:
    return PurePosixPath(
        parameters.dataset.folder, "tuning", parameters.reward.folder, parameters.tuning.study
    )
