"""Task definitions of the installed package ``d4rl``, read as text because it cannot be imported."""

from __future__ import annotations

import ast
import importlib.util
import io
import shutil
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import numpy as np

from cvl_pipeline.imports import package_file


def package_path(path: str) -> Path:
    file = package_file("d4rl", path)
    assert file is not None
    return file


def definitions(path: str, **names: Any) -> dict[str, Any]:
    """Constants and functions of a module, without imports and classes; ``names`` replace these."""
    tree = ast.parse(package_path(path).read_text())
    kept: list[ast.stmt] = [node for node in tree.body if isinstance(node, ast.Assign | ast.FunctionDef)]
    names = {"np": np, **names}
    exec(compile(ast.Module(kept, []), path, "exec"), names)
    return names


def class_constants(path: str, name: str) -> dict[str, Any]:
    """Assignments in the body of a class."""
    tree = ast.parse(package_path(path).read_text())
    body = next(node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name)
    values: dict[str, Any] = {}
    for node in body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            values[node.targets[0].id] = ast.literal_eval(node.value)
    return values


def registrations(path: str) -> dict[str, dict[str, Any]]:
    """Arguments of Gym's ``register`` by id, flat; a qualified name becomes its last part."""
    found: dict[str, dict[str, Any]] = {}
    for call in ast.walk(ast.parse(package_path(path).read_text())):
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "register":
            values = {keyword.arg or "": keyword.value for keyword in call.keywords}
            inner = values.pop("kwargs")
            assert isinstance(inner, ast.Dict)
            pairs = zip(inner.keys, inner.values, strict=True)
            values |= {ast.literal_eval(key): value for key, value in pairs if key}
            flat = {name: _value(value) for name, value in values.items()}
            found[flat.pop("id")] = flat
    return found


def _value(node: ast.expr) -> Any:
    if isinstance(node, ast.Name):
        return node.id
    return node.attr if isinstance(node, ast.Attribute) else ast.literal_eval(node)


def point_maze_xml(maze: str) -> str:
    """D4RL's model of a maze2d map."""
    spec = importlib.util.spec_from_file_location("dynamic_mjc", package_path("pointmaze/dynamic_mjc.py"))
    assert spec is not None
    assert spec.loader is not None
    builder = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(builder)
    module = definitions("pointmaze/maze_model.py", MJCModel=builder.MJCModel)
    text = io.StringIO()
    module["point_maze"](module[maze]).root.write(text)
    return text.getvalue()


def ant_maze_xml(maze: str, size: float) -> str:
    """D4RL's ant in one of its mazes, with walls placed as in ``MazeEnv``."""
    rows = definitions("locomotion/maze_env.py")[maze]
    cells = {(i, j): cell for i, row in enumerate(rows) for j, cell in enumerate(row)}
    (start,) = (place for place, cell in cells.items() if cell == "r")
    model = ET.parse(package_path("locomotion/assets/ant.xml")).getroot()
    world = model.find("worldbody")
    assert world is not None
    for (i, j), cell in cells.items():
        if cell == 1:
            ET.SubElement(
                world,
                "geom",
                type="box",
                pos=f"{j * size - start[1] * size} {i * size - start[0] * size} {size / 4.0}",
                size=f"{size / 2.0} {size / 2.0} {size / 4.0}",
                contype="1",
                conaffinity="1",
            )
    return ET.tostring(model, encoding="unicode")


def kitchen_model(folder: Path) -> Path:
    """D4RL's model of the kitchen, in a copy for current MuJoCo, which needs a root in its defaults."""
    shutil.copytree(package_path("kitchen/__init__.py").parent, folder / "kitchen")
    kettle = folder / "kitchen/adept_models/kitchen/assets/kettle_asset.xml"
    text = kettle.read_text().replace('<default class="kettle">', '<default><default class="kettle">')
    head, tail = text.rsplit("</default>", 1)
    kettle.write_text(f"{head}</default></default>{tail}")
    return folder / "kitchen/adept_envs/franka/assets/franka_kitchen_jntpos_act_ab.xml"
