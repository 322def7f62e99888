"""Export of a policy as ONNX and as a program of torch, with a contract that says what goes in and what comes out.

The files are a model repository of the Triton Inference Server, and of other servers with the KServe protocol.
"""

from __future__ import annotations

import io
import json
import logging
import math
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cvl_pipeline.deploy import runner
from cvl_pipeline.deploy.parameters import ExportParameters
from cvl_pipeline.deploy.runner import ACTION, CONTRACT, EXAMPLES, POLICY_FILE, VALUE, VALUE_FILE
from cvl_pipeline.episodes.container import BLOCK, Split, Transitions
from cvl_pipeline.errors import InputError, missing_extra, one_line
from cvl_pipeline.networks.actor import Actor, Policy
from cvl_pipeline.readout.action_values import ActionValues

PROGRAM_FILE, RUNNER_FILE = "policy.pt2", "runner.py"
HELD_OUT = 1024
"""Held-out observations on which the exported policy is compared with the trained one."""
EXAMPLE_ROWS = 4
"""Observations and actions in the folder, for the runner's test of itself."""
PACKAGES = ("cvl-pipeline", "torch", "onnx", "onnxscript", "onnxruntime", "numpy")
KINDS = {"float32": "FP32", "uint8": "UINT8", "int64": "INT64"}
"""Types as the KServe protocol names them."""


@dataclass(frozen=True)
class Part:
    """One named input of an exported policy: a vector, (O,) float32, or an image, (H, W, C) uint8."""

    name: str
    shape: tuple[int, ...]
    dtype: str


def parts_of(policy: Policy) -> tuple[Part, ...]:
    """Return the parts of a policy's observation. Parts get their names here and nowhere else."""
    shape = tuple(policy.shape.observation_shape)
    image = len(shape) == 3
    return (Part("image" if image else "state", shape, "uint8" if image else "float32"),)


def packed(parts: Sequence[Tensor]) -> Tensor:
    """Return the observations that the networks take, of the parts in their order, (B, *shape) each."""
    (observations,) = parts
    return observations


class _Acting(nn.Module):
    """The parts of observations to actions, as the environment takes them."""

    def __init__(self, policy: Policy) -> None:
        super().__init__()
        self.policy = policy

    def forward(self, *parts: Tensor) -> Tensor:
        actions: Tensor = self.policy(packed(parts))
        return actions.argmax(-1) if self.policy.discrete else actions


class _Judging(nn.Module):
    """The parts of observations, and actions (B, A), to values (B,)."""

    def __init__(self, values: ActionValues) -> None:
        super().__init__()
        self.values = values
        # The parameters of networks inside, which are then stored as parameters of the program.
        self.networks = nn.ModuleList(part for part in values.parts if isinstance(part, nn.Module))

    def forward(self, *inputs: Tensor) -> Tensor:
        *parts, actions = inputs
        values: Tensor = self.values(packed(parts), actions)
        return values


def export_policy(
    policy: Any,
    transitions: Transitions,
    split: Split,
    parameters: ExportParameters,
    *,
    values: ActionValues | None = None,
    about: Mapping[str, Any] | None = None,
    card: Callable[[Mapping[str, Any]], Mapping[str, bytes]] | None = None,
    extra: Mapping[str, bytes] | None = None,
) -> dict[str, bytes]:
    """Export a policy, and check that the exported one acts as the trained one on held-out observations.

    Args:
        policy: trained, as it acts in the environment.
        transitions: all episodes.
        split: held-out episodes are those that it does not train on; without any, its training episodes.
        parameters: tolerances, and names for the contract.
        values: Q of the behaviour policy; None: no value is exported.
        about: facts for the contract, plain values: dataset, method, metrics, provenance.
        card: makes further files from the contract, which then has their checksums.
        extra: further files, by their names.

    Returns:
        The files of the exported folder by their names, the contract last.

    Raises:
        InputError: a policy that cannot be exported, or one whose exported actions differ; names that do not fit; the
            extra ``export`` is not installed.
    """
    if not isinstance(policy, Policy):
        raise InputError(f"a policy of class {type(policy).__name__} cannot be exported: it is no Policy")
    policy = policy.eval()
    parts = parts_of(policy)
    contract = _contract(policy, parts, transitions, parameters, values is not None, about or {})
    episodes = split.validation if len(split.validation) else split.train
    index = transitions.transition_index(episodes)
    index = index[torch.linspace(0, len(index) - 1, min(len(index), HELD_OUT)).long()]
    observations = transitions.states(index)
    actions = transitions.actions[index]
    files = dict(extra or {})
    names = [part.name for part in parts]
    files[POLICY_FILE], files[PROGRAM_FILE] = _exported(
        _Acting(policy), [observations], names, ACTION, "policy"
    )
    files["policy/config.pbtxt"] = _triton("policy", parts, (), (ACTION, *_action_type(policy)))
    if values is not None:
        judged = [observations, actions]
        files[VALUE_FILE], _ = _exported(_Judging(values), judged, [*names, ACTION], VALUE, "value")
        action = Part(ACTION, (policy.shape.action_size,), "float32")
        files["value/config.pbtxt"] = _triton("value", parts, (action,), (VALUE, "float32", ()))
    files[RUNNER_FILE] = Path(runner.__file__).read_bytes()
    with torch.no_grad():
        wanted = _Acting(policy)(observations).numpy()
    contract["parity"], agreed = _parity(
        policy, values, contract, files, (names[0], observations, actions, wanted), parameters
    )
    rows = np.flatnonzero(agreed)[:EXAMPLE_ROWS]
    files[EXAMPLES] = _arrays({names[0]: observations.numpy()[rows], ACTION: wanted[rows]})
    files |= card(contract) if card else {}
    return {**files, CONTRACT: _sealed(contract, files)}


def _action_type(policy: Policy) -> tuple[str, tuple[int, ...]]:
    return ("int64", ()) if policy.discrete else ("float32", (policy.shape.action_size,))


def _exported(
    module: nn.Module, inputs: Sequence[Tensor], names: list[str], output: str, kind: str
) -> tuple[bytes, bytes]:
    """Return a module as ONNX and as a program of torch, for any number of rows.

    Neither holds paths of this machine, and both have the same bytes every time.
    """
    try:
        import onnxscript  # noqa: F401  # torch needs it, and says so only after the work
    except ImportError as error:
        raise missing_extra("export", error) from None
    rows = tuple(
        part[:2].repeat(2, *[1] * (part.ndim - 1)) for part in inputs
    )  # a size that is no special one
    batch = {0: torch.export.Dim("batch")}
    try:
        with _quiet(), torch.no_grad():
            module(*rows)  # decides what depends on constants alone, which a trace cannot
            program = torch.export.export(
                module.eval(), rows, dynamic_shapes=(tuple(batch for _ in rows),), strict=False
            )
            for part in program.graph_module.modules():  # of branches and blocks, too
                for node in part.graph.nodes if isinstance(part, torch.fx.GraphModule) else ():
                    node.meta.pop("stack_trace", None)
            stored = io.BytesIO()
            torch.export.save(program, stored)
            exported: Any = torch.onnx.export(
                program, (), input_names=names, output_names=[output], external_data=False, verbose=False
            )
            model = exported.model_proto
    except Exception as error:  # of a class per fault, from any code of the policy
        raise InputError(
            f"the {kind} cannot be exported: torch.export or torch.onnx refuses it ({one_line(error)[:400]})"
        ) from error
    for graph in (model.graph, *model.functions):
        for part in (
            graph,
            *graph.node,
            *getattr(graph, "value_info", ()),
            *getattr(graph, "initializer", ()),
        ):
            del part.metadata_props[:]
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    del model.graph.value_info[:]  # of shapes inside, with other names of the number of rows
    return model.SerializeToString(deterministic=True), stored.getvalue()


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep back torch's warnings about itself."""
    loggers = [logging.getLogger(name) for name in ("torch", "torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _arrays(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    content = io.BytesIO()
    np.savez(content, **arrays)  # type: ignore[arg-type]
    return content.getvalue()


def _triton(
    name: str, parts: Sequence[Part], others: Sequence[Part], output: tuple[str, str, tuple[int, ...]]
) -> bytes:
    """Return ``config.pbtxt`` of a model, for Triton and servers that read the same file."""

    def tensor(name: str, dtype: str, shape: tuple[int, ...]) -> str:
        sizes = ", ".join(map(str, shape))
        # The protocol has no tensor without axes; this one is reshaped to (B,).
        shape_of = f"dims: [ {sizes} ]" if shape else "dims: [ 1 ]\n    reshape { shape: [ ] }"
        return f'  {{\n    name: "{name}"\n    data_type: TYPE_{KINDS[dtype]}\n    {shape_of}\n  }}'

    inputs = ",\n".join(tensor(part.name, part.dtype, part.shape) for part in (*parts, *others))
    return (
        f'name: "{name}"\nbackend: "onnxruntime"\ndefault_model_filename: "{name}.onnx"\nmax_batch_size: 1024\n'
        f"input [\n{inputs}\n]\noutput [\n{tensor(*output)}\n]\n"
        "instance_group [ { kind: KIND_CPU } ]\n"
        'parameters { key: "intra_op_thread_count" value: { string_value: "1" } }\n'
    ).encode()


def _contract(
    policy: Policy,
    parts: Sequence[Part],
    transitions: Transitions,
    parameters: ExportParameters,
    has_value: bool,
    about: Mapping[str, Any],
) -> dict[str, Any]:
    """Return all of the contract that is known before the exported policy is compared with the trained one."""
    size = policy.shape.action_size
    (part,) = parts
    width = part.shape[0]
    if parameters.observation_names and (part.dtype == "uint8" or len(parameters.observation_names) != width):
        raise InputError(
            f"export.observation_names has {len(parameters.observation_names)} names, but observations have the shape "
            f"{part.shape}: give one name per number, or none"
        )
    if parameters.action_names and len(parameters.action_names) != size:
        raise InputError(
            f"export.action_names has {len(parameters.action_names)} names, but there are {size} "
            f"{'actions' if policy.discrete else 'numbers in an action'}: give one name each, or none"
        )
    observation: dict[str, Any] = {"name": part.name, "shape": list(part.shape), "dtype": part.dtype}
    if part.dtype == "float32":
        low, high = _range(transitions.observations)
        observation |= {"names": list(parameters.observation_names) or None, "low": low, "high": high}
    return {
        "format": runner.FORMAT,
        "observations": [observation],
        "action": {
            "discrete": policy.discrete,
            "size": size,
            "dtype": _action_type(policy)[0],
            "names": list(parameters.action_names) or None,
            "low": transitions.action_low.tolist(),
            "high": transitions.action_high.tolist(),
        },
        "value": {"inputs": [part.name, ACTION]} if has_value else None,
        "normalisation": "inside: observations are as in the log",
        "policy": type(policy).__name__,
        "control_hz": parameters.control_hz,
        "about": dict(about),
        "versions": {name: metadata.version(name) for name in PACKAGES},
    }


def _range(rows: Tensor) -> tuple[list[float], list[float]]:
    """Return the smallest and the largest value of each number, (N, O), in one pass."""
    blocks = [(block.amin(0), block.amax(0)) for block in torch.split(rows, BLOCK)]
    lows, highs = zip(*blocks, strict=True)
    return torch.stack(lows).amin(0).tolist(), torch.stack(highs).amax(0).tolist()


def _parity(
    policy: Policy,
    values: ActionValues | None,
    contract: Mapping[str, Any],
    files: Mapping[str, bytes],
    held_out: tuple[str, Tensor, Tensor, NDArray[Any]],
    parameters: ExportParameters,
) -> tuple[dict[str, Any], NDArray[np.bool_]]:
    """Run the exported files with the runner, and compare; raise InputError if they differ too much.

    Returns the entry of the contract, and which observations got the same action, (B,).
    """
    name, observations, actions, wanted = held_out
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        for file, content in {**files, CONTRACT: _sealed(contract, files)}.items():
            (place / file).parent.mkdir(parents=True, exist_ok=True)
            (place / file).write_bytes(content)
        try:
            loaded = runner.load_policy(place, outside="ignore")
            given = {name: observations.numpy()}
            acted = loaded.select_action(given)
            alone = loaded.select_action({name: observations.numpy()[0]})
            # Of few pairs: the trained values split many, and differ in the last digits then.
            taken = actions.argmax(-1) if policy.discrete else actions
            judged = loaded.value(given, taken.numpy()) if values is not None else None
        except runner.PolicyError as error:
            raise InputError(
                f"the exported policy does not run: {error}".replace(str(place), "exported")
            ) from error
    span = 1.0 if policy.discrete else float(_span(contract).max())
    errors = np.abs(np.asarray(acted, np.float64) - wanted).reshape(len(wanted), -1).max(1)
    first = float(np.abs(np.asarray(alone, np.float64) - wanted[0]).max())
    tolerance = parameters.tolerance * span
    off = errors > tolerance
    chooses = policy.discrete or not isinstance(policy, Actor)
    allowed = math.ceil(parameters.ties * len(off)) if chooses else 0
    if off.sum() > allowed or (first > tolerance and not off[0] and not chooses) or np.isnan(errors).any():
        raise InputError(
            f"the exported policy acts differently on {int(off.sum())} of {len(off)} held-out observations, by up to "
            f"{max(errors.max(), first):.3g}; allowed is {tolerance:.3g} (export.tolerance): nothing was published"
        )
    agreed = ~off
    parity: dict[str, Any] = {
        "observations": len(wanted),
        "largest_error": float(errors[agreed].max(initial=0.0)),
        "tolerance": tolerance,
        "other_choices": int(off.sum()),
    }
    if values is not None and judged is not None:
        with torch.no_grad():
            known = values(observations, actions).numpy()
        gap, scale = float(np.abs(judged - known).max()), max(float(np.abs(known).max()), 1e-6)
        if not gap <= parameters.tolerance * scale:
            raise InputError(
                f"the exported value differs by up to {gap:.3g} on held-out pairs; allowed is "
                f"{parameters.tolerance * scale:.3g} (export.tolerance); export.value=false leaves it out"
            )
        parity |= {"value_error": gap, "largest_value": scale}
    return parity, agreed


def _span(contract: Mapping[str, Any]) -> NDArray[np.float64]:
    """Width of the range of each number of an action, (A,)."""
    low, high = (np.array(contract["action"][end], np.float64) for end in ("low", "high"))
    return high - low


def _sealed(contract: Mapping[str, Any], files: Mapping[str, bytes]) -> bytes:
    """Return the contract as JSON, with the checksums of the files and its own."""
    whole = {**contract, "files": {name: runner.digest(content) for name, content in sorted(files.items())}}
    whole = json.loads(json.dumps(whole, allow_nan=False))  # the checksum is that of what is read back
    whole["checksum"] = runner.checksum(whole)
    return (json.dumps(whole, indent=2) + "\n").encode()
