"""Dependencies of a node's function: its own code, this package's modules behind it, and other packages.

They are read from the source, without running it. Only the syntax tree without docstrings and positions
counts, so a changed comment, docstring or line break changes nothing.

Each module is read once per process, before a node runs. ``unsure`` and ``edited`` find the modules whose
file may have been another one when Python imported it.
"""

from __future__ import annotations

import ast
import copy
import hashlib
import importlib
import inspect
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache, partial
from importlib.machinery import ModuleSpec, PathFinder
from importlib.metadata import PackageNotFoundError, distributions, packages_distributions, version
from importlib.util import find_spec, resolve_name
from itertools import chain
from pathlib import Path
from typing import Any, TypeGuard

from cvl_pipeline.imports import imported_at, library_folders

PACKAGES = (
    "gymnasium", "gymnasium_robotics", "lightning", "matplotlib", "metaworld", "mujoco", "numpy", "pandas",
    "optuna", "plotly", "scipy", "torch",
)  # fmt: skip
"""Packages whose version may change a result: those that compute, simulate, search and plot.

Not those that only read and write files (whose content is checked), validate, log or display. Not Python
either: nothing here depends on its version.
"""

PHYSICS = dict.fromkeys(("gymnasium", "gymnasium_robotics", "metaworld"), "mujoco")
"""The package that a simulator computes with, whose version counts with the simulator's."""

FACADE = "cvl_pipeline.api"
"""A module that imports everything. Of its functions, only those that are named count."""
OWN = __name__.partition(".")[0]
"""This package."""


@dataclass(frozen=True)
class Code:
    """Dependencies of a function.

    Attributes:
        hashes: of its own part of its module, under ``module:function``, and of every module behind it.
        packages: versions of the PACKAGES that these import, and of every package that the user's code imports.
        modules: every module that was read for them, the user's included.
    """

    hashes: dict[str, str]
    packages: dict[str, str]
    modules: frozenset[str] = field(default=frozenset(), compare=False)

    def __or__(self, other: Code) -> Code:
        """Return the dependencies of both."""
        return Code(
            {**other.hashes, **self.hashes},
            {**other.packages, **self.packages},
            self.modules | other.modules,
        )


@cache  # per process: Python also keeps imported modules when their files change
def code_of(function: Callable[..., Any]) -> Code:
    """Collect the dependencies of a function.

    Its own part of its module is its definition and every definition there that this names. The modules that
    these import count whole, with all that they import in turn, inside functions too, but not below
    ``if TYPE_CHECKING``. Functions of FACADE count like the function itself. If the function is not defined
    at the top of its module, the whole module counts.
    """
    while isinstance(function, partial):
        function = function.func
    function = inspect.unwrap(function)
    module, name = function.__module__, function.__name__
    if not any(name in _bound(statement) for statement in _tree(module).body):
        modules, packages = _closure([module], module)
        return Code(_hashes(modules), _versions(packages), frozenset(modules))
    parts: dict[str, str] = {}
    imported: set[str] = set()
    waiting = [(module, name)]
    while waiting:
        current, name = waiting.pop()
        if f"{current}:{name}" in parts:
            continue
        parts[f"{current}:{name}"], names = _part(current, name)
        of_facade = {full for full in names if full.rpartition(".")[0] == FACADE}
        waiting += [(FACADE, full.rpartition(".")[2]) for full in sorted(of_facade)]
        imported |= names - of_facade
    modules, packages = _closure(imported, module)
    read = modules | {part.partition(":")[0] for part in parts}
    return Code({**parts, **_hashes(modules)}, _versions(packages), frozenset(read))


@cache
def code_of_module(module: str) -> Code:
    """Return everything in this package that a module depends on, and the packages behind it.

    A module of the user's own, and the user's modules that it imports, count as a source (see ``source_of``).
    """
    modules, packages = _closure([module], module)
    if module.partition(".")[0] == OWN:
        return Code(_hashes(modules), _versions(packages), frozenset(modules))
    imported = {name for part in modules for name in _imported(part) if name.partition(".")[0] == OWN}
    behind, others = _closure(imported, OWN)
    versions = _versions(others) | {name: _version(name) for name in sorted(packages) if name != OWN}
    return Code(_hashes(behind), versions, frozenset(modules | behind))


@cache
def source_of(module: str) -> str | None:
    """Hash of a user's module and of the modules outside of installed packages that it imports.

    None if it does not exist.
    """
    if _file(module) is None:
        return None
    modules, _ = _closure([module], module)
    return _digest(_hashes(modules).items())


def unsure(modules: Iterable[str]) -> frozenset[str]:
    """Return the modules that this process may import, or has imported, from another file than was read.

    The others are imported, and their files are the ones that were read: later edits do not matter to this process.
    """
    return frozenset(name for name in modules if name not in sys.modules or _changed(name))


def edited(modules: Iterable[str]) -> list[str]:
    """Return the modules whose files were written after they were read, or between their import and that."""
    return sorted(name for name in modules if _changed(name))


def import_own(modules: Iterable[str]) -> None:
    """Import those of the modules that belong to this package, so that later edits do not matter."""
    for name in sorted(modules):
        if name.partition(".")[0] == OWN:
            with suppress(Exception):  # the node reports it, if it needs the module
                importlib.import_module(name)


def _part(module: str, name: str) -> tuple[str, set[str]]:
    """Hash of the statements of its module that ``name`` needs, and the full names that they import."""
    tree = _tree(module)
    definitions: dict[str, list[ast.stmt]] = {}
    imports: dict[str, str] = {}
    # A statement that binds no name (a loop, a condition) may change anything, so it always counts.
    needed = [statement for statement in _run(tree.body) if not list(_bound(statement))]
    for statement in [*tree.body, *_for_types(tree.body)]:
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
        # A node's annotations name the classes of its inputs, which may be imported for type checkers alone. The
        # facade's functions pass theirs on.
        trees = map(_unannotated, needed) if module == FACADE else needed
        used = set().union(*map(_names, trees))
        waiting += sorted(used - seen)
        seen |= used
    texts = [_canonical(statement) for statement in tree.body if statement in needed]
    inside = {target for part in needed for _, target in _imports(part, module)}
    return _digest([*imported.items(), *enumerate(texts)]), {*imported.values(), *inside}


def _closure(names: Iterable[str], within: str) -> tuple[set[str], set[str]]:
    """Modules that the names lead to, and the packages that these import.

    Modules of the package of ``within`` are followed. If it is the user's, so are modules of all packages that
    are not installed.
    """
    root = within.partition(".")[0]
    modules: set[str] = set()
    packages: set[str] = set()
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        package = name.partition(".")[0]
        if package != root and (OWN in (root, package) or _installed(package)):
            if not _standard(package):
                packages.add(package)
            continue
        module = _module(name)
        if module is None or module in modules:
            continue
        modules.add(module)
        waiting += _imported(module)
        # Its parent packages are imported too. The root of this package imports nothing by itself.
        parent = module.rpartition(".")[0]
        waiting += [parent] if parent not in ("", OWN) else []
    return modules, packages


def _module(name: str) -> str | None:
    """The module that a full name is, or belongs to."""
    while name and _file(name) is None:
        name = name.rpartition(".")[0]
    return name or None


def _hashes(modules: Iterable[str]) -> dict[str, str]:
    hashes = {module: _hash(module) for module in sorted(modules)}
    return {module: value for module, value in hashes.items() if value}


@cache
def _hash(module: str) -> str:
    """Hash of a module's code; empty if it has none, like most packages' ``__init__``."""
    parsed = _parsed(module)
    text = repr(_read(module)[0]) if parsed is None else _canonical(parsed)
    return "" if text in ("b''", "Module()") else _digest([(module, text)])


@cache
def _imported(module: str) -> list[str]:
    tree = _tree(module)
    return [*(target for _, target in _imports(tree, module)), *_entry_points(tree)]


def _entry_points(tree: ast.AST) -> Iterator[str]:
    """Modules of the environments that a tree registers with Gymnasium, ``entry_point="module:Class"``."""
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.keyword)
            and node.arg == "entry_point"
            and isinstance(node.value, ast.Constant)
        ):
            module, colon, _ = str(node.value.value).partition(":")
            if colon:
                yield module


def _versions(packages: Iterable[str]) -> dict[str, str]:
    names = {*packages, *(PHYSICS[name] for name in packages if name in PHYSICS)}
    return {name: _version(name) for name in sorted(names & set(PACKAGES))}


@cache
def _version(package: str) -> str:
    with suppress(PackageNotFoundError):
        return version(package)
    # The names of modules may differ from the name of their distribution.
    names = sorted(set(packages_distributions().get(package, ())))
    return ", ".join(f"{name} {version(name)}" for name in names) or "not installed"


def _standard(package: str) -> bool:
    """Whether a package belongs to Python."""
    return package in sys.stdlib_module_names or package in sys.builtin_module_names


@cache
def _installed(package: str) -> bool:
    """Whether a package belongs to Python or to an installed distribution, or does not exist.

    A distribution in editable mode counts as the user's own code: its files are outside of site-packages.
    """
    spec = _spec(package)
    places = [Path(place) for place in (spec and spec.submodule_search_locations) or []]
    if spec is not None and not places and spec.has_location and spec.origin:
        places = [Path(spec.origin)]
    return not any(_is_users(place) for place in places)


def _is_users(place: Path) -> bool:
    """Whether a module or the folder of a package is outside of the standard library and of installed packages."""
    folder = place.absolute().parent
    if folder in library_folders():
        return False
    # ``pip install --target`` makes a folder like site-packages.
    names = {
        line.partition(",")[0].partition("/")[0]
        for distribution in distributions(path=[str(folder)])
        for line in (distribution.read_text("RECORD") or "").splitlines()
    }
    return place.name not in names


@cache
def _spec(module: str) -> ModuleSpec | None:
    """Locate a module as Python would, but without importing the packages that it is in."""
    parent, _, _ = module.rpartition(".")
    if not parent:
        try:
            return find_spec(module)
        except ValueError:  # __main__ of an interactive session
            return None
    package = _spec(parent)
    places = package.submodule_search_locations if package is not None else None
    return PathFinder.find_spec(module, list(places)) if places else None


@cache
def _file(module: str) -> Path | None:
    """File of a module: its source, or a compiled module; None if there is none."""
    spec = _spec(module)
    path = Path(spec.origin) if spec is not None and spec.has_location and spec.origin else None
    return path if path is not None and path.is_file() else None


def _state(path: Path) -> tuple[int, ...] | None:
    """Numbers that change whenever a file is written; nobody can set the last one back."""
    try:
        state = path.stat()
    except OSError:
        return None
    return state.st_size, state.st_mtime_ns, state.st_ctime_ns


@cache
def _read(module: str) -> tuple[bytes, tuple[int, ...] | None]:
    """Content of a module's file and its state; no state if the module may have been imported from another one."""
    path = _file(module)
    if path is None:
        return b"", None
    state = _state(path)
    content = path.read_bytes()
    if state != _state(path):
        return content, None
    old = module not in sys.modules or (state is not None and state[-1] <= imported_at(module) * 1e9)
    return content, state if old else None


def _changed(module: str) -> bool:
    path, state = _file(module), _read(module)[1]
    return path is not None and (state is None or _state(path) != state)


@cache
def _parsed(module: str) -> ast.Module | None:
    """Syntax tree of a module; None if it is compiled, or faulty, which its import reports."""
    path = _file(module)
    if path is not None and path.suffix != ".py":
        return None
    try:
        return ast.parse(_read(module)[0])
    except (SyntaxError, ValueError, RecursionError):
        return None


def _tree(module: str) -> ast.Module:
    return _parsed(module) or ast.Module([], [])


def _is_for_types(statement: ast.stmt) -> TypeGuard[ast.If]:
    """Whether a statement is ``if TYPE_CHECKING``."""
    return isinstance(statement, ast.If) and ast.unparse(statement.test).endswith("TYPE_CHECKING")


def _for_types(statements: Iterable[ast.stmt]) -> Iterator[ast.stmt]:
    """Statements directly below ``if TYPE_CHECKING``."""
    return chain.from_iterable(statement.body for statement in statements if _is_for_types(statement))


def _run(statements: Iterable[ast.stmt]) -> Iterator[ast.stmt]:
    """Statements that are executed: no docstrings, and nothing below ``if TYPE_CHECKING``."""
    for statement in statements:
        if _is_for_types(statement):
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


def _unannotated(tree: ast.stmt) -> ast.stmt:
    """A copy of a tree in which functions have no annotations."""
    tree = copy.deepcopy(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.arg):
            node.annotation = None
        elif isinstance(node, ast.FunctionDef):
            node.returns = None
    return tree


def _names(node: ast.AST) -> set[str]:
    """Names that may belong to the module: not a function's own parameters."""
    if isinstance(node, ast.Name):
        return {node.id}
    names = set().union(*map(_names, ast.iter_child_nodes(node)))
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
        own = {argument.arg for argument in ast.walk(node.args) if isinstance(argument, ast.arg)}
        outside = (node.args, *([] if isinstance(node, ast.Lambda) else [*node.decorator_list, node.returns]))
        return (names - own) | set().union(*(_names(part) for part in outside if part is not None))
    return names


def _imports(tree: ast.AST, module: str) -> Iterator[tuple[str, str]]:
    """Name and full name of every import in a tree that may be executed."""
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
        try:
            base = resolve_name("." * statement.level + (statement.module or ""), package) + "."
        except ImportError:  # beyond the top-level package: the import itself reports it
            return
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
    """A syntax tree as text; the text of ``ast.dump`` differs between versions of Python."""
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
