"""Exported folders made by hand: a few ONNX nodes and a contract, without torch."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from cvl_pipeline.deploy.runner import (
    ACTION,
    CONTRACT,
    EXAMPLES,
    FORMAT,
    POLICY_FILE,
    VALUE,
    VALUE_FILE,
    checksum,
    digest,
)

WEIGHTS = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, -1.0]], np.float32)
"""The policy is observation @ WEIGHTS, and may leave the bounds of -1 and 1."""


def _info(name: str, kind: int, *shape: int | str) -> Any:
    return helper.make_tensor_value_info(name, kind, shape)


def model(nodes: Sequence[Any], inputs: Sequence[Any], outputs: Sequence[Any]) -> bytes:
    weights = numpy_helper.from_array(WEIGHTS, "weights")
    graph = helper.make_graph(nodes, "graph", inputs, outputs, [weights])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(made)
    content: bytes = made.SerializeToString()
    return content


def linear() -> bytes:
    """The action is state @ WEIGHTS."""
    return model(
        [helper.make_node("MatMul", ["state", "weights"], [ACTION])],
        [_info("state", TensorProto.FLOAT, "batch", 3)],
        [_info(ACTION, TensorProto.FLOAT, "batch", 2)],
    )


def square_root() -> bytes:
    """No number for negative states."""
    return model(
        [helper.make_node("MatMul", ["state", "weights"], ["x"]), helper.make_node("Sqrt", ["x"], [ACTION])],
        [_info("state", TensorProto.FLOAT, "batch", 3)],
        [_info(ACTION, TensorProto.FLOAT, "batch", 2)],
    )


def choice() -> bytes:
    """The index of the larger one of two numbers."""
    return model(
        [
            helper.make_node("MatMul", ["state", "weights"], ["x"]),
            helper.make_node("ArgMax", ["x"], [ACTION], axis=1, keepdims=0),
        ],
        [_info("state", TensorProto.FLOAT, "batch", 3)],
        [_info(ACTION, TensorProto.INT64, "batch")],
    )


def with_image() -> bytes:
    """The action is the mean of an image plus state @ WEIGHTS."""
    return model(
        [
            helper.make_node("MatMul", ["state", "weights"], ["x"]),
            helper.make_node("Cast", ["image"], ["numbers"], to=TensorProto.FLOAT),
            helper.make_node("ReduceMean", ["numbers"], ["mean"], keepdims=0, noop_with_empty_axes=0),
            helper.make_node("Add", ["x", "mean"], [ACTION]),
        ],
        [_info("state", TensorProto.FLOAT, "batch", 3), _info("image", TensorProto.UINT8, "batch", 2, 2, 1)],
        [_info(ACTION, TensorProto.FLOAT, "batch", 2)],
    )


def sum_of_action() -> bytes:
    """The value is the sum of the action."""
    axes = numpy_helper.from_array(np.array([1]), "axes")
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["state", "weights"], ["x"]),
            helper.make_node("Mul", ["x", "zero"], ["nothing"]),
            helper.make_node("Add", ["nothing", ACTION], ["sum"]),
            helper.make_node("ReduceSum", ["sum", "axes"], [VALUE], keepdims=0),
        ],
        "graph",
        [_info("state", TensorProto.FLOAT, "batch", 3), _info(ACTION, TensorProto.FLOAT, "batch", 2)],
        [_info(VALUE, TensorProto.FLOAT, "batch")],
        [
            axes,
            numpy_helper.from_array(WEIGHTS, "weights"),
            numpy_helper.from_array(np.zeros((), np.float32), "zero"),
        ],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    content: bytes = made.SerializeToString()
    return content


def write_folder(
    folder: Path,
    policy: bytes,
    *,
    value: bytes | None = None,
    discrete: bool = False,
    image: bool = False,
    examples: Mapping[str, Any] | None = None,
) -> Path:
    """Write an exported folder whose states are from -1 to 1."""
    states = {"name": "state", "shape": [3], "dtype": "float32", "low": [-1.0] * 3, "high": [1.0] * 3}
    images = {"name": "image", "shape": [2, 2, 1], "dtype": "uint8"}
    files = {POLICY_FILE: policy} | ({VALUE_FILE: value} if value is not None else {})
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_bytes(content)
    np.savez(folder / EXAMPLES, **(examples or {}))
    files[EXAMPLES] = (folder / EXAMPLES).read_bytes()
    contract = {
        "format": FORMAT,
        "observations": [states, *([images] if image else [])],
        "action": {"discrete": discrete, "size": 2, "low": [-1.0, -1.0], "high": [1.0, 1.0]},
        "value": {} if value is not None else None,
        "parity": {"tolerance": 1e-4},
        "files": {name: digest(content) for name, content in files.items()},
    }
    seal(folder, contract)
    return folder


def seal(folder: Path, contract: dict[str, Any]) -> None:
    """Write a contract with its checksum."""
    (folder / CONTRACT).write_text(json.dumps(contract | {"checksum": checksum(contract)}))
