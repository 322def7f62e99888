"""Kedro's configuration loader, which checks the parameters and resolves the folders of the catalog."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, TypeVar, get_args, get_origin

import yaml
from kedro.config import MissingConfigException, OmegaConfigLoader
from kedro.framework.context import KedroContext
from kedro.framework.project import LOGGING, settings
from kedro.utils import find_kedro_project
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from cvl_pipeline.errors import InputError, one_line
from cvl_pipeline.io.location import Location, is_url
from cvl_pipeline.io.storage import check_file, shown
from cvl_pipeline.kedro.parameters import DataParameters, RunParameters, check_parameters
from cvl_pipeline.kedro.provenance.records import Checksums, read_record
from cvl_pipeline.schema import flattened, merged, nested
from cvl_pipeline.sources.base import LocalPath
from cvl_pipeline.tuning.parameters import STAGES
from cvl_pipeline.tuning.storage import StudyLocation

RESOLVERS = ("artifact_folder", "reward_folder", "tuning_folder", "data_root")
"""Names that stand for a value of the parameters in the catalog."""
LOCAL = get_args(LocalPath)[-1]
"""Marks parameters that are paths of files on this machine."""

Model = TypeVar("Model", bound=BaseModel)


def _check_is_plain(values: Any, name: str = "") -> None:
    """Raise InputError for text that OmegaConf would replace again: the value that is checked is the one used."""
    if isinstance(values, str) and ("${" in values or values == "???"):
        raise InputError(
            f"parameters: '{name}' is {values!r}: write the value itself; ${{...}} works only within a file of conf/, "
            "and ??? is no value"
        )
    mapping = values if isinstance(values, Mapping) else {}
    for key, part in enumerate(values) if isinstance(values, list | tuple) else mapping.items():
        _check_is_plain(part, f"{name}.{key}" if name else str(key))


UNREADABLE = (
    yaml.YAMLError, OmegaConfBaseException, AttributeError, OSError, RecursionError, TypeError, ValueError,
)  # fmt: skip
"""Errors of files that hold no YAML of names with values, or ``${...}`` that cannot be replaced."""


class _ReadableLoader(OmegaConfigLoader):
    """Says which file is no YAML of names with values, and where."""

    def __getitem__(self, key: str) -> dict[str, Any]:
        """Load one kind of configuration; raises InputError if a file is no YAML."""
        try:
            config: dict[str, Any] = super().__getitem__(key)
        except UNREADABLE:
            for env in dict.fromkeys((self.base_env, self.env or self.default_run_env)):
                for path in sorted(Path(self.conf_source, env).rglob("*")):
                    if path.suffix in (".yml", ".yaml", ".json") and path.is_file():
                        _check_is_yaml(path)
            raise
        return config


def _check_is_yaml(path: Path) -> None:
    """Raise InputError if a file of the configuration cannot be read."""
    try:
        content: Any = OmegaConf.load(path)
        if not OmegaConf.is_dict(content):
            raise InputError(f"{shown(path)} holds a list, not names with values; write name: value")
        if path.stem.startswith("parameters"):  # the catalog names folders by resolvers of ours
            OmegaConf.to_container(content, resolve=True)
    except InputError:
        raise
    except (OmegaConfBaseException, RecursionError) as error:
        raise InputError(
            f"{shown(path)}: {one_line(error)[:200]}; ${{name}} stands for a value of the same file"
        ) from None
    except (yaml.YAMLError, OSError, AttributeError, TypeError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        place = f", line {mark.line + 1}" if mark else ""
        reason = getattr(error, "problem", None) or one_line(error)
        raise InputError(f"{shown(path)}{place}: {reason}; the file must be YAML in UTF-8") from None


class CheckedConfigLoader(_ReadableLoader):
    """Validates the parameters as soon as they are read and resolves the folders that the catalog names.

    The parameters are layers, each over the one before: the models' defaults, ``conf/base``, the environment,
    the best parameters of a study if ``tuned``, and ``--params``. A layer that chooses another alternative, such
    as another ``policy_extraction.objective``, drops settings of the former one.

    ``${data_root:}`` is ``data.root``. ``${artifact_folder:}`` is ``<dataset>/seed_<n>``: artifacts that no
    reward touches are stored there. ``${reward_folder:}`` is the same folder for the dataset's own reward; for
    any other reward it is ``<dataset>/seed_<n>/<reward>``. ``${tuning_folder:}`` is the folder of a study, the
    same for all seeds of its dataset.

    Relative paths are relative to the project's folder, whatever the current folder and the source of the
    configuration are.
    """

    project: Path | None = None
    """The project's folder; None: the one that the configuration is in."""

    def __getitem__(self, key: str) -> dict[str, Any]:
        """Load one kind of configuration; raises InputError on faulty parameters."""
        if key == "parameters":
            return self.run_parameters().model_dump(mode="json")
        # Resolvers are global and Kedro never replaces one. Without this, a second session in the same
        # process would file its artifacts under the first one's seed.
        for name in RESOLVERS:
            OmegaConf.register_new_resolver(name, lambda name=name: self._folders[name], replace=True)
        config = super().__getitem__(key)
        if key == "catalog":
            self._complete(config)
        return config

    def run_parameters(self) -> RunParameters:
        """Return the parameters in force; raises InputError on faulty ones."""
        return self._in_force

    @cached_property
    def _in_force(self) -> RunParameters:
        tuned = check_parameters(self._layered(self._tuned())) if self._untuned.tuned else self._untuned
        return below_folder(tuned, self._project)

    @cached_property
    def _untuned(self) -> RunParameters:
        """The parameters without those of a study, which never change dataset, seed, reward or place."""
        return check_parameters(self._layered())

    @cached_property
    def _layers(self) -> list[dict[str, Any]]:
        """The parameters of ``conf/base`` and of the environment, if it is another."""
        environments = dict.fromkeys((self.base_env, self.env or self.default_run_env))
        return [self._read(environment) for environment in environments]

    def _layered(self, tuned: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Merge the layers of parameters."""
        values: dict[str, Any] = {}
        for layer in (*self._layers, tuned or {}, dict(self.runtime_params or {})):
            values = merged(RunParameters, values, layer)
        _check_is_plain(values)
        return values

    def _read(self, env: str) -> dict[str, Any]:
        """Read the parameter files of one environment."""
        loader = _ReadableLoader(
            self.conf_source, base_env=env, default_run_env=env, config_patterns=self.config_patterns
        )
        layer: dict[str, Any] = loader["parameters"]
        return layer

    def location(self, filepath: str) -> Location:
        """Return a path of the project, or a URL below ``data.root``.

        Raises:
            InputError: a URL without its credentials.
        """
        data = self._untuned.data
        if not is_url(filepath):
            return Location(str(self._project / filepath))
        return Location(filepath, self._options(data), self._project / data.cache)

    def local(self, filepath: str) -> Path:
        """Return a path below the data root as it is on this machine."""
        root = self._untuned.data.root
        place = f"{root}/{filepath}"
        if not is_url(root):
            return self._project / place
        return Location(place, cache=self._project / self._untuned.data.cache).path

    def study(self) -> tuple[StudyLocation, Path]:
        """Return the storage of the study in force, and its folder on this machine.

        Raises:
            InputError: ``tuning.storage`` is no entry of credentials.yml, or one that is not just a url.
        """
        folder = self.local(f"06_models/{self._folders['tuning_folder']}")
        name = self._untuned.tuning.storage
        if name is None:
            return StudyLocation(folder / "journal.log"), folder
        credentials = self._credentials("tuning.storage", name)
        if set(credentials) != {"url"} or not isinstance(credentials["url"], str):
            raise InputError(
                "tuning.storage: its entry in credentials.yml must be one field, url, such as "
                "postgresql+psycopg://user:password@host/database"
            )
        url = credentials["url"]
        if self._project.resolve() != Path.cwd():  # a database in a file is in the project, too
            url = re.sub(r"^(sqlite(?:\+\w+)?:///)(?=[^/:])(?!file:)", rf"\g<1>{self._project}/", url)
        return StudyLocation(folder / "journal.log", url), folder

    @property
    def elsewhere(self) -> str | None:
        """Where the configuration is, if it is not the project's own."""
        own = self._project / "conf"
        return None if Path(self.conf_source).absolute() == own else str(self.conf_source)

    @property
    def _project(self) -> Path:
        return self.project or Path(self.conf_source).absolute().parent

    def _options(self, data: DataParameters) -> dict[str, Any]:
        """Return the options of the URL's file system."""
        return {} if data.credentials is None else self._credentials("data.credentials", data.credentials)

    def _credentials(self, field: str, name: str) -> dict[str, Any]:
        try:
            entry: dict[str, Any] = self["credentials"][name]
        except (KeyError, MissingConfigException):
            folders = (self.base_env, self.env or self.default_run_env)
            files = " or ".join(f"conf/{folder}/credentials.yml" for folder in folders)
            raise InputError(f"{field} is '{name}', which is no entry of {files}") from None
        return entry

    def _complete(self, catalog: dict[str, Any]) -> None:
        """Give entries below a URL their cache and credentials."""
        data = self._untuned.data
        self._options(data)  # Kedro would name no file
        for entry in catalog.values():
            if is_url(data.root) and str(entry.get("filepath")).startswith(f"{data.root}/"):
                entry["cache"] = str(self._project / data.cache)
                if data.credentials is not None:
                    entry["credentials"] = data.credentials

    @cached_property
    def _folders(self) -> dict[str, str]:
        """The values of the catalog's resolvers."""
        parameters = self._untuned
        folder = PurePosixPath(parameters.dataset.folder, f"seed_{parameters.seed}")
        study = PurePosixPath(
            parameters.dataset.folder, "tuning", parameters.reward.folder, parameters.tuning.study
        )
        return {
            "artifact_folder": str(folder),
            "reward_folder": str(folder / parameters.reward.folder),
            "tuning_folder": str(study),
            "data_root": parameters.data.root,
        }

    def tuned_changes(self) -> dict[str, tuple[Any, Any]]:
        """Return the parameters that the study changed, by their full names: the new and the former value."""
        if not self.run_parameters().tuned:
            return {}
        before = flattened(self._untuned.model_dump(mode="json"))
        overridden = flattened(dict(self.runtime_params or {}))
        return {
            name: (value, before.get(name))
            for name, value in flattened(self._tuned()).items()
            if name not in overridden and before.get(name) != value
        }

    def _tuned(self) -> dict[str, Any]:
        """Return the best parameters of the study."""
        location = self.location(self["catalog"]["best_parameters"]["filepath"])
        location.fetch()
        check_file(location.path, "delete it and rerun tuning.choose")
        try:
            best: dict[str, Any] = nested(json.loads(location.path.read_text())["parameters"])
        except FileNotFoundError:
            raise InputError(
                f"tuned=true, but {location} does not exist: search first, kedro run --pipelines "
                "data_ingestion,tuning, with the same dataset, reward and tuning.study"
            ) from None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(
                f"{location} is damaged ({type(error).__name__}); delete it and rerun tuning.choose"
            ) from None
        record = read_record(location.path)
        changed = record is not None and record.outputs.get("best_parameters") != Checksums().of(
            location.path
        )
        if changed or not set(best) <= set(STAGES):
            raise InputError(
                f"{location} has changed since it was written; delete it and rerun tuning.choose"
            )
        return best


def project_folder() -> Path:
    """Return the folder of the project that the current folder is in, as Kedro's session finds it."""
    return Path(find_kedro_project(Path.cwd()) or Path.cwd()).resolve()


def project_loader(
    env: str | None, params: Mapping[str, Any], *, project: Path | None = None, conf_source: str | None = None
) -> CheckedConfigLoader:
    """Return the loader of a project's configuration, without a session.

    Args:
        env: folder of the configuration with other settings; None: the default one.
        params: nested parameters of ``--params``.
        project: its folder; None: that of the current folder.
        conf_source: folder of the configuration; None: the project's own.
    """
    project = project or project_folder()
    loader = CheckedConfigLoader(
        conf_source or str(project / settings.CONF_SOURCE),
        env=env,
        runtime_params=dict(params),
        **settings.CONFIG_LOADER_ARGS,
    )
    loader.project = project
    return loader


class ProjectContext(KedroContext):
    """Kedro's context, which tells the configuration loader where the project is, and logs as it says."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        """Set the loader's project, and its logging: Kedro looks for that in the current folder alone."""
        super().__init__(*arguments, **named)
        if isinstance(self.config_loader, CheckedConfigLoader):
            self.config_loader.project = self.project_path
        path = self.project_path / settings.CONF_SOURCE / "logging.yml"
        outside = self.project_path.resolve() != Path.cwd().resolve()
        if outside and "KEDRO_LOGGING_CONFIG" not in os.environ and path.is_file():
            LOGGING.configure(OmegaConf.to_container(OmegaConf.load(path)))  # type: ignore[arg-type]


def below_folder(parameters: Model, folder: Path, prefix: str = "") -> Model:
    """Return parameters whose relative paths of files are below a folder.

    If it is the current folder, the parameters stay as they are.

    Args:
        parameters: any model; its fields of the types ``LocalPath`` and ``Path`` are paths.
        folder: absolute path.
        prefix: of the fields' names, for the error.

    Raises:
        InputError: a file is not there, but in the current folder.
    """
    if folder.resolve() == Path.cwd():
        return parameters
    changes: dict[str, Any] = {}
    for name, info in type(parameters).model_fields.items():
        value, full = getattr(parameters, name), f"{prefix}{name}"
        if isinstance(value, BaseModel):
            changes[name] = below_folder(value, folder, f"{full}.")
        elif isinstance(value, Mapping):
            changes[name] = {
                key: below_folder(part, folder, f"{full}.{key}.") if isinstance(part, BaseModel) else part
                for key, part in value.items()
            }
        elif isinstance(value, Path) or (isinstance(value, str) and _is_local_path(info)):
            _check_root(full, str(value), folder)
            changes[name] = type(value)(folder / value)
    return parameters.model_copy(update=changes)


def _is_local_path(info: FieldInfo) -> bool:
    """Whether a field has the type ``LocalPath``, or that or None."""
    parts = [part for part in get_args(info.annotation) if get_origin(part) is Annotated]
    return LOCAL in [*info.metadata, *(mark for part in parts for mark in get_args(part)[1:])]


def _check_root(field: str, value: str, folder: Path) -> None:
    if not (folder / value).exists() and Path(value).exists():
        raise InputError(
            f"{field} is '{value}': relative paths begin at the project's folder, {folder}, which has no such "
            f"file, but the current folder has one: give its absolute path, {Path(value).absolute()}"
        )
