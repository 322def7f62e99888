"""Export of a policy as ONNX and as a program of torch, with a contract that says what goes in and what comes out.

The files are a model repository of the Triton Inference Server, and a model of MLServer.
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
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cvl_pipeline.deploy import mlserver_policy, runner
from cvl_pipeline.deploy.parameters import ExportParameters
from cvl_pipeline.deploy.runner import ACTION, CONTRACT, EXAMPLES, POLICY_FILE, VALUE, VALUE_FILE
from cvl_pipeline.episodes.container import BLOCK, Split, Transitions
from cvl_pipeline.episodes.parts import Part, named_parts
from cvl_pipeline.errors import InputError, missing_extra, one_line
from cvl_pipeline.networks.actor import Actor, Policy
from cvl_pipeline.networks.goal_policy import PAIRS, GoalPolicy
from cvl_pipeline.readout.action_values import ActionValues

PROGRAM_FILE, RUNNER_FILE, SERVER_FILE = "policy.pt2", "runner.py", "mlserver_policy.py"
HELD_OUT, HELD_OUT_WIDE = 1024, 128
"""Held-out observations on which the exported policy is compared with the trained one; the second with images."""
EXAMPLE_ROWS = 4
"""Observations and actions in the folder, for the runner's test of itself."""
PACKAGES = ("cvl-pipeline", "torch", "onnx", "onnxscript", "onnxruntime", "numpy")
KINDS = {"float32": "FP32", "uint8": "UINT8", "int64": "INT64"}
"""Types as the KServe protocol names them."""


INPUT = "input/"
"""Before the names of inputs, until those inside are known; no value inside has it."""
RESERVED = (ACTION, VALUE, "file")
"""Names that no part can have: of other inputs and outputs, and one that NumPy's files do not take."""


class _Inputs:
    """The parts of a policy's observation: one input of an exported policy each.

    Attributes:
        parts: in the order of the inputs. One vector is called ``state``, and one image ``image``.
    """

    parts: tuple[Part, ...]

    def __init__(self, policy: Policy) -> None:
        """Raise InputError if the name of a part is taken."""
        self._layout = policy.shape.parts
        self.parts = named_parts(tuple(policy.shape.observation_shape), self._layout)
        for part in self.parts:
            if part.name in RESERVED:
                raise InputError(
                    f"part '{part.name}' of the observations cannot be exported: the name is taken; rename it"
                )

    def separated(self, observations: Tensor) -> dict[str, Tensor]:
        """Return the parts of observations as in the log, (B, *shape) each, by name."""
        if self._layout is None:
            return {self.parts[0].name: observations}
        return self._layout.unpack(observations)

    def joined(self, parts: Sequence[Tensor]) -> Tensor:
        """Return the observations that the networks take, of the parts in their order."""
        if self._layout is None:
            return parts[0]
        return self._layout.numbers({part.name: value for part, value in zip(self.parts, parts, strict=True)})


class _Acting(nn.Module):
    """The parts of observations to actions, as the environment takes them."""

    def __init__(self, policy: Policy, inputs: _Inputs) -> None:
        super().__init__()
        if isinstance(policy, GoalPolicy):  # its goals are rows like the observations
            goals = inputs.joined(list(inputs.separated(policy.goals).values()))
            policy = GoalPolicy(policy.actor, policy.critic, goals)
        self.policy, self.inputs = policy, inputs

    def forward(self, *parts: Tensor) -> Tensor:
        actions: Tensor = self.policy(self.inputs.joined(parts))
        return actions.argmax(-1) if self.policy.discrete else actions


class _Judging(nn.Module):
    """The parts of observations, and actions (B, A), to values (B,)."""

    def __init__(self, values: ActionValues, inputs: _Inputs) -> None:
        super().__init__()
        self.values, self.inputs = values, inputs
        # The parameters of networks inside, which are then stored as parameters of the program.
        self.networks = nn.ModuleList(part for part in values.parts if isinstance(part, nn.Module))

    def forward(self, *inputs: Tensor) -> Tensor:
        *parts, actions = inputs
        values: Tensor = self.values(self.inputs.joined(parts), actions)
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
    versions = _versions()
    _check(policy, transitions)
    if not (values is None or isinstance(values, ActionValues)):
        raise InputError(
            f"values of class {type(values).__name__} cannot be exported; give QFunction(critic, readout)"
        )
    policy = policy.eval()
    inputs = _Inputs(policy)
    parts = inputs.parts
    contract = _contract(policy, parts, transitions, parameters, values is not None, about or {})
    contract["versions"] = versions
    episodes = split.validation if len(split.validation) else split.train
    index = transitions.transition_index(episodes)
    count = min(len(index), HELD_OUT_WIDE if transitions.wide else HELD_OUT)
    index = index[torch.linspace(0, len(index) - 1, count, dtype=torch.float64).long()]
    observations = transitions.states(index)
    actions = transitions.actions[index]
    wanted = _acted(policy, observations)
    if policy.discrete:
        wanted = wanted.argmax(-1)
    else:  # as environments and the runner clip them
        wanted = wanted.clip(transitions.action_low.numpy(), transitions.action_high.numpy())
    given = inputs.separated(observations)
    files = dict(extra or {})
    names = list(given)
    files[POLICY_FILE], files[PROGRAM_FILE] = _exported(
        _Acting(policy, inputs), list(given.values()), names, ACTION, "policy"
    )
    files["policy/config.pbtxt"] = _triton("policy", parts, (), (ACTION, *_action_type(policy)))
    if values is not None:
        judged = [*given.values(), actions]
        files[VALUE_FILE], _ = _exported(_Judging(values, inputs), judged, [*names, ACTION], VALUE, "value")
        action = Part(ACTION, (policy.shape.action_size,), "float32")
        files["value/config.pbtxt"] = _triton("value", parts, (action,), (VALUE, "float32", ()))
    files[RUNNER_FILE] = Path(runner.__file__).read_bytes()
    files[SERVER_FILE] = Path(mlserver_policy.__file__).read_bytes()
    files["model-settings.json"] = _mlserver(parts, (ACTION, *_action_type(policy)))
    with torch.no_grad():
        known = None if values is None else values(observations, actions).numpy()
    arrays = {name: part.numpy() for name, part in given.items()}
    taken = (actions.argmax(-1) if policy.discrete else actions).numpy()
    contract["parity"], agreed = _parity(
        policy, contract, files, (arrays, taken), (wanted, known), parameters
    )
    rows = np.flatnonzero(agreed)[:EXAMPLE_ROWS]
    files[EXAMPLES] = _arrays({name: array[rows] for name, array in arrays.items()} | {ACTION: wanted[rows]})
    files |= card(contract) if card else {}
    return {**files, CONTRACT: _sealed(contract, files)}


def _versions() -> dict[str, str]:
    """Return the versions of PACKAGES, as their modules say: ONNX Runtime is installed under several names.

    Raises:
        InputError: the extra ``export`` is not installed; torch would say so only after the work.
    """
    try:
        modules = {name: import_module(name.replace("-", "_")) for name in PACKAGES}
    except ImportError as error:
        raise missing_extra("export", error) from None
    return {name: str(getattr(module, "__version__", "unknown")) for name, module in modules.items()}


def _check(policy: Any, transitions: Transitions) -> None:
    """Raise InputError unless the policy can be exported, and the episodes are such as it learned from."""
    if not isinstance(policy, Policy):
        raise InputError(
            f"a policy of class {type(policy).__name__} cannot be exported: it is no Policy"
            + ("; give its field `policy`" if hasattr(policy, "policy") else "")
        )
    places = {str(tensor.device) for tensor in (*policy.parameters(), *policy.buffers())}
    if places - {"cpu"}:
        raise InputError(
            f"the policy is on {', '.join(sorted(places - {'cpu'}))}; export it from the CPU: policy.cpu()"
        )
    shape = policy.shape
    of_policy = (tuple(shape.observation_shape), shape.parts, shape.action_size, bool(policy.discrete))
    of_episodes = (
        tuple(transitions.observations.shape[1:]), transitions.parts, transitions.actions.shape[1],
        bool(transitions.discrete),
    )  # fmt: skip
    for name, own, other in zip(
        ("observations of shape", "parts", "actions of size", "discrete actions:"),
        of_policy,
        of_episodes,
        strict=True,
    ):
        if own != other:
            raise InputError(
                f"the policy has {name} {own}, and the episodes have {other}; give the episodes it learned from"
            )


def _acted(policy: Policy, observations: Tensor) -> NDArray[np.float32]:
    """Return the policy's actions, (B, A); raise InputError if they are not a function of the observation alone."""
    before = {name: buffer.clone() for name, buffer in policy.named_buffers()}
    with torch.no_grad():
        first: NDArray[np.float32] = policy(observations).numpy().copy()
        second: NDArray[np.float32] = policy(observations).numpy()
    changed = [name for name, buffer in policy.named_buffers() if not torch.equal(buffer, before[name])]
    if changed:
        raise InputError(
            f"the policy has memory: acting changes its buffers {', '.join(changed)}; make its action a function of "
            "the observation alone"
        )
    wanted = (len(observations), policy.shape.action_size)
    if first.shape != wanted:
        raise InputError(
            f"the policy answers {len(observations)} observations with actions of shape {first.shape}; an exported "
            f"policy gives one action for one observation, {wanted}: no chunks of actions, and no sequences"
        )
    if not np.array_equal(first, second):
        raise InputError(
            "the policy acts differently on the same observations again: an exported policy has no memory and draws no "
            "random numbers; make its action a function of the observation alone"
        )
    return first


def _action_type(policy: Policy) -> tuple[str, tuple[int, ...]]:
    return ("int64", ()) if policy.discrete else ("float32", (policy.shape.action_size,))


def _exported(
    module: nn.Module, inputs: Sequence[Tensor], names: list[str], output: str, kind: str
) -> tuple[bytes, bytes]:
    """Return a module as ONNX and as a program of torch, for any number of rows.

    Neither holds paths of this machine, and both have the same bytes every time.
    """
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
                program, (), input_names=[INPUT + name for name in names], output_names=[output],
                external_data=False, verbose=False,
            )  # fmt: skip
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
    # A part may be called as a value inside, such as view.
    _rename(
        model.graph, {**{name: f"{name}.inner" for name in names}, **{INPUT + name: name for name in names}}
    )
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    del model.graph.value_info[:]  # of shapes inside, with other names of the number of rows
    return model.SerializeToString(deterministic=True), stored.getvalue()


def _rename(graph: Any, names: Mapping[str, str]) -> None:
    """Rename values of an ONNX graph, and of the graphs of its branches."""
    for value in (*graph.input, *graph.output, *graph.initializer):
        value.name = names.get(value.name, value.name)
    for node in graph.node:
        for places in (node.input, node.output):
            places[:] = [names.get(name, name) for name in places]
        for attribute in node.attribute:
            for inner in (*([attribute.g] if attribute.HasField("g") else ()), *attribute.graphs):
                _rename(inner, names)


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


def _mlserver(parts: Sequence[Part], output: tuple[str, str, tuple[int, ...]]) -> bytes:
    """Return the settings by which MLServer finds, loads and describes the policy."""

    def tensor(name: str, dtype: str, shape: tuple[int, ...]) -> dict[str, Any]:
        # Like Triton, it gives every tensor an axis beside that of the rows.
        return {"name": name, "datatype": KINDS[dtype], "shape": [-1, *(shape or (1,))]}

    settings = {
        "name": "policy",
        "implementation": f"{Path(SERVER_FILE).stem}.{mlserver_policy.ServedPolicy.__name__}",
        "inputs": [tensor(part.name, part.dtype, part.shape) for part in parts],
        "outputs": [tensor(*output)],
        "parameters": {"uri": ".", "extra": {}},
    }
    return (json.dumps(settings, indent=2) + "\n").encode()


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
    names = iter(parameters.observation_names)
    width = sum(part.shape[0] for part in parts if not part.image)
    if parameters.observation_names and len(parameters.observation_names) != width:
        raise InputError(
            f"export.observation_names has {len(parameters.observation_names)} names, but observations have {width} "
            f"numbers beside images ({', '.join(f'{part.name} {part.shape}' for part in parts)}): give one name per "
            "number, or none"
        )
    if parameters.action_names and len(parameters.action_names) != size:
        raise InputError(
            f"export.action_names has {len(parameters.action_names)} names, but there are {size} "
            f"{'actions' if policy.discrete else 'numbers in an action'}: give one name each, or none"
        )
    observations: list[dict[str, Any]] = []
    for part in parts:
        observations.append({"name": part.name, "shape": list(part.shape), "dtype": part.dtype})
        if not part.image:
            low, high = _range(transitions, part.name)
            named = list(islice(names, part.shape[0])) or None
            observations[-1] |= {"names": named, "low": low, "high": high}
    return {
        "format": runner.FORMAT,
        "observations": observations,
        "action": {
            "discrete": policy.discrete,
            "size": size,
            "dtype": _action_type(policy)[0],
            "names": list(parameters.action_names) or None,
            "low": transitions.action_low.tolist(),
            "high": transitions.action_high.tolist(),
        },
        "value": {"inputs": [*(part.name for part in parts), ACTION]} if has_value else None,
        "normalisation": "inside: observations are as in the log",
        "policy": type(policy).__name__,
        "control_hz": parameters.control_hz,
        "about": dict(about),
    }


def _range(transitions: Transitions, name: str) -> tuple[list[float], list[float]]:
    """Return the smallest and the largest value of each number of a vector, (O,) each, in one pass."""
    layout = transitions.parts
    rows = (
        layout.part(block, name) if layout else block
        for block in torch.split(transitions.observations, BLOCK)
    )
    blocks = [(block.amin(0), block.amax(0)) for block in rows]
    lows, highs = zip(*blocks, strict=True)
    return torch.stack(lows).amin(0).tolist(), torch.stack(highs).amax(0).tolist()


def _parity(
    policy: Policy,
    contract: Mapping[str, Any],
    files: Mapping[str, bytes],
    held_out: tuple[Mapping[str, NDArray[Any]], NDArray[Any]],
    trained: tuple[NDArray[Any], NDArray[Any] | None],
    parameters: ExportParameters,
) -> tuple[dict[str, Any], NDArray[np.bool_]]:
    """Run the exported files with the runner, and compare; raise InputError if they differ too much.

    ``held_out`` are parts of observations, and actions in the log; ``trained`` are actions of the trained policy, and
    values of the pairs, if values are exported. Returns the entry of the contract, and which observations got the
    same action, (B,).
    """
    (observations, actions), (wanted, known) = held_out, trained
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        for file, content in {**files, CONTRACT: _sealed(contract, files)}.items():
            (place / file).parent.mkdir(parents=True, exist_ok=True)
            (place / file).write_bytes(content)
        try:
            loaded = runner.load_policy(place, outside="ignore")
            alone = loaded.select_action({name: part[0] for name, part in observations.items()})
            # An exported policy takes all its rows at once; goals need memory for pairs with each row.
            size = max(1, PAIRS // len(policy.goals)) if isinstance(policy, GoalPolicy) else len(wanted)
            acted = np.concatenate([loaded.select_action(block) for block in _blocks(observations, size)])
            judged = None if known is None else loaded.value(observations, actions)
        except runner.PolicyError as error:
            raise InputError(
                f"the exported policy does not run: {error}".replace(str(place), "exported")
            ) from error
    errors = runner.differences(contract["action"], np.asarray(acted), wanted)
    first = float(runner.differences(contract["action"], np.asarray(alone)[None], wanted[:1])[0])
    tolerance = parameters.tolerance
    off = ~(errors <= tolerance)
    chooses = policy.discrete or not isinstance(policy, Actor)
    allowed = math.ceil(parameters.ties * len(off)) if chooses else 0
    if off.sum() > allowed or off.all() or (first > tolerance and not off[0] and not chooses):
        raise InputError(
            f"the exported policy acts differently on {int(off.sum())} of {len(off)} held-out observations, by up to "
            f"{max(errors.max(), first):.3g} of the range of actions; allowed is {tolerance:.3g} (export.tolerance): "
            "nothing was published"
        )
    agreed = ~off
    parity: dict[str, Any] = {
        "observations": len(wanted),
        "largest_error": float(errors[agreed].max(initial=0.0)),
        "tolerance": tolerance,
        "other_choices": int(off.sum()),
    }
    if known is not None:
        gap, scale = float(np.abs(judged - known).max()), max(float(np.abs(known).max()), 1e-6)
        if not gap <= parameters.tolerance * scale:
            raise InputError(
                f"the exported value differs by up to {gap:.3g} on held-out pairs; allowed is "
                f"{parameters.tolerance * scale:.3g} (export.tolerance); export.value=false leaves it out"
            )
        parity |= {"value_error": gap, "largest_value": scale}
    return parity, agreed


def _blocks(arrays: Mapping[str, NDArray[Any]], size: int) -> Iterator[dict[str, NDArray[Any]]]:
    """Rows of arrays, at most ``size`` at a time."""
    for first in range(0, len(next(iter(arrays.values()))), size):
        yield {name: array[first : first + size] for name, array in arrays.items()}


def _sealed(contract: Mapping[str, Any], files: Mapping[str, bytes]) -> bytes:
    """Return the contract as JSON, with the checksums of the files and its own."""
    whole = {**contract, "files": {name: runner.digest(content) for name, content in sorted(files.items())}}
    whole = json.loads(json.dumps(whole, allow_nan=False))  # the checksum is that of what is read back
    whole["checksum"] = runner.checksum(whole)
    return (json.dumps(whole, indent=2) + "\n").encode()
