"""What a node's function depends on: its own code, this package's modules behind it, and other packages.

Found by reading the source, not by running it. What counts is the syntax tree without docstrings and
positions, so a changed comment, docstring or line break changes nothing.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec, resolve_name
from pathlib import Path
from typing import Any

PACKAGES = (
    "gymnasium", "gymnasium_robotics", "lightning", "matplotlib", "metaworld", "mujoco", "numpy", "pandas",
    "optuna", "plotly", "scipy", "torch",
)  # fmt: skip
"""Packages whose version may change a result: those that compute, simulate, search and draw.

Not those that only read and write files, whose content is checked, or check, log and show. Not Python either:
nothing here depends on its version.
"""


@dataclass(frozen=True)
class Code:
    """What a function depends on.

    Attributes:
        hashes: of its own part of its module, under ``module:function``, and of every module behind it.
        packages: versions of those of PACKAGES that these import.
    """

    hashes: dict[str, str]
    packages: dict[str, str]


@cache  # for the life of the process, as Python keeps what it has imported, whatever becomes of the files
def code_of(function: Callable[..., Any]) -> Code:
    """What a function depends on.

    Its own part of the module is its definition and every definition there that this names; the modules that
    they import count whole, with all that these import, inside functions too and ``if TYPE_CHECKING`` left
    out. Of a function that is not defined at the top of its module, the module counts whole too.
    """
    while isinstance(function, partial):
        function = function.func
    function = inspect.unwrap(function)
    module, name = function.__module__, function.__name__
    if not any(name in _bound(statement) for statement in _tree(module).body):
        modules, packages = _closure([module], module)
        return Code(_hashes(modules), _versions(packages))
    own, imported = _part(module, name)
    modules, packages = _closure(imported, module)
    return Code({f"{module}:{name}": own, **_hashes(modules)}, _versions(packages))


@cache
def source_of(module: str) -> str | None:
    """Hash of a module of the user's own and what it imports of its package; None if it is not there."""
    if _file(module) is None:
        return None
    modules, _ = _closure([module], module)
    return _digest(_hashes(modules).items())


def _part(module: str, name: str) -> tuple[str, set[str]]:
    """Hash of what ``name`` needs of its module, and the full names that this imports."""
    tree = _tree(module)
    definitions: dict[str, list[ast.stmt]] = {}
    imports: dict[str, str] = {}
    # What names nothing (a loop, a condition) may change anything: it always counts.
    needed = [statement for statement in _run(tree.body) if not list(_bound(statement))]
    for statement in tree.body:
        if isinstance(statement, ast.Import | ast.ImportFrom):
            imports |= dict(_aliases(statement, module))
            continue
        for bound in _bound(statement):
            definitions.setdefault(bound, []).append(statement)
    imported: dict[str, str] = {}
    waiting, seen = [name], {name}
    while waiting:
        current = waiting.pop()
        if current in imports:
            imported[current] = imports[current]
        for statement in definitions.get(current, []):
            if statement not in needed:
                needed.append(statement)
        used = set().union(*map(_names, needed))
        waiting += sorted(used - seen)
        seen |= used
    texts = [_canonical(statement) for statement in tree.body if statement in needed]
    inside = {target for part in needed for _, target in _imports(part, module)}
    return _digest([*imported.items(), *enumerate(texts)]), {*imported.values(), *inside}


def _closure(names: Iterable[str], within: str) -> tuple[set[str], set[str]]:
    """The modules of the package of ``within`` that names lead to, and the packages that they import."""
    root = within.partition(".")[0]
    modules: set[str] = set()
    packages: set[str] = set()
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        if name.partition(".")[0] != root:
            packages.add(name.partition(".")[0])
            continue
        module = _module(name)
        if module is None or module in modules:
            continue
        modules.add(module)
        waiting += _imported(module)
        # Packages on the way to it are imported too; but for the root, which holds no more than the version.
        parent = module.rpartition(".")[0]
        waiting += [parent] if "." in parent else []
    return modules, packages


def _module(name: str) -> str | None:
    """The module that a full name is, or is in."""
    while name and _file(name) is None:
        name = name.rpartition(".")[0]
    return name or None


def _hashes(modules: Iterable[str]) -> dict[str, str]:
    hashes = {module: _hash(module) for module in sorted(modules)}
    return {module: value for module, value in hashes.items() if value}


@cache
def _hash(module: str) -> str:
    """Of its code; nothing if it has none, as most packages' ``__init__``."""
    text = _canonical(_tree(module))
    return "" if text == "Module()" else _digest([(module, text)])


@cache
def _imported(module: str) -> list[str]:
    return [target for _, target in _imports(_tree(module), module)]


def _versions(packages: Iterable[str]) -> dict[str, str]:
    return {name: _version(name) for name in sorted(set(packages) & set(PACKAGES))}


@cache
def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


@cache
def _file(module: str) -> Path | None:
    """The source of a module, found without importing it; None if there is none."""
    root, *rest = module.split(".")
    try:
        spec = find_spec(root)
    except ValueError:  # __main__ of an interactive session
        return None
    if spec is None:
        return None
    if not rest and spec.origin and spec.origin.endswith(".py"):
        return Path(spec.origin)
    for folder in spec.submodule_search_locations or []:
        path = Path(folder, *rest)
        for file in (path.with_suffix(".py"), path / "__init__.py"):
            if file.is_file():
                return file
    return None


@cache
def _tree(module: str) -> ast.Module:
    path = _file(module)
    return ast.parse(path.read_bytes() if path else b"")


def _run(statements: Iterable[ast.stmt]) -> Iterator[ast.stmt]:
    """Those that are executed: neither docstrings nor what stands below ``if TYPE_CHECKING``."""
    for statement in statements:
        if isinstance(statement, ast.If) and ast.unparse(statement.test).endswith("TYPE_CHECKING"):
            yield from statement.orelse
        elif not _is_text(statement):
            yield statement


def _bound(statement: ast.stmt) -> Iterator[str]:
    """Names that a definition, an assignment or an import gives a value."""
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        yield statement.name
    elif isinstance(statement, ast.Assign | ast.AnnAssign):
        targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
        yield from (node.id for target in targets for node in ast.walk(target) if isinstance(node, ast.Name))
    elif isinstance(statement, ast.Import | ast.ImportFrom):
        yield from (alias.asname or alias.name for alias in statement.names)


def _names(node: ast.AST) -> set[str]:
    """Names that may be those of the module: not a function's own parameters."""
    if isinstance(node, ast.Name):
        return {node.id}
    names = set().union(*map(_names, ast.iter_child_nodes(node)))
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
        own = {argument.arg for argument in ast.walk(node.args) if isinstance(argument, ast.arg)}
        outside = (node.args, *([] if isinstance(node, ast.Lambda) else [*node.decorator_list, node.returns]))
        return (names - own) | set().union(*(_names(part) for part in outside if part is not None))
    return names


def _imports(tree: ast.AST, module: str) -> Iterator[tuple[str, str]]:
    """Name and full name of everything imported anywhere in a tree that may be executed."""
    if isinstance(tree, ast.Import | ast.ImportFrom):
        yield from _aliases(tree, module)
        return
    for _, value in ast.iter_fields(tree):
        parts = value if isinstance(value, list) else [value]
        statements = [part for part in parts if isinstance(part, ast.stmt)]
        others = [part for part in parts if isinstance(part, ast.AST) and not isinstance(part, ast.stmt)]
        for part in (*_run(statements), *others):
            yield from _imports(part, module)


def _aliases(statement: ast.Import | ast.ImportFrom, module: str) -> Iterator[tuple[str, str]]:
    base = ""
    if isinstance(statement, ast.ImportFrom):
        if statement.module == "__future__":
            return
        path = _file(module)
        package = module if path and path.name == "__init__.py" else module.rpartition(".")[0]
        base = resolve_name("." * statement.level + (statement.module or ""), package) + "."
    for alias in statement.names:
        name = alias.asname or (alias.name if base else alias.name.partition(".")[0])
        yield name, f"{base}{alias.name}"


def _is_text(node: Any) -> bool:
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )


def _canonical(node: Any) -> str:
    """A syntax tree as text; of ``ast.dump``, the same tree has another one in each version of Python."""
    if isinstance(node, list):
        return ",".join(_canonical(part) for part in node if not _is_text(part))
    if not isinstance(node, ast.AST):
        return repr(node)
    fields = (
        f"{name}={_canonical(value)}"
        for name, value in ast.iter_fields(node)
        if value is not None and value != [] and name not in ("kind", "type_comment")
    )
    return f"{type(node).__name__}({';'.join(text for text in fields if not text.endswith('='))})"


def _digest(parts: Iterable[tuple[Any, Any]]) -> str:
    return hashlib.sha256(repr(sorted(parts, key=repr)).encode()).hexdigest()[:16]
