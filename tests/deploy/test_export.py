from __future__ import annotations

import json
import re
import sys
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from examples import triton_model
from torch import Tensor, nn

from cvl_pipeline.deploy import export
from cvl_pipeline.deploy.export import export_policy
from cvl_pipeline.deploy.parameters import ExportParameters
from cvl_pipeline.deploy.runner import (
    CONTRACT,
    POLICY_FILE,
    VALUE_FILE,
    ExportedPolicy,
    differences,
    load_policy,
    self_test,
)
from cvl_pipeline.episodes.container import Normalisation, Transitions
from cvl_pipeline.episodes.parts import Layout
from cvl_pipeline.errors import InputError
from cvl_pipeline.networks.actor import Policy, make_actor
from cvl_pipeline.networks.critic import ContrastiveCritic, CriticShape
from cvl_pipeline.networks.goal_policy import GoalPolicy, make_goal_actor
from cvl_pipeline.objectives.best_of_n import BestOfN
from cvl_pipeline.readout.q_function import QFunction
from cvl_pipeline.readout.readouts import ExactReadout
from cvl_pipeline.readout.regression import RegressedReadout
from cvl_pipeline.testing.builders import (
    identity_normalisation,
    make_discrete_transitions,
    make_packed_transitions,
    make_transitions,
    split_first,
)

LENGTHS, ENDS = [30, 20], [False, False]
PIXELS = Normalisation(torch.full((3,), 100.0), torch.full((3,), 50.0), torch.zeros(2), torch.ones(2))


def _images() -> Transitions:
    pixels = torch.randint(
        0, 256, (52, 12, 12, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    return replace(make_transitions(LENGTHS, ENDS), observations=pixels)


def _normalisation(data: Transitions) -> Normalisation:
    if data.parts is None:
        return PIXELS if data.images else identity_normalisation(data)
    identity = identity_normalisation(data)
    return replace(identity, observation_std=50.0 * identity.observation_std)


def _critic(data: Transitions, horizons: bool = False) -> ContrastiveCritic:
    shape = CriticShape(
        tuple(data.observations.shape[1:]),
        data.actions.shape[1],
        (8,),
        4,
        "unit_norm",
        0.2,
        False,
        0.9,
        horizons,
        parts=data.parts,
    )
    return ContrastiveCritic(shape, _normalisation(data)).requires_grad_(False).eval()


def _values(data: Transitions, horizons: tuple[int, ...] = (), regressed: bool = True) -> QFunction:
    """The regressed exact readout, over more references than a tile has."""
    critic, count = _critic(data, bool(horizons)), 600
    shared: dict[str, Any] = {
        "temperature": torch.tensor(0.2), "horizons": torch.tensor(horizons, dtype=torch.int64), "discount": 0.9,
        "self_normalised": True,
    }  # fmt: skip
    exact = ExactReadout(
        **shared, psi=nn.functional.normalize(torch.randn(count, 4), dim=-1), rewards=torch.rand(count),
        log_weights=torch.full((count,), -np.log(count)),
    )  # fmt: skip
    if not regressed:
        return QFunction(critic, exact)
    size = data.observations.shape[1] + data.actions.shape[1]
    networks = torch.randn(2, 8 * size + 8 + 8 + 8 + 8 + 1)
    mixture = torch.tensor([0.1, 0.5, 0.5])
    return QFunction(
        critic, RegressedReadout(**shared, base=exact, networks=networks, sizes=(size, 8, 1), mixture=mixture)
    )


def _policy(kind: str, data: Transitions) -> Policy:
    if "goal" in kind:
        actor = make_goal_actor(data, _normalisation(data), (8,), {})
        return GoalPolicy(actor, _critic(data), data.observations[:4].clone())
    actor = make_actor(data, _normalisation(data), (8,))
    if "best" in kind:
        noise = actor.noise(6, torch.Generator().manual_seed(1))
        return BestOfN(actor, _values(data), noise)
    return actor


def _data(kind: str) -> Transitions:
    if "image" in kind:
        return _images()
    if "parts" in kind:
        return make_packed_transitions(LENGTHS, ENDS)
    make = make_discrete_transitions if "discrete" in kind else make_transitions
    return make(LENGTHS, ENDS)


def _write(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


@pytest.fixture(scope="module")
def gaussian() -> tuple[Policy, Transitions, QFunction, dict[str, bytes]]:
    """A Gaussian actor with its values, exported."""
    torch.manual_seed(0)
    data = _data("vector")
    policy, values = _policy("vector", data).eval(), _values(data)
    parameters = ExportParameters(
        control_hz=20.0, observation_names=("x[m]", "y[m]", "grip"), action_names=("dx", "dy")
    )
    files = export_policy(
        policy, data, split_first(data, 1), parameters, values=values, about={"method": "CVL"},
        card=lambda contract: {"README.md": contract["about"]["method"].encode()}, extra={"video.mp4": b"1"},
    )  # fmt: skip
    return policy, data, values, files


def test_the_contract_says_what_goes_in_and_what_comes_out(gaussian: Any) -> None:
    _, data, _, files = gaussian
    assert list(files)[-1] == CONTRACT
    contract = json.loads(files[CONTRACT])
    (state,) = contract["observations"]
    assert {key: state[key] for key in ("name", "shape", "dtype", "names")} == {
        "name": "state", "shape": [3], "dtype": "float32", "names": ["x[m]", "y[m]", "grip"],
    }  # fmt: skip
    np.testing.assert_allclose(state["low"], data.observations.amin(0))
    np.testing.assert_allclose(state["high"], data.observations.amax(0))
    assert contract["action"] == {
        "discrete": False, "size": 2, "dtype": "float32", "names": ["dx", "dy"], "low": [-1.0, -1.0],
        "high": [1.0, 1.0],
    }  # fmt: skip
    assert (contract["control_hz"], contract["about"]) == (20.0, {"method": "CVL"})
    assert set(contract["files"]) == set(files) - {CONTRACT}
    assert {"policy.pt2", "runner.py", "README.md", "video.mp4", POLICY_FILE, VALUE_FILE} <= set(files)
    assert contract["parity"]["observations"] == 20  # of the held-out episode
    assert 0.0 <= contract["parity"]["largest_error"] < 1e-5
    assert set(contract["versions"]) == set(export.PACKAGES)
    assert contract["versions"]["torch"] == torch.__version__
    for model, sizes in (("policy", ["[ 3 ]", "[ 2 ]"]), ("value", ["[ 3 ]", "[ 2 ]", "[ 1 ]"])):
        text = files[f"{model}/config.pbtxt"].decode()
        assert f'default_model_filename: "{model}.onnx"' in text
        assert all(f"dims: {size}" in text for size in sizes)


def test_the_runner_acts_and_judges_as_the_trained_policy(gaussian: Any, tmp_path: Path) -> None:
    policy, data, values, files = gaussian
    folder = _write(tmp_path, files)
    loaded = load_policy(folder, outside="ignore")
    states, actions = data.states(), data.actions
    for rows in (slice(0, 1), slice(0, 2), slice(None)):
        with torch.no_grad():
            np.testing.assert_allclose(loaded.select_action(states[rows]), policy(states[rows]), atol=1e-6)
            known = values(states[rows], actions[rows])
        np.testing.assert_allclose(loaded.value(states[rows], actions[rows]), known, rtol=1e-5, atol=1e-5)
    assert self_test(folder).startswith("4 actions as exported")


def test_no_file_holds_a_path_of_this_machine(gaussian: Any) -> None:
    places = [str(Path(export.__file__).parents[2]), str(Path(torch.__file__).parents[1])]
    for name, content in gaussian[3].items():
        assert not any(place.encode() in content for place in places), name


def test_the_torch_program_takes_any_number_of_rows(gaussian: Any, tmp_path: Path) -> None:
    policy, data, _, files = gaussian
    program = torch.export.load(_write(tmp_path, files) / "policy.pt2").module()
    for count in (1, 2, 9):
        rows = data.observations[:count]
        torch.testing.assert_close(program(rows), policy(rows))


def test_a_repository_for_the_python_backend_of_triton_finds_the_folder(
    gaussian: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = _write(tmp_path / "exported", gaussian[3])
    model = triton_model.make_repository(folder, tmp_path / "models")
    config = (model / "config.pbtxt").read_text()
    assert config.count("backend:") == 1
    assert 'backend: "python"' in config
    assert "dims: [ 3 ]" in config
    assert (model / "1/model.py").read_bytes() == Path(triton_model.__file__).read_bytes()
    (place,) = re.findall(r'key: "folder" value: { string_value: (".*") }', config)
    monkeypatch.setattr(sys, "path", sys.path[:])
    monkeypatch.delitem(sys.modules, "runner", raising=False)
    served = triton_model.TritonPythonModel()
    served.initialize({
        "model_config": json.dumps({"parameters": {"folder": {"string_value": json.loads(place)}}})
    })  # fmt: skip
    assert served.parts == ["state"]
    del sys.modules["runner"]


def test_a_model_that_acts_differently_is_not_published(
    gaussian: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy, data, _, files = gaussian
    other = make_actor(data, identity_normalisation(data), (8,)).eval()
    model = files[POLICY_FILE]
    monkeypatch.setattr(export, "_exported", lambda *_: (model, b""))
    split = split_first(data, 1)
    export_policy(policy, data, split, ExportParameters())
    with pytest.raises(InputError, match=r"acts differently on \d+ of 20 held-out .* nothing was published"):
        export_policy(other, data, split, ExportParameters())
    monkeypatch.setattr(export, "_exported", lambda *_: (b"no model", b""))
    with pytest.raises(InputError, match=r"does not run: exported/policy/1/policy\.onnx"):
        export_policy(policy, data, split, ExportParameters())


@pytest.mark.parametrize("name", ["onnx", "onnxscript", "onnxruntime"])
def test_the_extra_is_missed_before_any_work(
    gaussian: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, data, *_ = gaussian
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(InputError, match=rf"^export needs {name}: pip install 'cvl-pipeline\[export\]'"):
        export_policy(nn.Linear(3, 2), data, split_first(data, 1), ExportParameters())


def test_another_distribution_of_onnx_runtime_exports(gaussian: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    policy, data, _, files = gaussian
    version = metadata.version

    def of_others(name: str) -> str:  # the distribution is onnxruntime-gpu, and the module onnxruntime
        if name == "onnxruntime":
            raise metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(metadata, "version", of_others)
    monkeypatch.setattr(export, "_exported", lambda *_: (files[POLICY_FILE], b""))
    contract = json.loads(export_policy(policy, data, split_first(data, 1), ExportParameters())[CONTRACT])
    assert contract["versions"]["onnxruntime"] == version("onnxruntime")


class _Branching(Policy):
    """Decides in Python by a number of the observation, which no program can record."""

    def __init__(self, inner: Policy) -> None:
        super().__init__()
        self.inner, self.shape = inner, inner.shape

    def forward(self, observations: Tensor) -> Tensor:
        actions: Tensor = self.inner(observations)
        return actions if observations[0, 0] > 0 else -actions


def test_what_cannot_be_exported_is_one_line(gaussian: Any) -> None:
    policy, data, *_ = gaussian
    split = split_first(data, 1)
    with pytest.raises(InputError, match=r"the policy cannot be exported: torch\.export") as caught:
        export_policy(_Branching(policy), data, split, ExportParameters())
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="class Linear cannot be exported"):
        export_policy(nn.Linear(3, 2), data, split, ExportParameters())
    for names, words in (
        ({"observation_names": ("x",)}, "observation_names has 1 names"),
        ({"action_names": ("a", "b", "c")}, "action_names has 3 names, but there are 2"),
    ):
        with pytest.raises(InputError, match=words):
            export_policy(policy, data, split, ExportParameters(**names))


def test_values_are_those_of_a_function_of_pairs(gaussian: Any) -> None:
    policy, data, *_ = gaussian
    with pytest.raises(
        InputError, match=r"values of class ContrastiveCritic .* give QFunction\(critic, readout\)"
    ):
        export_policy(policy, data, split_first(data, 1), ExportParameters(), values=_critic(data))  # type: ignore[arg-type]


class _Own(Policy):
    """A policy of the user's own, whose action is that of another one, changed by some numbers."""

    memory: Tensor

    def __init__(self, inner: Policy, how: str) -> None:
        super().__init__()
        self.inner, self.shape, self.how, self.calls = inner, inner.shape, how, 0
        self.register_buffer("memory", torch.zeros(()))

    def forward(self, observations: Tensor) -> Tensor:
        actions: Tensor = self.inner(observations)
        self.calls += 1
        if self.how == "beyond":
            return 1000.0 * actions
        if self.how == "chunk":
            return torch.stack([actions, actions], dim=1)
        if self.how == "count":
            return actions + 0.01 * self.calls
        if self.how == "noise":
            return actions + 0.01 * torch.randn_like(actions)
        self.memory.copy_(actions.mean())
        return actions


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("chunk", r"actions of shape \(20, 2, 2\); .* no chunks of actions"),
        ("count", "acts differently on the same observations again"),
        ("noise", "acts differently on the same observations again"),
        ("buffer", "the policy has memory: acting changes its buffers memory"),
    ],
)
def test_a_policy_with_memory_or_chunks_is_refused(gaussian: Any, how: str, words: str) -> None:
    policy, data, *_ = gaussian
    with pytest.raises(InputError, match=words):
        export_policy(_Own(policy, how), data, split_first(data, 1), ExportParameters())


def test_a_policy_that_leaves_the_bounds_is_exported_as_it_acts(gaussian: Any, tmp_path: Path) -> None:
    inner, data, *_ = gaussian
    policy = _Own(inner, "beyond").eval()
    policy.discrete = False
    folder = _write(tmp_path, export_policy(policy, data, split_first(data, 1), ExportParameters()))
    assert self_test(folder).startswith("4 actions as exported")
    state = data.observations[0].numpy()
    wanted = policy(data.observations[:1])[0].detach().clamp(data.action_low, data.action_high)
    np.testing.assert_allclose(load_policy(folder, outside="ignore").select_action(state), wanted, atol=1e-4)


def test_a_policy_for_goals_is_compared_in_as_many_rows_as_it_computes_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(0)
    data = _data("goal")
    policy = _policy("goal", data).eval()
    sizes: list[int] = []
    act = ExportedPolicy.select_action

    def counted(self: ExportedPolicy, observation: Any) -> Any:
        sizes.append(len(observation["state"]))
        return act(self, observation)

    monkeypatch.setattr(ExportedPolicy, "select_action", counted)
    monkeypatch.setattr(export, "PAIRS", 32)
    export_policy(policy, data, split_first(data, 1), ExportParameters())
    assert sizes[1:] == [8, 8, 4]


def test_each_number_of_an_action_is_compared_in_its_own_range() -> None:
    contract = {"discrete": False, "low": [0.0, -100.0, 5.0], "high": [0.01, 100.0, 5.0]}
    wanted = np.array([[0.005, 50.0, 5.0]], np.float32)
    for change, share in (((0.001, 0.0, 0.0), 0.1), ((0.0, 0.02, 0.0), 1e-4), ((0.0, 0.0, 0.005), 0.1)):
        found = differences(contract, wanted + np.array(change), wanted)
        np.testing.assert_allclose(found, [share], rtol=0.01)
    rounded = np.nextafter(wanted, np.float32(1e9))
    assert differences(contract, rounded, wanted)[0] < 2e-5
    discrete = {"discrete": True}
    assert differences(discrete, np.array([0, 2]), np.array([0, 7])).tolist() == [0.0, 1.0]


@pytest.mark.parametrize(
    "kind",
    [
        "best discrete",
        "goal",
        *(
            pytest.param(kind, marks=pytest.mark.slow)
            for kind in ("discrete", "best", "goal discrete", "image", "goal image")
        ),
    ],
)
def test_every_policy_acts_the_same_with_any_number_of_rows(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    data = _data(kind)
    policy = _policy(kind, data).eval()
    loaded = load_policy(
        _write(tmp_path, export_policy(policy, data, split_first(data, 1), ExportParameters())),
        outside="ignore",
    )
    for count in (1, 2, 7):
        states = data.observations[:count].numpy()
        np.testing.assert_allclose(loaded.select_action(states), policy.act(states), atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["discrete", "image", "horizons"])
def test_every_value_is_exported(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    data = _data(kind)
    policy = make_actor(data, _normalisation(data), (8,)).eval()
    values = _values(data, (1, 3) if kind == "horizons" else (), regressed=kind == "discrete")
    files = export_policy(policy, data, split_first(data, 1), ExportParameters(), values=values)
    loaded = load_policy(_write(tmp_path, files), outside="ignore")
    states, actions = data.states()[:5], data.actions[:5]
    known = values(states, actions)
    given = actions.argmax(-1) if kind == "discrete" else actions
    np.testing.assert_allclose(loaded.value(states.numpy(), given.numpy()), known, rtol=1e-4)


@pytest.mark.parametrize("kind", ["parts", pytest.param("goal parts", marks=pytest.mark.slow)])
def test_each_part_of_an_observation_is_an_input(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    data = _data(kind)
    assert data.parts is not None
    policy, values = _policy(kind, data).eval(), _values(data, regressed=False)
    parameters = ExportParameters(observation_names=("x", "y", "z"))
    files = export_policy(policy, data, split_first(data, 1), parameters, values=values)
    contract = json.loads(files[CONTRACT])
    state, *images = contract["observations"]
    assert (state["name"], state["shape"], state["names"]) == ("state", [3], ["x", "y", "z"])
    logged = data.parts.unpack(data.observations)
    np.testing.assert_allclose(state["low"], logged["state"].amin(0))
    assert [(part["name"], part["shape"], part["dtype"]) for part in images] == [
        ("images.wrist", [12, 12, 3], "uint8"),
        ("images.top", [6, 6, 3], "uint8"),
    ]
    assert contract["value"]["inputs"] == ["state", "images.wrist", "images.top", "action"]
    assert files["policy/config.pbtxt"].count(b"TYPE_UINT8") == 2

    loaded = load_policy(_write(tmp_path, files), outside="ignore")
    for count in (1, 2, 7):
        given = {name: part[:count].numpy() for name, part in logged.items()}
        actions = policy.act(given)
        np.testing.assert_allclose(loaded.select_action(given), actions, atol=1e-5)
        np.testing.assert_allclose(loaded.value(given, actions), values(given, actions), rtol=1e-4)
    alone = loaded.select_action({name: part[0].numpy() for name, part in logged.items()})
    changed = logged["images.top"][0] ^ 255
    other = loaded.select_action(
        {name: part[0].numpy() for name, part in logged.items()} | {"images.top": changed}
    )
    assert not np.allclose(alone, other)
    assert self_test(tmp_path).startswith("4 actions as exported")


def test_a_part_may_have_the_name_of_a_value_in_the_graph(tmp_path: Path) -> None:
    data = make_packed_transitions(LENGTHS, ENDS)
    assert data.parts is not None
    renamed = {"state": "linear", "images.wrist": "view", "images.top": "tanh"}
    layout = Layout(tuple(replace(part, name=renamed[part.name]) for part in data.parts.parts))
    data = replace(data, parts=layout)
    policy, values = make_actor(data, _normalisation(data), (8,)).eval(), _values(data, regressed=False)
    files = export_policy(policy, data, split_first(data, 1), ExportParameters(), values=values)
    loaded = load_policy(_write(tmp_path, files), outside="ignore")
    logged = {name: part[:2].numpy() for name, part in layout.unpack(data.observations).items()}
    np.testing.assert_allclose(loaded.select_action(logged), policy.act(logged), atol=1e-5)


def test_a_part_whose_name_is_taken_is_one_line() -> None:
    data = make_packed_transitions(LENGTHS, ENDS)
    assert data.parts is not None
    layout = Layout(
        tuple(replace(part, name=part.name.replace("state", "value")) for part in data.parts.parts)
    )
    data = replace(data, parts=layout)
    policy = make_actor(data, _normalisation(data), (8,)).eval()
    with pytest.raises(
        InputError, match="part 'value' of the observations cannot be exported: the name is taken"
    ):
        export_policy(policy, data, split_first(data, 1), ExportParameters())
