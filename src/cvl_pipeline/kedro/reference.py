"""References that are generated: of parameters and the JSON Schema for editors, from the models; of the commands."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_origin

import click
from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from cvl_pipeline.io.storage import write_atomically
from cvl_pipeline.kedro.parameters import RunParameters
from cvl_pipeline.schema import choice_of, group_of, is_operational

PAGE = Path("docs/parameters.md")
SCHEMA = Path("conf/parameters.schema.json")
COMMANDS = Path("docs/commands.md")
BOUNDS = {Ge: (">=", "ge"), Gt: (">", "gt"), Le: ("<=", "le"), Lt: ("<", "lt")}


def write_reference(project: Path) -> list[Path]:
    """Write the three files of a project; returns their paths."""
    texts = {PAGE: parameter_page(), SCHEMA: parameter_schema(), COMMANDS: command_page()}
    for path, text in texts.items():
        write_atomically(project / path, lambda partial, text=text: partial.write_text(text))  # type: ignore[misc]
    return [project / path for path in texts]


def command_page() -> str:
    """Return the page of all commands of this project, each with its arguments and options."""
    from cvl_pipeline.kedro.cli import cli  # it imports this module when it writes

    lines = [
        "# Commands",
        "",
        "`kedro parameters write` generates this page from the commands; do not edit it. `kedro <command> --help`",
        "shows the same in the terminal. Kedro's own commands, such as `kedro registry list`, and those of its",
        "plug-ins, such as `kedro viz`, exist too. A mistake of yours ends a command with one line and status 1 or 2,",
        "SIGTERM with status 143.",
    ]
    for name, command in _leaves(cli, "kedro"):
        context = click.Context(command, info_name=name)
        arguments = [
            part.make_metavar(context) for part in command.params if isinstance(part, click.Argument)
        ]
        rows = [part.get_help_record(context) for part in command.params if isinstance(part, click.Option)]
        lines += ["", f"## {' '.join([name, *arguments])}", "", *_paragraphs(command.help or "")]
        if any(rows):
            lines += ["", "| option | meaning |", "|---|---|"]
            lines += [f"| `{_cell(row[0])}` | {_cell(row[1])} |" for row in rows if row]
    return "\n".join(lines) + "\n"


def _leaves(command: click.Command, name: str) -> Iterator[tuple[str, click.Command]]:
    """Yield every command below a group, with its full name."""
    if not isinstance(command, click.Group):
        yield name, command
        return
    for part, child in command.commands.items():
        yield from _leaves(child, f"{name} {part}")


def _paragraphs(text: str) -> list[str]:
    """Return the text of a docstring as lines of Markdown."""
    paragraphs = [" ".join(part.split()).replace("``", "`") for part in text.split("\n\n")]
    return "\n\n".join(paragraphs).splitlines()


def _cell(text: str) -> str:
    """Return the text for a cell of a table."""
    return " ".join(text.split()).replace("|", "\\|").replace("__", "\\_\\_")


def parameter_schema() -> str:
    """Return the JSON Schema of a parameter file, in which every field is optional."""
    schema = RunParameters.model_json_schema()
    schema["title"] = "Parameters of cvl-pipeline"
    return json.dumps(_without_required(schema), indent=1) + "\n"


def _without_required(schema: Any) -> Any:
    """Drop ``required`` everywhere: a file is one of several layers."""
    if isinstance(schema, dict):
        return {
            key: _without_required(value)
            for key, value in schema.items()
            if not (key == "required" and isinstance(value, list))
        }
    return [_without_required(part) for part in schema] if isinstance(schema, list) else schema


def parameter_page() -> str:
    """Return the reference page, one table per group of parameters."""
    lines = [
        "# Parameters",
        "",
        "Every parameter, its default and its meaning. `kedro parameters write` generates this page from the models in",
        "`src/`; do not edit it.",
        "",
        "Set a parameter in `conf/<environment>/parameters.yml`, or for one run with",
        "`kedro run --params group.field=value`. A *choice* decides which other fields its group has: for example,",
        "`beta` exists only with `policy_extraction.objective=awr`. `module:Class` chooses a class of your own.",
        "Fields marked † change no result; a run with other values of them reuses all artifacts. Except `tuned`, which "
        "trains with other parameters, `data`, whose folder is another one, and the path of a log, if its content "
        "differs.",
        "",
        *_section(RunParameters, "", {}),
    ]
    return "\n".join(lines).rstrip() + "\n"


def _section(model: type[BaseModel], prefix: str, explained: dict[str, str]) -> Iterator[str]:
    """Yield the table of a model's own fields, then the sections of the models below.

    Args:
        model: of the section.
        prefix: of the names of its fields.
        explained: by the kind of a choice, the first field that has one; its alternatives are not listed again.
    """
    yield from _table(model, prefix, [name for name in model.model_fields if not _is_group(model, name)])
    for name, info in model.model_fields.items():
        if not _is_group(model, name):
            continue
        full = f"{prefix}{name}"
        level = "#" * min(6, 2 + full.count("."))
        mark = " †" if is_operational(model, name) else ""
        yield f"{level} {full}{mark}"
        yield ""
        yield info.description or ""
        yield ""
        if info.default is None:
            yield f"`{full}` is `null` by default. Otherwise it has these fields:"
            yield ""
        choice = choice_of(model, name)
        if choice is None:
            group = group_of(model, name)
            assert group is not None
            yield from _section(group, f"{full}.", explained)
            continue
        registry = choice.registry
        start = f"{full}.<name>." if choice.mapping else f"{full}."
        models = {name: registry.parameters(name) for name in registry.names}
        explained.setdefault(registry.kind, full)
        shared, without = _shared(models, registry.field, but_one=choice.mapping)
        if shared:
            yield f"Every {registry.kind}{f' but `{without}`' if without else ''} has:"
            yield ""
            first = next(model for name, model in models.items() if name != without)
            yield from _rows(first, start, shared, explained)
        for alternative, parameters in models.items():
            default = " (default)" if alternative == registry.names[0] and not choice.mapping else ""
            description = parameters.model_fields[registry.field].description or ""
            yield f"**`{start}{registry.field}={alternative}`**{default}: {description}"
            yield ""
            own = [name for name in parameters.model_fields if name not in (registry.field, *shared)]
            yield from _rows(parameters, start, own, explained)


def _shared(models: Mapping[str, type[BaseModel]], tag: str, but_one: bool) -> tuple[list[str], str | None]:
    """Return the fields that all alternatives have alike; or, if there are none, all but one, and which that is."""
    for without in (None, *models) if but_one else (None,):
        first, *others = (model for name, model in models.items() if name != without)
        fields = [
            name
            for name, info in first.model_fields.items()
            if name != tag
            and all(
                name in other.model_fields
                and (other.model_fields[name].description, str(other.model_fields[name].default))
                == (info.description, str(info.default))
                for other in others
            )
        ]
        if fields:
            return fields, without
    return [], None


def _rows(model: type[BaseModel], prefix: str, names: list[str], explained: dict[str, str]) -> Iterator[str]:
    """Yield the table of some fields of an alternative, and the groups among them in short."""
    yield from _table(model, prefix, [name for name in names if not _is_group(model, name)])
    for name in names:
        if _is_group(model, name):
            yield from _nested(model, name, prefix, explained)


def _nested(model: type[BaseModel], field: str, prefix: str, explained: dict[str, str]) -> Iterator[str]:
    """Yield a group within an alternative, in short."""
    choice = choice_of(model, field)
    info = model.model_fields[field]
    if choice is None:
        group = group_of(model, field)
        assert group is not None
        yield f"`{prefix}{field}`: {info.description} Its fields:"
        yield ""
        yield from _table(group, f"{prefix}{field}.", list(group.model_fields))
        return
    start = f"{prefix}{field}.<name>." if choice.mapping else f"{prefix}{field}."
    names = ", ".join(f"`{name}`" for name in choice.registry.names)
    known = explained.setdefault(choice.registry.kind, f"{prefix}{field}")
    if known != f"{prefix}{field}":
        yield f"`{prefix}{field}`: {info.description} As `{known}`, with the same fields."
        yield ""
        return
    yield f"`{prefix}{field}`: {info.description} One of {names}, by `{start}{choice.registry.field}`."
    yield ""
    for name in () if choice.mapping else choice.registry.names:
        parameters = choice.registry.parameters(name)
        own = [part for part in parameters.model_fields if part != choice.registry.field]
        if own:
            yield f"With `{name}`:"
            yield ""
            yield from _table(parameters, f"{prefix}{field}.", own)


def _is_group(model: type[BaseModel], name: str) -> bool:
    return choice_of(model, name) is not None or group_of(model, name) is not None


def _table(model: type[BaseModel], prefix: str, names: list[str]) -> Iterator[str]:
    """Yield the table of some fields; nothing if there are none."""
    if not names:
        return
    yield "| parameter | type | default | meaning |"
    yield "|---|---|---|---|"
    for name in names:
        info = model.model_fields[name]
        mark = " †" if is_operational(model, name) else ""
        cells = (_type(info), _default(info), (info.description or "").replace("|", "\\|"))
        yield f"| `{prefix}{name}`{mark} | {' | '.join(cells)} |"
    yield ""


def _default(info: FieldInfo) -> str:
    if info.default is PydanticUndefined:
        return "required"
    value = info.default
    if isinstance(value, dict) and any(isinstance(part, BaseModel) for part in value.values()):
        return "see conf/base"
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json")
    return f"`{json.dumps(value)}`".replace("|", "\\|")


def _type(info: FieldInfo) -> str:
    bounds = " and ".join(
        f"{sign} {getattr(part, name):.10g}"
        for part in info.metadata
        for kind, (sign, name) in BOUNDS.items()
        if isinstance(part, kind)
    )
    return f"{_name(info.annotation)}{' ' + bounds if bounds else ''}"


def _name(annotation: Any) -> str:
    """Return a type as a reader of YAML knows it."""
    arguments = get_args(annotation)
    if annotation is NoneType:
        return "null"
    if isinstance(annotation, type) and not arguments:
        return {"str": "text", "float": "number", "int": "integer", "bool": "true or false"}.get(
            annotation.__name__, annotation.__name__
        )
    if get_origin(annotation) is tuple:
        return f"list of {_name(arguments[0])}"
    if get_origin(annotation) is dict:
        return "mapping"
    if "Literal" in str(get_origin(annotation)):
        return ", ".join(f"`{value}`" for value in arguments)
    if "Annotated" in str(annotation) and arguments:
        return _name(arguments[0])
    return " or ".join(_name(part) for part in arguments) or str(annotation)
