from __future__ import annotations

import json
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from kedro.io import DataCatalog

from cvl_pipeline.errors import InputError
from cvl_pipeline.kedro.configuration import CheckedConfigLoader
from cvl_pipeline.kedro.pipeline_registry import register_pipelines
from cvl_pipeline.kedro.provenance import locks
from cvl_pipeline.kedro.provenance.code import Code
from cvl_pipeline.kedro.provenance.hooks import TrustArtifacts
from cvl_pipeline.kedro.provenance.locks import acquire, release
from cvl_pipeline.kedro.settings import CONFIG_LOADER_ARGS
from cvl_pipeline.testing.builders import names_in
from tests.project import CONF, copy_conf
from tests.s3 import Bucket
from tests.training.processes import wait_for

PIPELINE = register_pipelines()["data_ingestion"]
RUN: dict[str, Any] = {"only_missing_outputs": False}


def _catalog() -> DataCatalog:
    catalog = DataCatalog()
    catalog["parameters"] = CheckedConfigLoader(str(CONF), **CONFIG_LOADER_ARGS)["parameters"]
    return catalog


def _hook(project: Path) -> TrustArtifacts:
    hook = TrustArtifacts()
    loader = CheckedConfigLoader(str(copy_conf(project)), **CONFIG_LOADER_ARGS)
    hook.after_context_created(SimpleNamespace(config_loader=loader))  # type: ignore[arg-type]
    return hook


def _lock(project: Path) -> Path:
    return project / "data/.locks/door-open-v3/seed_0.lock"


def _is_held(project: Path) -> bool:
    try:
        release(acquire(_lock(project), "data"))
    except InputError:
        return True
    return False


@pytest.mark.parametrize("end", ["after_pipeline_run", "on_pipeline_error", "another hook"])
def test_a_run_holds_its_data_from_its_first_check_to_its_end(tmp_path: Path, end: str) -> None:
    hook, catalog = _hook(tmp_path), _catalog()
    others = hook.before_pipeline_run(RUN, PIPELINE, catalog)
    next(others)
    assert _is_held(tmp_path)
    if end == "another hook":
        with pytest.raises(InputError, match="of a check"):
            others.throw(InputError("of a check"))
    else:
        with pytest.raises(StopIteration):
            next(others)
        assert _is_held(tmp_path)
        whole = register_pipelines()["__default__"]
        hook.on_pipeline_error() if end == "on_pipeline_error" else hook.after_pipeline_run(whole, catalog)
    assert not _is_held(tmp_path)


def test_a_second_run_is_refused_before_its_checks(tmp_path: Path) -> None:
    held = acquire(_lock(tmp_path), "data")
    with pytest.raises(InputError, match="dataset 'door-open-v3', seed 0, is in use by another run"):
        next(_hook(tmp_path).before_pipeline_run(RUN, PIPELINE, _catalog()))
    release(held)


def test_a_run_that_was_interrupted_in_a_notebook_does_not_bar_the_next(tmp_path: Path) -> None:
    hook = _hook(tmp_path)
    next(hook.before_pipeline_run(RUN, PIPELINE, _catalog()))
    next(hook.before_pipeline_run(RUN, PIPELINE, _catalog()))
    hook.on_pipeline_error()
    assert not _is_held(tmp_path)


def test_training_that_other_code_began_is_not_taken_up(tmp_path: Path) -> None:
    (train,) = register_pipelines()["contrastive_dynamics"].only_nodes("contrastive_dynamics.train").nodes
    folder = tmp_path / "dynamics_checkpoints"
    given = []
    for version in ("1.0", "1.0", "2.0"):
        hook = _hook(tmp_path)
        others = hook.before_pipeline_run(RUN, register_pipelines()["contrastive_dynamics"], _catalog())
        next(others)
        assert hook._provenance is not None
        hook._provenance._code[train.name] = Code({}, {"torch": version})
        inputs = {"dynamics_checkpoints": folder}
        changed = hook.before_node_run(train, inputs)
        assert changed is not None
        given.append(inputs | changed)
        hook.on_pipeline_error()
    first, again, other = (values["dynamics_checkpoints"] for values in given)
    assert first == again != other
    assert first.parent == other.parent == folder
    # When it has ended, its folder goes; one that something unfinished is in, stays.
    first.mkdir(parents=True)
    (other / "unfinished").mkdir(parents=True)
    for values in given:
        hook.after_node_run(train, values)
    assert names_in(folder) == [other.name]


def test_a_run_at_a_url_that_another_has_taken_over_writes_no_more(
    tmp_path: Path, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "RENEWAL", 0.05)
    conf = copy_conf(tmp_path)
    (conf / "local/credentials.yml").write_text(json.dumps({"lab": bucket.options}))
    data = {"root": f"{bucket.url}/me", "credentials": "lab"}
    loader = CheckedConfigLoader(str(conf), runtime_params={"data": data}, **CONFIG_LOADER_ARGS)
    catalog = DataCatalog()
    catalog["parameters"] = loader["parameters"]
    hook = TrustArtifacts()
    hook.after_context_created(SimpleNamespace(config_loader=loader))  # type: ignore[arg-type]
    others = hook.before_pipeline_run(RUN, PIPELINE, catalog)
    next(others)
    hook.before_dataset_saved()
    lease = loader.location(f"{bucket.url}/me/.locks/door-open-v3/seed_0.lock")
    other = {"pid": 1, "host": "x", "machine": "x", "since": "now", "token": "x", "renewed": time.time()}

    def is_lost() -> bool:
        lease.write(json.dumps(other))  # a renewal may have been under way
        return hook._lease is not None and hook._lease._lost

    wait_for(is_lost)
    with pytest.raises(InputError, match="seed 0, has been taken over by another run"):
        hook.before_dataset_saved()
    with pytest.raises(InputError, match="seed 0, has been taken over by another run"):
        hook.before_node_run(PIPELINE.nodes[0], {})
    hook.on_pipeline_error()
    assert json.loads(lease.read() or "") == other
    release(acquire(lease.path, "data"))
