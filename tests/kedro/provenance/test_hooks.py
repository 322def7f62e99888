from __future__ import annotations

import json
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
from kedro.io import DataCatalog
from kedro.pipeline import Pipeline

from cvl_pipeline.errors import InputError
from cvl_pipeline.kedro.commands import keep_options
from cvl_pipeline.kedro.configuration import CheckedConfigLoader
from cvl_pipeline.kedro.datasets import ParquetDataset
from cvl_pipeline.kedro.pipeline_registry import plan_for, register_pipelines
from cvl_pipeline.kedro.provenance import locks
from cvl_pipeline.kedro.provenance.code import Code
from cvl_pipeline.kedro.provenance.hooks import TrustArtifacts
from cvl_pipeline.kedro.provenance.locks import acquire, release
from cvl_pipeline.kedro.provenance.records import Recipe, Record, write_record
from cvl_pipeline.kedro.workspace import Workspace, workspace
from cvl_pipeline.testing.builders import names_in
from cvl_pipeline.tuning.storage import StudyLocation
from tests.kedro.sessions import make_catalog, make_loader
from tests.project import copy_conf
from tests.s3 import Bucket
from tests.training.processes import wait_for

PIPELINE = register_pipelines()["data_ingestion"]
RUN: dict[str, Any] = {"only_missing_outputs": False}


def _hook(project: Path, **given: Any) -> tuple[TrustArtifacts, DataCatalog]:
    """The hook in a session of a project, and the project's catalog."""
    loader = make_loader(copy_conf(project), **given)
    plan_for(loader.run_parameters())
    return _started(loader), make_catalog(loader, project)


def _started(loader: CheckedConfigLoader) -> TrustArtifacts:
    hook = TrustArtifacts()
    hook.after_context_created(SimpleNamespace(config_loader=loader))  # type: ignore[arg-type]
    return hook


def _lock(project: Path, seed: int = 0) -> Path:
    return project / f"data/.locks/door-open-v3/seed_{seed}.lock"


def _is_held(project: Path, seed: int = 0) -> bool:
    try:
        release(acquire(_lock(project, seed), "data"))
    except InputError:
        return True
    return False


def _prepared(project: Path) -> Any:
    """The hook's part of the start of a run."""
    hook, catalog = _hook(project)
    return hook.before_pipeline_run(RUN, PIPELINE, catalog)


@pytest.mark.parametrize("end", ["after_pipeline_run", "on_pipeline_error", "another hook"])
def test_a_run_locks_its_data_from_its_first_check_to_its_end(tmp_path: Path, end: str) -> None:
    hook, catalog = _hook(tmp_path)
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
        next(_prepared(tmp_path))
    release(held)


def test_an_interrupted_run_in_a_notebook_does_not_block_the_next_one(tmp_path: Path) -> None:
    hook, catalog = _hook(tmp_path)
    next(hook.before_pipeline_run(RUN, PIPELINE, catalog))
    next(hook.before_pipeline_run(RUN, PIPELINE, catalog))
    hook.on_pipeline_error()
    assert not _is_held(tmp_path)


def test_training_of_other_code_or_parameters_is_not_resumed(tmp_path: Path) -> None:
    (train,) = register_pipelines()["contrastive_dynamics"].only_nodes("contrastive_dynamics.train").nodes
    folder = tmp_path / "data/06_models/door-open-v3/seed_0/checkpoints/critic"
    workspaces = []
    for version in ("1.0", "1.0", "2.0"):
        hook, catalog = _hook(tmp_path)
        next(hook.before_pipeline_run(RUN, register_pipelines()["contrastive_dynamics"], catalog))
        assert hook._provenance is not None
        hook._provenance._code[train.name] = Code({}, {"torch": version})
        hook.before_node_run(train)
        workspaces.append(workspace.get())
        hook.on_pipeline_error()
    assert {place.logs for place in workspaces} == {
        tmp_path / "data/08_reporting/door-open-v3/seed_0/logs/critic"
    }
    first, again, other = (place.checkpoints for place in workspaces)
    assert first is not None
    assert other is not None
    assert first == again != other
    assert first.parent == other.parent == folder


def test_checkpoints_are_deleted_when_all_outputs_are_saved(tmp_path: Path) -> None:
    (train,) = register_pipelines()["contrastive_dynamics"].only_nodes("contrastive_dynamics.train").nodes
    hook, catalog = _hook(tmp_path)
    next(hook.before_pipeline_run(RUN, register_pipelines()["contrastive_dynamics"], catalog))
    hook.before_node_run(train)
    checkpoints = workspace.get().checkpoints
    assert checkpoints is not None
    (checkpoints / "fingerprint").mkdir(parents=True)
    (checkpoints.parent / "another recipe").mkdir()
    hook.after_node_run(train)
    assert workspace.get() == Workspace()
    for name in train.outputs:
        assert checkpoints.exists()  # until then, the run may die
        hook.after_dataset_saved(name, train)
    assert names_in(checkpoints.parent) == ["another recipe"]
    hook.on_pipeline_error()


@pytest.mark.parametrize("baseline", ["bc", "iql"])
def test_each_policy_has_folders_of_its_own(tmp_path: Path, baseline: str) -> None:
    """Those of a method that needs rewards are in the folder of the reward."""
    hook, catalog = _hook(tmp_path, baselines={"bc": {}, "iql": {}}, reward={"source": "success"})
    pipeline = register_pipelines()["policy_extraction"]
    next(hook.before_pipeline_run(RUN, pipeline, catalog))
    (train,) = pipeline.only_nodes(f"policy_extraction.train_{baseline}").nodes
    hook.before_node_run(train)
    place, folder = workspace.get(), "success/" if baseline == "iql" else ""
    assert place.logs == tmp_path / f"data/08_reporting/door-open-v3/seed_0/{folder}logs/{baseline}"
    assert place.checkpoints is not None
    models = tmp_path / f"data/06_models/door-open-v3/seed_0/{folder}checkpoints/{baseline}"
    assert place.checkpoints.parent == models
    hook.on_pipeline_error()


def test_only_nodes_that_train_have_a_workspace(tmp_path: Path) -> None:
    hook, catalog = _hook(tmp_path)
    pipelines = register_pipelines()
    next(hook.before_pipeline_run(RUN, pipelines["__default__"] + pipelines["tuning"], catalog))
    (report,) = pipelines["contrastive_dynamics"].only_nodes("contrastive_dynamics.report").nodes
    hook.before_node_run(report)
    assert workspace.get() == Workspace()
    (search,) = pipelines["tuning"].only_nodes("tuning.search").nodes
    hook.before_node_run(search)
    folder = tmp_path / "data/06_models/door-open-v3/tuning/study"
    assert workspace.get() == Workspace(study=StudyLocation(folder / "journal.log"), study_folder=folder)
    hook.on_pipeline_error()


def test_a_damaged_input_is_refused_with_a_command_of_the_same_options(tmp_path: Path) -> None:
    hook, catalog = _hook(tmp_path, seed=3)
    keep_options("smoke", {"seed": 3})
    pipelines = register_pipelines()
    (report,) = pipelines["contrastive_dynamics"].only_nodes("contrastive_dynamics.report").nodes
    path = tmp_path / "history.parquet"
    catalog["dynamics_history"] = ParquetDataset(filepath=str(path))
    catalog.save("dynamics_history", pd.DataFrame({"step": [1]}))
    recipe = Recipe("contrastive_dynamics.train", {}, {}, {}, {}, {})
    write_record(path, Record(recipe, {}, {"dynamics_history": "other bytes"}, []))
    run = hook.before_pipeline_run(RUN, Pipeline([report]), catalog)
    next(run)
    with pytest.raises(InputError) as caught:
        next(run)
    assert str(caught.value).startswith(f"{path} is damaged (its content differs from the record)")
    assert "recreate it: kedro run --only-missing-outputs --env smoke --params seed=3; or" in str(
        caught.value
    )
    assert not _is_held(tmp_path, seed=3)


def test_a_run_whose_data_at_a_url_another_run_has_taken_over_stops_writing(
    tmp_path: Path, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "RENEWAL", 0.05)
    conf = copy_conf(tmp_path)
    (conf / "local/credentials.yml").write_text(json.dumps({"lab": bucket.options}))
    data = {"root": f"{bucket.url}/me", "credentials": "lab"}
    loader = make_loader(conf, data=data)
    catalog = DataCatalog()
    catalog["parameters"] = loader["parameters"]
    hook = _started(loader)
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
        hook.before_node_run(PIPELINE.nodes[0])
    hook.on_pipeline_error()
    assert json.loads(lease.read() or "") == other
    release(acquire(lease.path, "data"))
