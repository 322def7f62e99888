from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from kedro.pipeline.node import Node

from cvl_pipeline.kedro.pipeline_registry import register_pipelines
from cvl_pipeline.kedro.provenance import code
from cvl_pipeline.kedro.provenance.code import Code, code_of, source_of

CACHES = (code_of, source_of, code._file, code._tree, code._hash, code._imported, code._version)

SIMULATORS = {"gymnasium", "gymnasium_robotics", "metaworld", "mujoco"}
TRAINING = {
    "artifacts",
    "checked",
    "errors",
    "imports",
    "launch",
    "networks",
    "storage",
    "training",
    "trajectories",
}
PARAMETERS = {
    "dynamics",
    "errors",
    "parameters",
    "policies",
    "readout",
    "rollouts",
    "sources",
    "training",
    "trajectories",
}
"""Rooms of the models of all parameters."""
READOUT = {"errors", "networks", "readout", "training", "trajectories"}
SOURCES = {"errors", "imports", "rollouts", "sources", "storage", "training", "trajectories"}
ROOMS: dict[str, set[str]] = {
    "data_ingestion.ingest": SOURCES,
    "data_ingestion.split": {"errors", "training", "trajectories"},
    "data_ingestion.normalise": {"errors", "training", "trajectories"},
    "data_ingestion.tabulate": SOURCES,
    "data_ingestion.report": set(),
    "data_ingestion.plot": {"errors", "trajectories"},
    "contrastive_dynamics.train": TRAINING | {"dynamics"},
    "contrastive_dynamics.report": set(),
    "contrastive_dynamics.plot": set(),
    "value_readout.label": {"errors", "imports", "readout", "training", "trajectories"},
    "value_readout.read_out": READOUT,
    "value_readout.evaluate": READOUT,
    "value_readout.report": READOUT,
    "value_readout.plot": set(),
    "policy_extraction.extract": TRAINING | {"policies", "readout"},
    "policy_extraction.clone": TRAINING | {"policies", "readout"},
    "policy_extraction.plot": set(),
    "evaluation.roll_out": SOURCES | {"networks"},
    "evaluation.roll_out_bc": SOURCES | {"networks"},
    "evaluation.score": SOURCES | {"networks", "readout"},
    "evaluation.summarise": SOURCES | {"networks", "readout"},
    "evaluation.plot": set(),
    "tuning.search": TRAINING | SOURCES | PARAMETERS | {"tuning", "location"},
    **{f"tuning.{name}": PARAMETERS | {"tuning"} for name in ("choose", "report")},
    **{f"tuning.{name}": PARAMETERS | {"tuning"} for name in ("history", "importance", "parallel")},
}
"""The rooms, and modules beside them, whose code each node depends on; ``pipelines`` it is itself."""


def _nodes() -> list[Node]:
    pipelines = register_pipelines()
    return (pipelines["__default__"] + pipelines["tuning"]).nodes


def test_every_node_depends_on_these_rooms_and_no_others() -> None:
    found = {
        node.name: {name.split(":")[0].split(".")[1] for name in code_of(node.func).hashes} - {"pipelines"}
        for node in _nodes()
    }
    assert found == ROOMS


def test_of_the_pipelines_a_node_depends_on_its_own_function_and_what_that_uses() -> None:
    for node in _nodes():
        own = {name for name in code_of(node.func).hashes if ".pipelines." in name}
        function = f"{node.func.__module__}:{node.func.__name__}"
        used = {"cvl_pipeline.reports.plots"} if node.name.endswith(".plot") else set()
        if node.name == "tuning.search":
            used = {"cvl_pipeline.kedro.parameters"}
        assert own == {function} | used, node.name


def test_nodes_that_simulate_depend_on_the_simulators_and_training_does_not() -> None:
    packages = {node.name: set(code_of(node.func).packages) for node in _nodes()}
    for name in ("data_ingestion.ingest", "evaluation.roll_out", "evaluation.roll_out_bc"):
        assert packages[name] >= {"torch", "numpy", *SIMULATORS}
    for name in ("contrastive_dynamics.train", "policy_extraction.extract", "policy_extraction.clone"):
        assert packages[name] == {"lightning", "numpy", "pandas", "torch"}
    assert packages["contrastive_dynamics.report"] == {"pandas"}


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package of one's own on the Python path."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "toy/room").mkdir(parents=True)
    for folder in ("toy", "toy/room"):
        (tmp_path / folder / "__init__.py").write_text('"""A package."""\n')
    yield tmp_path / "toy"
    for name in [name for name in sys.modules if name.partition(".")[0] == "toy"]:
        del sys.modules[name]


NODES = """
from __future__ import annotations
import numpy as np
from typing import TYPE_CHECKING
from toy import apart
from toy.room import near as close
if TYPE_CHECKING:
    from toy.room import types
LIMIT = 3
OTHER = 4
def work(x):
    '''Work.'''
    return helper(x) + close.value
def helper(x):
    from toy.room.lazy import later
    return later(x, LIMIT)
def others(x, work):
    return apart.value + OTHER
"""
MODULES = {
    "nodes.py": NODES,
    "apart.py": "value = 1\n",
    "room/near.py": "import torch\nfrom .far import value\n",
    "room/far.py": "value = 1\n",
    "room/lazy.py": "def later(x, y):\n    return x\n",
    "room/types.py": "X = int\n",
}


def _code(package: Path, function: str = "work", **changed: str) -> Code:
    """The code of a function after some modules have changed."""
    modules = MODULES | {f"{name.replace('__', '/')}.py": text for name, text in changed.items()}
    for name, text in modules.items():
        (package / name).write_text(text)
    for name in [name for name in sys.modules if name.startswith("toy.")]:
        del sys.modules[name]
    for cached in CACHES:
        cached.cache_clear()
    importlib.invalidate_caches()
    return code_of(getattr(importlib.import_module("toy.nodes"), function))


def test_a_function_depends_on_what_it_names_and_on_all_behind_that(package: Path) -> None:
    found = _code(package)
    assert set(found.hashes) == {"toy.nodes:work", "toy.room.near", "toy.room.far", "toy.room.lazy"}
    assert set(found.packages) == {"torch"}
    # Its parameter has the name of another function.
    assert set(_code(package, "others").hashes) == {"toy.nodes:others", "toy.apart"}


def test_of_a_function_within_another_the_whole_module_counts(package: Path) -> None:
    nodes = NODES + "def make():\n    def inner(x):\n        return x\n    return inner\n"
    _code(package, nodes=nodes)
    inner = code_of(partial(importlib.import_module("toy.nodes").make(), 1))
    assert set(inner.hashes) == {
        "toy.nodes", "toy.apart", "toy.room.near", "toy.room.far", "toy.room.lazy"
    }  # fmt: skip


SAME = {
    "a comment": {"nodes": NODES + "# A remark.\n", "room__far": "# A remark.\nvalue = 1\n"},
    "a docstring": {"nodes": NODES.replace("Work.", "It works."), "room__far": '"""Far."""\nvalue = 1\n'},
    "a docstring of a constant": {"nodes": NODES.replace("LIMIT = 3", 'LIMIT = 3\n"""Most."""')},
    "line breaks": {
        "nodes": NODES.replace("helper(x) + close.value", "(helper(\n    x)\n    + close.value)")
    },
    "another function": {"nodes": NODES.replace("OTHER = 4", "OTHER = 5").replace("apart.value", "2")},
    "a module that another function uses": {"apart": "value = 2\n"},
    "a module for types alone": {"room__types": "X = str\n"},
}
CHANGED = {
    "its own code": ({"nodes": NODES.replace("helper(x) +", "helper(x) -")}, "toy.nodes:work"),
    "a helper": ({"nodes": NODES.replace("later(x, LIMIT)", "later(LIMIT, x)")}, "toy.nodes:work"),
    "a constant": ({"nodes": NODES.replace("LIMIT = 3", "LIMIT = 5")}, "toy.nodes:work"),
    "the type of a constant": ({"nodes": NODES.replace("LIMIT = 3", "LIMIT = 3.0")}, "toy.nodes:work"),
    "what a name is": ({"nodes": NODES.replace("near as close", "far as close")}, "toy.nodes:work"),
    "code that runs on import": ({"nodes": NODES + "for n in [1]:\n    LIMIT += n\n"}, "toy.nodes:work"),
    "a module": ({"room__near": "import torch\nfrom .far import value\nvalue += 1\n"}, "toy.room.near"),
    "a module that a module imports": ({"room__far": "value = 2\n"}, "toy.room.far"),
    "a module imported in a function": ({"room__lazy": "def later(x, y):\n    return y\n"}, "toy.room.lazy"),
}


@pytest.mark.parametrize("what", SAME)
def test_what_changes_nothing_of_it_does_not_count(package: Path, what: str) -> None:
    assert _code(package, **SAME[what]) == _code(package)


@pytest.mark.parametrize("what", CHANGED)
def test_what_changes_anything_of_it_counts_where_it_is(package: Path, what: str) -> None:
    changed, where = CHANGED[what]
    before, after = _code(package).hashes, _code(package, **changed).hashes
    assert before.get(where) != after.get(where)
    assert {name for name in before.keys() & after.keys() if before[name] != after[name]} <= {where}


def test_the_code_that_runs_is_that_which_was_there_first(package: Path) -> None:
    """A person edits on while a run trains for hours."""
    before = _code(package)
    function = importlib.import_module("toy.nodes").work
    (package / "nodes.py").write_text("def work(x):\n    return 0\n")
    assert code_of(function) == before


def test_a_module_of_ones_own_counts_with_what_it_imports_of_its_package(package: Path) -> None:
    def source(**changed: str) -> str | None:
        _code(package, **changed)
        return source_of("toy.room.near")

    assert source() == source(room__far="# A remark.\nvalue = 1\n", apart="value = 2\n")
    assert source() != source(room__far="value = 2\n")
    assert source_of("toy.nowhere") is None
    assert source_of("no_such_package.at_all") is None
