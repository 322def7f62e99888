from __future__ import annotations

import importlib
import importlib.machinery
import sys
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from kedro.io import DataCatalog

from cvl_pipeline.kedro.parameters import check_parameters
from cvl_pipeline.kedro.pipeline_registry import plan_for, register_pipelines
from cvl_pipeline.kedro.provenance import code
from cvl_pipeline.kedro.provenance.code import Code, code_of, code_of_module, source_of
from cvl_pipeline.kedro.provenance.states import Provenance
from cvl_pipeline.kedro.workspace import PROVENANCE
from cvl_pipeline.objectives.base import OBJECTIVES
from cvl_pipeline.sources.base import SOURCES

CACHES = [function for function in vars(code).values() if hasattr(function, "cache_clear")]

BASE = {"errors", "imports", "schema"}
TRAINING = {*BASE, "api", "episodes", "io", "networks", "paths", "training"}
READOUT = {*BASE, "episodes", "networks", "readout", "training"}
SOURCES_OF_EPISODES = {*BASE, "environments", "episodes", "paths", "sources", "training"}
PARAMETERS = {
    *BASE, "dynamics", "environments", "episodes", "io", "judging", "methods", "networks", "objectives", "parameters",
    "paths", "readout", "sources", "training", "tuning",
}  # fmt: skip
"""The models of all parameters, with the default alternatives."""
COLOURS = {*BASE, "methods", "networks", "objectives", "reports", "training"}
"""The methods that there are, which have colours of their own."""
ROOMS: dict[str, set[str]] = {
    "data_ingestion.ingest": SOURCES_OF_EPISODES | {"api", "io"},
    "data_ingestion.split": {"errors", "episodes"},
    "data_ingestion.normalise": {"errors", "episodes"},
    "data_ingestion.tabulate": SOURCES_OF_EPISODES,
    "data_ingestion.report": {"errors", "episodes"},
    "data_ingestion.plot": {"errors", "episodes", "reports"},
    "contrastive_dynamics.train": TRAINING | {"dynamics"},
    "contrastive_dynamics.report": set(),
    "contrastive_dynamics.plot": {"reports"},
    "value_readout.label": {*BASE, "api", "episodes", "readout"},
    "value_readout.read_out": READOUT | {"api"},
    "value_readout.evaluate": READOUT,
    "value_readout.report": READOUT,
    "value_readout.plot": {"reports"},
    "policy_extraction.train_cvl": TRAINING | {"methods", "objectives", "readout"},
    "policy_extraction.train_bc": TRAINING | {"methods", "objectives"},
    "policy_extraction.train_iql": TRAINING | {"methods", "objectives"},
    "policy_extraction.plot": COLOURS,
    **{
        f"evaluation.roll_out_{name}": SOURCES_OF_EPISODES | {"api", "networks"}
        for name in ("cvl", "bc", "iql")
    },
    **{
        f"evaluation.score_{name}": SOURCES_OF_EPISODES | {"networks", "readout"}
        for name in ("cvl", "bc", "iql")
    },
    "evaluation.summarise": SOURCES_OF_EPISODES | {"networks", "readout", "reports"},
    "evaluation.plot": COLOURS,
    "evaluation.write_page": PARAMETERS - {"tuning"} | {"reports"},
    "export.export_cvl": {
        *BASE,
        "deploy",
        "environments",
        "episodes",
        "methods",
        "networks",
        "objectives",
        "paths",
        "readout",
        "reports",
        "sources",
        "training",
    },
    "tuning.search": PARAMETERS | {"api", "deploy", "reports"},
    **{f"tuning.{name}": PARAMETERS for name in ("choose", "report", "history", "importance", "parallel")},
}
"""The packages, and modules beside them, that each node depends on; ``kedro``, its own, has a test below."""
SIMULATORS = {"gymnasium", "gymnasium_robotics", "metaworld", "mujoco"}


def _code_of_nodes(**parameters: Any) -> dict[str, Code]:
    """The code of each node and of the alternatives that the parameters choose."""
    checked = check_parameters(parameters)
    plan_for(checked)
    pipelines = register_pipelines()
    catalog = DataCatalog()
    catalog["parameters"] = checked.model_dump(mode="json")
    return Provenance(pipelines["__default__"] + pipelines["export"] + pipelines["tuning"], catalog)._code


def _modules(code: Code, package: str) -> set[str]:
    """Modules of one of the packages that code depends on."""
    start = f"cvl_pipeline.{package}."
    return {name.removeprefix(start) for name in code.hashes if name.startswith(start)}


def test_every_node_depends_on_these_packages_and_no_others() -> None:
    found = {
        node: {name.split(":")[0].split(".")[1] for name in code.hashes} - {"kedro"}
        for node, code in _code_of_nodes(baselines={"bc": {}, "iql": {}}).items()
    }
    assert found == ROOMS


def test_a_node_depends_on_its_own_function_and_what_it_names_in_kedros_package() -> None:
    pipelines = register_pipelines()
    nodes = {
        node.name: node
        for node in (pipelines["__default__"] + pipelines["export"] + pipelines["tuning"]).nodes
    }
    for name, found in _code_of_nodes().items():
        function: Any = nodes[name].func
        function = function.func if isinstance(function, partial) else function
        used = {f"cvl_pipeline.kedro.{part}" for part in ("parameters", "workspace")}
        used = used if name == "tuning.search" else used - {"cvl_pipeline.kedro.parameters"}
        used = used if {"training", PROVENANCE} & nodes[name].tags else set()
        own = {part for part in found.hashes if part.startswith("cvl_pipeline.kedro.")}
        assert own == {f"{function.__module__}:{function.__name__}"} | used, name


def test_a_node_depends_on_the_functions_of_the_python_interface_that_it_names() -> None:
    found = {
        node: {name.partition(":")[2] for name in code.hashes if name.startswith("cvl_pipeline.api")}
        for node, code in _code_of_nodes().items()
        if not node.startswith("tuning.")
    }
    assert {node: names for node, names in found.items() if names} == {
        "data_ingestion.ingest": {"ingest"},
        "contrastive_dynamics.train": {"train_critic"},
        "value_readout.label": {"label_rewards"},
        "value_readout.read_out": {"read_out"},
        "policy_extraction.train_cvl": {"extract_policy"},
        "policy_extraction.train_bc": {"train_parameters"},
        "evaluation.roll_out_cvl": {"roll_out"},
        "evaluation.roll_out_bc": {"roll_out"},
    }


@pytest.mark.parametrize("objective", OBJECTIVES.names)
def test_a_policy_depends_on_its_own_objective_and_the_critic_on_none(objective: str) -> None:
    behind = {"awr": {"advantages", "parameters"}, "best_of_n": {"bc"}}.get(objective, set())
    codes = _code_of_nodes(policy_extraction={"objective": objective}, baselines={"bc": {}, "iql": {}})
    found = {
        name: _modules(codes[f"policy_extraction.train_{name}"], "objectives")
        for name in ("cvl", "bc", "iql")
    }
    assert found == {
        "cvl": {"base", "training", objective, *behind}, "bc": {"base", "training", "bc"}, "iql": {"base"}
    }  # fmt: skip
    methods = {name: _modules(codes[f"policy_extraction.train_{name}"], "methods") for name in found}
    shared = {"iql": {"off_policy"}}
    assert methods == {name: {"base", "job", name, *shared.get(name, ())} for name in found}
    for package in ("objectives", "methods", "readout", "environments", "sources"):
        assert not _modules(codes["contrastive_dynamics.train"], package)


FILE_READERS = {
    "files": {"columns", "formats", "hdf5", "progress", "precision", "steps", "tables"},
    "d4rl": {"download", "hdf5", "progress", "precision", "steps"},
    "ogbench": {"download", "formats", "hdf5", "progress", "precision"},
    "minari": {"hdf5", "minari_format", "progress", "precision", "steps"},
    "lerobot": {"columns", "lerobot_format", "lerobot_frames", "progress", "pictures", "precision", "steps"},
}


@pytest.mark.parametrize("source", SOURCES.names)
def test_episodes_depend_on_their_own_source(source: str) -> None:
    path = {"path": "x.csv"}
    settings = {"files": path, "lerobot": path, "d4rl": {"task": "hopper-medium-v2"}}.get(source, {})
    codes = _code_of_nodes(dataset={"source": source, **settings}, evaluation={"environment": "Hopper-v5"})
    simulated = {"simulated"} if source in ("metaworld", "pointmaze", "gymnasium") else set()
    behind = {"base", source} | simulated | FILE_READERS.get(source, set())
    assert _modules(codes["data_ingestion.ingest"], "sources") == behind
    assert _modules(codes["data_ingestion.tabulate"], "sources") == behind
    for node in ("ingest", "tabulate"):
        environments = _modules(codes[f"data_ingestion.{node}"], "environments")
        assert ("metaworld" in environments) == (source == "metaworld")
        assert ("pointmaze" in environments) == (source == "pointmaze")
        assert bool(environments) == (source not in ("files", "lerobot"))
    assert "metaworld" not in codes["contrastive_dynamics.train"].packages
    assert ("metaworld" in codes["evaluation.roll_out_cvl"].packages) == (source == "metaworld")


def test_only_nodes_that_simulate_depend_on_the_simulators() -> None:
    packages = {node: set(code.packages) for node, code in _code_of_nodes().items()}
    assert packages["data_ingestion.ingest"] == {"gymnasium", "metaworld", "mujoco", "numpy", "torch"}
    for name in ("evaluation.roll_out_cvl", "evaluation.roll_out_bc"):
        assert packages[name] >= {"torch", "numpy", *SIMULATORS}
    for name in ("contrastive_dynamics.train", "policy_extraction.train_cvl", "policy_extraction.train_bc"):
        assert packages[name] == {"lightning", "numpy", "pandas", "torch"}
    assert packages["contrastive_dynamics.report"] == {"pandas"}
    files = _code_of_nodes(dataset={"source": "files", "path": "x.csv"})
    assert set(files["data_ingestion.ingest"].packages) == {"numpy", "pandas", "torch"}


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
    from toy.room.inputs import Input
LIMIT = 3
OTHER = 4
def work(x: Input):
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
    "room/inputs.py": "Input = int\n",
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


def test_a_function_depends_on_what_it_names_and_on_all_that_this_imports(package: Path) -> None:
    found = _code(package)
    assert set(found.hashes) == {
        "toy.nodes:work", "toy.room.near", "toy.room.far", "toy.room.lazy", "toy.room.inputs"
    }  # fmt: skip
    assert set(found.packages) == {"torch"}
    # Its parameter has the name of another function.
    assert set(_code(package, "others").hashes) == {"toy.nodes:others", "toy.apart"}


def test_the_whole_module_counts_for_a_function_within_a_function(package: Path) -> None:
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
    "the class of an input": ({"room__inputs": "Input = str\n"}, "toy.room.inputs"),
    "a module imported in a function": ({"room__lazy": "def later(x, y):\n    return y\n"}, "toy.room.lazy"),
}


@pytest.mark.parametrize("what", SAME)
def test_changes_without_effect_on_a_function_do_not_count(package: Path, what: str) -> None:
    assert _code(package, **SAME[what]) == _code(package)


@pytest.mark.parametrize("what", CHANGED)
def test_changes_of_a_function_and_its_dependencies_count(package: Path, what: str) -> None:
    changed, where = CHANGED[what]
    before, after = _code(package).hashes, _code(package, **changed).hashes
    assert before.get(where) != after.get(where)
    assert {name for name in before.keys() & after.keys() if before[name] != after[name]} <= {where}


def test_edits_during_a_run_do_not_count(package: Path) -> None:
    """The code that runs is the code that was imported."""
    before = _code(package)
    function = importlib.import_module("toy.nodes").work
    (package / "nodes.py").write_text("def work(x):\n    return 0\n")
    assert code_of(function) == before


def test_a_users_module_counts_with_its_imports_from_its_own_package(package: Path) -> None:
    def source(**changed: str) -> str | None:
        _code(package, **changed)
        return source_of("toy.room.near")

    assert source() == source(room__far="# A remark.\nvalue = 1\n", apart="value = 2\n")
    assert source() != source(room__far="value = 2\n")
    assert source_of("toy.nowhere") is None
    assert source_of("no_such_package.at_all") is None


def test_a_users_class_depends_on_the_modules_of_this_package_that_it_builds_on(package: Path) -> None:
    near = "from cvl_pipeline.objectives.awr import AdvantageWeightedRegression\nfrom toy.room import far\n"
    _code(package, room__near=near, room__far="from cvl_pipeline.networks.mlp import MLP\nimport scipy\n")
    found = code_of_module("toy.room.near")
    assert {"cvl_pipeline.objectives.awr", "cvl_pipeline.networks.mlp"} <= found.hashes.keys()
    assert not any(name.startswith("toy") for name in found.hashes)  # these count as a source
    assert {"scipy", "torch"} <= found.packages.keys()
    assert code_of_module("toy.nowhere") == Code({}, {})


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str | None]:
    """Files of the user's own on the Python path; returns the hash of the module ``mine``."""
    monkeypatch.syspath_prepend(tmp_path)
    base = {
        "mine.py": "import helper\nfrom größe import limit\nimport folder.part, loose.part\n",
        "helper.py": "import deep\nvalue = 1\n",
        "deep.py": "value = 1\n",
        "größe.py": "limit = 1\n",
        "folder/__init__.py": "value = 1\n",
        "folder/part.py": "from . import beside\n",
        "folder/beside.py": "value = 1\n",
        "folder/other.py": "value = 1\n",
        "loose/part.py": "from ..helper import value\n",  # beyond its top-level package
    }

    def source(**changed: str | bytes) -> str | None:
        files = base | {
            name.replace("__in__", "/").replace("__dot__", "."): text for name, text in changed.items()
        }
        for name, text in files.items():
            path = tmp_path / name
            path.parent.mkdir(exist_ok=True, parents=True)
            path.write_bytes(text if isinstance(text, bytes) else text.encode())
        for cached in CACHES:
            cached.cache_clear()
        importlib.invalidate_caches()
        return source_of("mine")

    return source


@pytest.mark.parametrize(
    "changed", ["helper", "deep", "größe", "folder__in____init__", "folder__in__beside", "loose__in__part"]
)
def test_every_module_of_the_users_own_that_is_imported_counts(
    desk: Callable[..., str | None], changed: str
) -> None:
    before = desk()
    assert desk(folder__in__other__dot__py="value = 2\n") == before
    assert desk(**{f"{changed}__dot__py": "value = limit = 2\n"}) != before


def test_the_module_of_an_environment_that_the_users_module_registers_counts(
    desk: Callable[..., str | None],
) -> None:
    mine = (
        'import gymnasium\ngymnasium.register("Robot-v0", entry_point="robot:Robot", max_episode_steps=9)\n'
    )
    before = desk(mine__dot__py=mine, robot__dot__py="value = 1\n")
    assert desk(mine__dot__py=mine, robot__dot__py="value = 2\n") != before


@pytest.mark.parametrize(
    ("changed", "again"),
    [
        ({"deep__dot__py": "value = \n"}, {"deep__dot__py": "value = =\n"}),
        ({"helper__dot__py": b"\x00 = 1"}, {"helper__dot__py": b"\x00 = 2"}),
    ],
)
def test_faulty_modules_count_by_their_bytes(
    desk: Callable[..., str | None], changed: Any, again: Any
) -> None:
    assert len({desk(), desk(**changed), desk(**again)}) == 3


def test_compiled_modules_of_the_users_own_count_by_their_bytes(
    desk: Callable[..., str | None], tmp_path: Path
) -> None:
    name = f"fast{importlib.machinery.EXTENSION_SUFFIXES[0]}"
    hashes = set()
    for content in (b"1", b"2"):
        (tmp_path / name).write_bytes(content)
        hashes.add(desk(mine__dot__py="import fast\n"))
    assert len(hashes) == 2


def test_installed_packages_count_by_their_version(
    desk: Callable[..., str | None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "installed"  # as by pip install --target
    monkeypatch.syspath_prepend(folder)
    before = desk(
        helper__dot__py="import json, kit, yaml, no_such_package\n",
        installed__in__kit__in____init____dot__py="value = 1\n",
        **{
            "installed__in__kit-1.0.dist-info__in__RECORD": "kit/__init__.py,,\n",
            "installed__in__kit-1.0.dist-info__in__METADATA": "Name: kit\nVersion: 1.0\n",
        },
    )
    found = code_of_module("mine")
    assert found.packages == {
        "kit": "1.0", "no_such_package": "not installed", "yaml": f"PyYAML {version('PyYAML')}"
    }  # fmt: skip
    assert "kit" not in found.modules
    files = {"helper__dot__py": "import json, kit, yaml, no_such_package\n"}
    assert desk(**files, installed__in__kit__in____init____dot__py="value = 2\n") == before
    (folder / "kit-1.0.dist-info/RECORD").unlink()  # nobody installed it
    assert desk(**files) != before


def test_a_users_function_depends_on_the_modules_of_this_package_that_it_builds_on(
    desk: Callable[..., str | None],
) -> None:
    desk(deep__dot__py="from cvl_pipeline.networks.mlp import MLP\n")
    assert "cvl_pipeline.networks.mlp" in code_of_module("mine").hashes
