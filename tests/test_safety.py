"""Nothing that this package reads can run code: no pickle, no unsafe loader, no eval."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

SOURCES = Path(__file__).parents[1] / "src"
MODULES = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal", "jsonpickle"}
CALLS = {"eval", "exec", "read_pickle", "to_pickle", "unsafe_load", "full_load"}
EXCEPTIONS = {
    # The dictionaries of the installed package d4rl, which loops fill; they get no builtins.
    ("cvl_pipeline/sources/d4rl.py", "exec"),
    # Messages between the processes of one run, through its own pipes; never a file.
    ("cvl_pipeline/environments/rollouts.py", "pickle"),
    ("cvl_pipeline/environments/video.py", "pickle"),
    ("cvl_pipeline/kedro/beside.py", "pickle"),
}


def _name(call: ast.Call) -> str:
    function = call.func
    if isinstance(function, ast.Attribute):
        return f"{function.value.id if isinstance(function.value, ast.Name) else ''}.{function.attr}"
    return function.id if isinstance(function, ast.Name) else ""


def _is(value: ast.expr | None, constant: object) -> bool:
    return isinstance(value, ast.Constant) and value.value is constant


def unsafe(tree: ast.AST) -> list[str]:
    """Names in the code that could run the contents of a file."""
    names_found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = (
                [name.name for name in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            )
            names_found += [name for name in names if name.split(".")[0] in MODULES]
        if not isinstance(node, ast.Call):
            continue
        name, arguments = _name(node), {keyword.arg: keyword.value for keyword in node.keywords}
        last = name.split(".")[-1]
        method = isinstance(node.func, ast.Attribute)
        if last in CALLS and not (last in ("eval", "exec") and method):  # a module's own eval()
            names_found.append(last)
        if name == "torch.load" and not _is(arguments.get("weights_only"), True):
            names_found.append(name)
        if name in ("np.load", "numpy.load") or (
            "allow_pickle" in arguments and not _is(arguments["allow_pickle"], False)
        ):
            names_found.append(f"{name} allow_pickle")
        if name == "yaml.load":
            names_found.append(name)
    return names_found


def test_no_module_of_the_package_can_unpickle_or_evaluate() -> None:
    found = {
        (path.relative_to(SOURCES).as_posix(), what)
        for path in SOURCES.rglob("*.py")
        for what in unsafe(ast.parse(path.read_text()))
    }
    assert found == EXCEPTIONS


@pytest.mark.parametrize(
    "code",
    [
        "import pickle", "from pickle import loads", "import dill as p", "from joblib import load",
        "torch.load(f)", "torch.load(f, weights_only=False)", "np.load(f)", "NpzFile(f, allow_pickle=True)",
        "yaml.load(f, Loader=yaml.Loader)", "yaml.unsafe_load(f)", "pd.read_pickle(f)", "eval(x)", "exec(x)",
    ],
)  # fmt: skip
def test_unsafe_code_is_found(code: str) -> None:
    assert unsafe(ast.parse(code))


@pytest.mark.parametrize(
    "code",
    ["torch.load(f, weights_only=True)", "NpzFile(f, allow_pickle=False)", "yaml.safe_load(f)", "m.eval()"],
)
def test_safe_code_is_not_reported(code: str) -> None:
    assert not unsafe(ast.parse(code))
