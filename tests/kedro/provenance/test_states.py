from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import fsspec  # type: ignore[import-untyped]
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kedro.io import DataCatalog, MemoryDataset
from kedro.pipeline import Pipeline, node
from kedro.pipeline.node import Node

from cvl_pipeline.imports import user_function
from cvl_pipeline.kedro.datasets import JSONDataset
from cvl_pipeline.kedro.parameters import check_parameters
from cvl_pipeline.kedro.pipeline_registry import plan_for, register_pipelines
from cvl_pipeline.kedro.provenance import code, states
from cvl_pipeline.kedro.provenance.records import read_record, record_path, write_record
from cvl_pipeline.kedro.provenance.states import Provenance, State, named_modules
from tests.kedro.sessions import make_loader
from tests.s3 import Bucket

PARAMETERS = make_loader()["parameters"]


def one(seed: int, *inputs: Any) -> Any:
    return [seed, *map(str, inputs)]


def two(seed: int, *inputs: Any) -> Any:
    return [seed, *map(str, inputs)], [seed, "beside"]


@st.composite
def pipelines(draw: st.DrawFn) -> Pipeline:
    """Up to six nodes of one or two outputs, each of which reads the seed and some of what is before it."""
    made: list[str] = []
    nodes = []
    for number in range(draw(st.integers(1, 6))):
        chosen = draw(st.lists(st.sampled_from(made), unique=True, max_size=3)) if made else []
        outputs = [f"a{number}", f"b{number}"] if draw(st.booleans()) else [f"a{number}"]
        inputs, name = ["params:seed", *chosen], f"n{number}"
        nodes.append(
            node(one, inputs, outputs[0], name=name)
            if len(outputs) == 1
            else node(two, inputs, outputs, name=name)
        )
        made += outputs
    return Pipeline(nodes)


@contextmanager
def project(pipeline: Pipeline) -> Iterator[tuple[DataCatalog, Path]]:
    """A catalog of the pipeline's artifacts, none of which exists."""
    with TemporaryDirectory() as folder:
        names = pipeline.all_outputs()
        catalog = DataCatalog({name: JSONDataset(filepath=f"{folder}/{name}.json") for name in names})
        catalog["parameters"], catalog["params:seed"] = PARAMETERS, 0
        yield catalog, Path(folder)


def make(current: Node, catalog: DataCatalog, provenance: Provenance) -> None:
    """Run a node as Kedro would, with the record of its outputs."""
    making = provenance.making(current)
    for name, value in current.run({name: catalog.load(name) for name in current.inputs}).items():
        catalog.save(name, value)
    provenance.record(current, making)


def run(pipeline: Pipeline, catalog: DataCatalog, whole: Pipeline | None = None) -> set[str]:
    """Recreate the artifacts that are not fresh, as Kedro would; return the nodes that ran."""
    states = Provenance(pipeline, catalog).states()
    provenance = Provenance(whole or pipeline, catalog)
    ran = set()
    for current in pipeline.nodes:
        if all(states[name].fresh for name in current.outputs):
            continue
        make(current, catalog, provenance)
        ran.add(current.name)
    return ran


@given(pipelines(), st.data())
@settings(max_examples=25)
def test_changed_artifacts_and_all_that_depends_on_them_are_not_fresh(
    pipeline: Pipeline, data: st.DataObject
) -> None:
    with project(pipeline) as (catalog, folder):
        states = Provenance(pipeline, catalog).states()
        assert {state.name for state in states.values()} == {"missing"}
        assert run(pipeline, catalog) == {node.name for node in pipeline.nodes}
        assert run(pipeline, catalog) == set()

        ways = st.sampled_from(["missing", "damaged", "stale"])
        touched = data.draw(st.dictionaries(st.sampled_from(sorted(pipeline.all_outputs())), ways))
        for name, how in touched.items():
            path = folder / f"{name}.json"
            if how == "missing":
                path.unlink()
            elif how == "damaged":
                path.write_text("[]")
            else:
                record_path(path).unlink()
        makers = [node.name for node in pipeline.nodes if touched.keys() & set(node.outputs)]
        due = {node.name for node in pipeline.from_nodes(*makers).nodes} if makers else set()
        states = Provenance(pipeline, catalog).states()
        assert {
            node.name for node in pipeline.nodes if not all(states[name].fresh for name in node.outputs)
        } == due
        for name, state in states.items():
            assert state.fresh or state.name == "missing" or state.why
            assert state.name == touched.get(name, state.name)
        assert run(pipeline, catalog) == due
        assert run(pipeline, catalog) == set()


CHAIN = Pipeline(
    [
        node(two, "params:seed", ["first", "beside"], name="n0"),
        node(one, ["params:seed", "first"], "second", name="n1"),
        node(one, ["params:seed", "second"], "third", name="n2"),
    ]
)


@contextmanager
def chain() -> Iterator[tuple[DataCatalog, Path]]:
    with project(CHAIN) as (catalog, folder):
        run(CHAIN, catalog)
        yield catalog, folder


def test_two_outputs_of_different_runs_of_a_node_are_not_trusted() -> None:
    with chain() as (catalog, folder):
        # Both whole and recorded, by two runs of one recipe whose bytes differ, as they may on a GPU.
        for name in ("first.json", ".first.json.made.json"):
            (folder / f"old {name}").write_bytes((folder / name).read_bytes())
        catalog.save("first", ["other"])
        catalog.save("beside", ["other"])
        provenance = Provenance(CHAIN, catalog)
        provenance.record(CHAIN.nodes[0], provenance.making(CHAIN.nodes[0]))
        states = Provenance(CHAIN, catalog).states()
        assert states["first"].fresh
        assert states["second"] == State("stale", ("input first has changed",))
        for name in ("first.json", ".first.json.made.json"):
            (folder / f"old {name}").replace(folder / name)
        states = Provenance(CHAIN, catalog).states()
        assert states["first"] == State("stale", ("beside, made by the same node, has changed",))
        assert states["second"].why == "input first is stale"


def test_a_part_of_the_pipeline_takes_other_artifacts_as_they_are() -> None:
    part = CHAIN.only_nodes("n1")
    with chain() as (catalog, folder):
        record_path(folder / "first.json").unlink()
        assert run(part, catalog, CHAIN) == set()
        catalog.save("first", ["other"])
        state = Provenance(part, catalog).states()["second"]
        assert state == State("stale", ("input first has changed",))
        assert run(part, catalog, CHAIN) == {"n1"}
        assert run(part, catalog, CHAIN) == set()
        assert Provenance(CHAIN, catalog).states()["second"].why == "input first is stale"


def test_an_artifact_that_is_recreated_with_the_same_bytes_keeps_the_others_fresh() -> None:
    with chain() as (catalog, folder):
        for name in ("first", "beside"):  # as if other code had made them
            path = record_path(folder / f"{name}.json")
            path.write_text(path.read_text().replace(":two", ":three"))
        before = Provenance(CHAIN, catalog).states()
        assert [before[name].name for name in ("first", "second", "third")] == ["stale"] * 3
        assert run(CHAIN.only_nodes("n0"), catalog) == {"n0"}
        assert all(state.fresh for state in Provenance(CHAIN, catalog).states().values())


def test_the_seed_counts() -> None:
    with chain() as (catalog, _):
        catalog["parameters"] = {**PARAMETERS, "seed": 1}
        states = Provenance(CHAIN, catalog).states()
        assert states["first"] == State("stale", ("parameter seed: 0 -> 1",))
        assert states["third"] == State("stale", ("parameter seed: 0 -> 1", "input second is stale"))
        assert states["third"].why == "parameter seed and 1 more"


def test_data_in_memory_are_recreated_with_the_artifacts_that_need_them() -> None:
    with TemporaryDirectory() as folder:
        files = {name: JSONDataset(filepath=f"{folder}/{name}.json") for name in ("first", "beside", "third")}
        catalog = DataCatalog({**files, "second": MemoryDataset()})
        catalog["parameters"], catalog["params:seed"] = PARAMETERS, 0
        run(CHAIN, catalog)
        provenance = Provenance(CHAIN, catalog)
        for current in CHAIN.nodes[1:]:  # one run makes what is in memory and what follows from it
            make(current, catalog, provenance)
        assert all(state.fresh for state in Provenance(CHAIN, catalog).states().values())
        Path(folder, "first.json").unlink()
        states = Provenance(CHAIN, catalog).states()
        assert [states[name].name for name in ("first", "second", "third")] == ["missing", "stale", "stale"]


@pytest.mark.parametrize("large", [False, True])
def test_artifacts_at_a_url_are_fresh_on_another_machine_and_large_ones_without_a_download(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, large: bool
) -> None:
    if large:
        monkeypatch.setattr(states, "CHECKED_ONCE", 0)

    def machine(cache: str) -> DataCatalog:
        catalog = DataCatalog(
            {
                name: JSONDataset(
                    filepath=f"{bucket.url}/{name}.json",
                    credentials=bucket.options,
                    cache=str(tmp_path / cache),
                )
                for name in CHAIN.all_outputs()
            }
        )
        catalog["parameters"], catalog["params:seed"] = PARAMETERS, 0
        return catalog

    def state(catalog: DataCatalog) -> set[str]:
        return {found.name for found in Provenance(CHAIN, catalog).states().values()}

    assert run(CHAIN, machine("one")) == {"n0", "n1", "n2"}
    assert run(CHAIN, machine("one")) == set()
    assert state(machine("two")) == {"fresh"}
    artifacts = {f"{name}.json" for name in CHAIN.all_outputs()}
    assert artifacts.isdisjoint(path.name for path in (tmp_path / "two").rglob("*")) == large
    assert machine("two").load("third") == machine("one").load("third")
    assert state(machine("two")) == {"fresh"}
    # Changed by another program.
    bucket.files.pipe_file(f"{bucket.url}/second.json", b"[]")
    found = Provenance(CHAIN, machine("two")).states()
    assert [found[name].name for name in ("first", "second", "third")] == ["fresh", "damaged", "stale"]
    assert run(CHAIN, machine("two")) == {"n1", "n2"}
    bucket.files.rm_file(f"{bucket.url}/first.json")
    assert Provenance(CHAIN, machine("one")).states()["first"].name == "missing"
    bucket.files.rm_file(f"{bucket.url}/.second.json.made.json")
    assert Provenance(CHAIN, machine("one")).states()["second"].why == "it has no record"
    assert run(CHAIN, machine("one")) == {"n0", "n1", "n2"}
    assert state(machine("two")) == {"fresh"}


def test_a_large_file_of_which_only_the_size_is_known_is_downloaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(states, "CHECKED_ONCE", 0)
    url, pipeline = f"memory://{tmp_path.name}", Pipeline(CHAIN.nodes[:1])

    def states_now(cache: str) -> dict[str, str]:
        catalog = DataCatalog(
            {
                name: JSONDataset(filepath=f"{url}/{name}.json", cache=str(tmp_path / cache))
                for name in pipeline.all_outputs()
            }
        )
        catalog["parameters"], catalog["params:seed"] = PARAMETERS, 0
        if cache == "one":
            run(pipeline, catalog)
        return {name: state.name for name, state in Provenance(pipeline, catalog).states().items()}

    system = fsspec.filesystem("memory")
    info = system.info
    monkeypatch.setattr(system, "info", lambda path: {**info(path), "created": None})
    assert set(states_now("one").values()) == {"fresh"}
    stored = system.cat_file(f"{url}/first.json")
    system.pipe_file(f"{url}/first.json", b" " * len(stored))
    assert states_now("two")["first"] == "damaged"


@pytest.mark.parametrize(
    ("given", "changed", "stale"),
    [
        # Only the node of the stage that the parameters belong to counts their choice.
        ({}, {"policy_extraction": {"objective": "ddpg_bc"}}, {"cvl_policy"}),
        ({}, {"baselines": {"bc": {"hidden": [8]}}}, {"reward_free_bc_policy"}),
        ({}, {"value_readout": {"method": "random_fourier"}}, {"readout", "cvl_policy"}),
        ({"evaluation": {"workers": 1}}, {"evaluation": {"workers": 2}}, set()),
        # Defaults count as if they were written down.
        ({}, {"policy_extraction": {"objective": "awr", "beta": 3.0}}, set()),
    ],
)
def test_a_choice_counts_for_the_nodes_that_receive_it(
    given: dict[str, Any], changed: dict[str, Any], stale: set[str], tmp_path: Path
) -> None:
    def provenance(values: dict[str, Any]) -> tuple[Provenance, Pipeline]:
        parameters = check_parameters(values)
        plan_for(parameters)
        stages = register_pipelines()
        pipeline = stages["policy_extraction"] + stages["value_readout"].only_nodes("value_readout.read_out")
        names = ("cvl_policy", "reward_free_bc_policy", "readout")
        catalog = DataCatalog({name: JSONDataset(filepath=f"{tmp_path}/{name}.json") for name in names})
        catalog["parameters"] = parameters.model_dump(mode="json")
        pipeline = Pipeline([node for node in pipeline.nodes if {*names} & {*node.outputs}])
        return Provenance(pipeline, catalog), pipeline

    first, pipeline = provenance(given)
    for current in pipeline.nodes:
        making = first.making(current)
        (tmp_path / f"{current.outputs[0]}.json").write_text("{}")
        first.record(current, making)
    found = provenance(changed)[0].states()
    assert {name for name, state in found.items() if not state.fresh and first.path(name)} == stale


def test_an_artifact_with_more_inputs_than_now_is_stale() -> None:
    """Such as a plot of all policies after a baseline was removed."""
    with chain() as (catalog, _):
        more = Pipeline([node(one, ["params:seed", "first", "second"], "third", name="n2"), *CHAIN.nodes[:2]])
        assert Provenance(more, catalog).states()["third"].name == "stale"
        assert run(more, catalog) == {"n2"}
        states = Provenance(CHAIN, catalog).states()
        assert states["third"] == State("stale", ("input first is no longer one",))
        assert run(CHAIN, catalog) == {"n2"}


def test_an_artifact_of_a_dataset_that_was_renamed_is_stale_and_not_damaged() -> None:
    with chain() as (catalog, folder):
        path = folder / "third.json"
        record = read_record(path)
        assert record is not None
        write_record(path, replace(record, outputs={"old": record.outputs["third"]}))
        found = Provenance(CHAIN, catalog).states()["third"]
        assert found == State("stale", ("its record names no such dataset",))
        assert run(CHAIN, catalog) == {"n2"}


@pytest.mark.parametrize(
    ("value", "modules"),
    [
        ("my_rewards:fast", ["my_rewards"]),
        ("größe.teil:schnell", ["größe.teil"]),
        ("envs:space/Mine-v0", ["envs"]),
        (["awr", "mine:Objective"], ["mine"]),
        ({"choices": ("awr", "mine:Objective")}, ["mine"]),
        ("s3://bucket/x", []),
        ("CartPole-v1", []),
        ("1:2", []),
        (":x", []),
        ("x:", []),
        (None, []),
        (3, []),
    ],
)
def test_modules_that_parameters_name_are_found(value: Any, modules: list[str]) -> None:
    assert named_modules({"field": value}) == modules


@pytest.fixture
def labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Any, Path]]:
    """A function that takes the provenance of labels by a reward of the user's own, and the file of the reward."""
    monkeypatch.syspath_prepend(tmp_path)
    name = f"mine_{tmp_path.name}"
    file = tmp_path / f"{name}.py"
    file.write_text(
        "import math\ndef fast(observations, actions, following):\n    return observations[:, 0]\n"
    )
    catalog = DataCatalog({"labels": JSONDataset(filepath=f"{tmp_path}/labels.json")})
    catalog["parameters"] = check_parameters({"reward": {"source": f"{name}:fast"}}).model_dump(mode="json")
    pipeline = register_pipelines()["value_readout"].only_nodes("value_readout.label")
    (tmp_path / "labels.json").write_text("{}")
    yield lambda: (Provenance(pipeline, catalog), pipeline.nodes[0]), file
    sys.modules.pop(name, None)
    for function in vars(code).values():
        if hasattr(function, "cache_clear"):
            function.cache_clear()


def _edit(file: Path, text: str) -> None:
    before = file.stat().st_ctime_ns
    while file.stat().st_ctime_ns == before:  # until the file system's clock ticks
        file.write_text(text)


@pytest.mark.parametrize(
    "when", ["never", "before it is imported", "before its node", "imported", "after its node"]
)
@pytest.mark.parametrize("undone", [False, True])
def test_a_result_is_not_fresh_if_the_code_may_have_been_another_than_was_recorded(
    labels: tuple[Any, Path], when: str, undone: bool
) -> None:
    take, file = labels
    text = file.read_text()
    other = text.replace("[:, 0]", "[:, 1]")

    def moment(now: str) -> None:
        if now == when:
            _edit(file, other)
            if undone:
                importlib.invalidate_caches()
                importlib.import_module(file.stem)
                _edit(file, text)

    provenance, node = take()
    moment("before it is imported")
    if when != "before its node":
        importlib.import_module(file.stem)
    moment("imported")
    moment("before its node")
    making = provenance.making(node)
    if when == "imported":  # and read before
        assert node.name not in making.modules
    provenance.record(node, making)
    moment("after its node")
    for function in vars(code).values():  # as another process sees it
        if hasattr(function, "cache_clear"):
            function.cache_clear()
    sys.modules.pop(file.stem, None)
    found = take()[0].states()["labels"]
    safe = when == "never" or (when == "after its node" and undone)
    assert found.fresh == safe, found
    if when not in ("never", "after its node"):
        assert f"source {file.stem} was edited while it was made" in found.reasons


def test_edits_after_the_import_do_not_count_but_those_between_import_and_reading_do(
    labels: tuple[Any, Path],
) -> None:
    take, file = labels
    text = file.read_text()
    provenance, node = take()
    user_function("reward.source", f"{file.stem}:fast")
    provenance.settle()
    _edit(file, text.replace("0", "1"))
    provenance.record(node, provenance.making(node))
    _edit(file, text)
    assert take()[0].states()["labels"].fresh
    for function in vars(code).values():  # the module stays imported
        if hasattr(function, "cache_clear"):
            function.cache_clear()
    provenance, node = take()
    provenance.record(node, provenance.making(node))
    assert take()[0].states()["labels"].why == f"source {file.stem} was edited while it was made"


def test_other_processes_must_find_the_same_code_until_the_node_ends(tmp_path: Path) -> None:
    nodes = {node.name: node for pipeline in register_pipelines().values() for node in pipeline.nodes}

    def starts(name: str, **given: Any) -> bool:
        catalog = DataCatalog()
        catalog["parameters"] = check_parameters(given).model_dump(mode="json")
        return Provenance(Pipeline([]), catalog)._starts_processes(nodes[name])

    assert starts("data_ingestion.ingest")
    assert starts("evaluation.roll_out_cvl")
    assert starts("tuning.search")
    assert not starts("value_readout.label")
    assert not starts("contrastive_dynamics.train")
    assert starts("contrastive_dynamics.train", contrastive_dynamics={"training": {"devices": 2}})
    assert not starts("policy_extraction.train_cvl", contrastive_dynamics={"training": {"devices": 2}})
    assert starts("policy_extraction.train_bc", policy_extraction={"training": {"nodes": 2}})


def test_a_log_that_changes_while_it_is_read_makes_no_fresh_episodes(tmp_path: Path) -> None:
    log = tmp_path / "log.csv"
    log.write_text("x")
    catalog = DataCatalog({"transitions": JSONDataset(filepath=f"{tmp_path}/transitions.json")})
    dataset = {"source": "files", "path": str(log)}
    catalog["parameters"] = check_parameters({"dataset": dataset}).model_dump(mode="json")
    pipeline = register_pipelines()["data_ingestion"].only_nodes("data_ingestion.ingest")
    provenance = Provenance(pipeline, catalog)
    making = provenance.making(pipeline.nodes[0])
    (tmp_path / "transitions.json").write_text("{}")
    log.write_text("y")
    provenance.record(pipeline.nodes[0], making)
    log.write_text("x")
    state = Provenance(pipeline, catalog).states()["transitions"]
    assert state.why == "source dataset.path was edited while it was made"


def test_an_artifact_whose_further_files_are_gone_is_damaged() -> None:
    pipeline = Pipeline([node(one, ["params:seed"], "a", name="n")])
    with project(pipeline) as (catalog, _):
        run(pipeline, catalog)
        assert Provenance(pipeline, catalog).states()["a"].fresh
        artifact: Any = catalog.get("a")
        artifact.fault = lambda: "policy.onnx is missing"
        assert Provenance(pipeline, catalog).states()["a"] == State("damaged", ("policy.onnx is missing",))
