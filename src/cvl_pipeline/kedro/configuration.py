"""Kedro's configuration loader, with the parameters checked and at hand in the catalog."""

from __future__ import annotations

import json
import logging
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any

from kedro.config import MissingConfigException, OmegaConfigLoader
from omegaconf import OmegaConf

from cvl_pipeline.errors import InputError
from cvl_pipeline.io.location import Location, is_url
from cvl_pipeline.kedro.parameters import DataParameters, RunParameters, check_parameters

logger = logging.getLogger(__name__)

RESOLVERS = (
    "artifact_folder", "reward_folder", "tuning_folder", "tuning_credentials", "data_root", "local_root"
)  # fmt: skip
"""What stands for a value of the parameters in the catalog."""


class CheckedConfigLoader(OmegaConfigLoader):
    """Validates the parameters as soon as they are read and resolves the folders that the catalog names.

    ``${artifact_folder:}`` is ``<dataset>/seed_<n>`` of the parameters in force, ``--params`` included: what
    no reward touches is filed there. ``${reward_folder:}`` is the same folder for the dataset's own reward
    and one named after the reward inside it for any other; ``${tuning_folder:}`` that of a study, for all
    seeds of its dataset alike. ``${tuning_credentials:}`` is the entry of credentials.yml that
    ``tuning.storage`` names.

    ``${data_root:}`` is ``data.root``, and ``${local_root:}`` the same folder or, of a URL, that of its
    copies on this machine. Entries below a URL are given its cache and its credentials.

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
        for name in RESOLVERS:
            OmegaConf.register_new_resolver(name, lambda name=name: folders()[name], replace=True)
        config = super().__getitem__(key)
        if key == "parameters":
            parameters = check_parameters(config)
            if parameters.tuned:
                config = self._tuned(config)
                check_parameters(config)
        elif key == "catalog":
            self._complete(config)
        return config

    def location(self, filepath: str) -> Location:
        """A path of the project, or a URL below ``data.root``; raises InputError without its credentials."""
        data = self._untuned().data
        project = Path(self.conf_source).absolute().parent
        if not is_url(filepath):
            return Location(str(project / filepath))
        return Location(filepath, self._options(data), project / data.cache)

    def _options(self, data: DataParameters) -> dict[str, Any]:
        """Of the URL's file system."""
        if data.credentials is None:
            return {}
        try:
            options: dict[str, Any] = self["credentials"][data.credentials]
        except (KeyError, MissingConfigException):
            folders = (self.base_env, self.env or self.default_run_env)
            files = " or ".join(f"conf/{folder}/credentials.yml" for folder in folders)
            raise InputError(
                f"data.credentials is '{data.credentials}', which is no entry of {files}"
            ) from None
        return options

    def _complete(self, catalog: dict[str, Any]) -> None:
        """Give entries below a URL what they need besides."""
        data = self._untuned().data
        self._options(data)  # Kedro would name no file
        for entry in catalog.values():
            if is_url(data.root) and str(entry.get("filepath")).startswith(f"{data.root}/"):
                entry["cache"] = str(Path(self.conf_source).absolute().parent / data.cache)
                if data.credentials is not None:
                    entry["credentials"] = data.credentials

    def _untuned(self) -> RunParameters:
        """Without what a study found: it never changes which dataset, seed or reward is meant, or where."""
        return check_parameters(super().__getitem__("parameters"))

    def _folders(self) -> dict[str, str | None]:
        """What the catalog's resolvers stand for."""
        parameters, data = self._untuned(), self._untuned().data
        local = Location(data.root, cache=Path(data.cache)).path if is_url(data.root) else data.root
        folder = PurePosixPath(parameters.dataset.folder, f"seed_{parameters.seed}")
        return {
            "artifact_folder": str(folder),
            "reward_folder": str(folder / parameters.reward.folder),
            "tuning_folder": str(_study_folder(parameters)),
            "tuning_credentials": parameters.tuning.storage,
            "data_root": data.root,
            "local_root": str(local),
        }

    def _tuned(self, config: dict[str, Any]) -> dict[str, Any]:
        """The parameters with those of the study in place; each that differs is told, once."""
        kept = self.location(self["catalog"]["best_parameters"]["filepath"])
        kept.fetch()
        try:
            found: dict[str, Any] = json.loads(kept.path.read_text())["parameters"]
        except FileNotFoundError:
            raise InputError(
                f"tuned=true, but {kept} does not exist: search first, kedro run --pipelines "
                "data_ingestion,tuning, with the same dataset, reward and tuning.study"
            ) from None
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{kept} is damaged ({type(error).__name__}); delete it and rerun tuning.choose"
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
