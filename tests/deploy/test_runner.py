from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cvl_pipeline.deploy import runner
from cvl_pipeline.deploy.runner import (
    CONTRACT,
    POLICY_FILE,
    ExportedPolicy,
    LatePolicyError,
    PolicyError,
    PolicyWarning,
    load_policy,
    main,
    resized,
)
from cvl_pipeline.sources import pictures
from tests.deploy import models
from tests.project import PROJECT

STATE = np.array([0.1, 0.2, 0.3], np.float32)
ACTION = STATE @ models.WEIGHTS


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return models.write_folder(tmp_path / "exported", models.linear(), value=models.sum_of_action())


@pytest.fixture
def policy(folder: Path) -> ExportedPolicy:
    return load_policy(folder)


def test_the_runner_needs_numpy_and_onnx_runtime_alone(folder: Path) -> None:
    code = (
        "import sys; from cvl_pipeline.deploy.runner import load_policy; "
        "print(load_policy(sys.argv[1]).select_action([0.1, 0.2, 0.3]).tolist()); "
        "print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    )
    environment = os.environ | {"PYTHONPATH": str(PROJECT / "src")}
    result = subprocess.run(
        [sys.executable, "-c", code, str(folder)], env=environment, capture_output=True, text=True, check=True
    )
    action, modules = result.stdout.splitlines()
    np.testing.assert_allclose(json.loads(action), ACTION, rtol=1e-6)
    assert "onnxruntime" in modules.split()
    assert not {"torch", "kedro", "pandas", "pydantic", "onnx", "scipy", "lightning"} & set(modules.split())


def test_the_copied_file_alone_acts_and_tests_its_folder(tmp_path: Path) -> None:
    examples = {"state": np.stack([STATE, -STATE]), "action": np.stack([ACTION, -ACTION])}
    folder = models.write_folder(tmp_path / "exported", models.linear(), examples=examples)
    shutil.copy(runner.__file__, folder)
    command = [sys.executable, "-I", str(folder / "runner.py")]
    result = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert result.stdout.startswith("2 actions as exported, largest error 0")
    (folder / POLICY_FILE).write_bytes(models.square_root())
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert (result.returncode, result.stdout) == (1, "")
    assert "policy.onnx was changed" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_the_test_of_itself_finds_another_policy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    examples = {"state": STATE[None], "action": ACTION[None] + 0.01}
    folder = models.write_folder(tmp_path / "exported", models.linear(), examples=examples)
    assert main([str(folder)]) == 1
    assert re.search(
        r"differ from the exported policy's by 0\.00[45]\d* of their range", capsys.readouterr().err
    )


@pytest.mark.parametrize(
    "kind", [list, np.asarray, np.float64, np.ma.array, torch.tensor, lambda x: {"state": x}]
)
def test_a_single_observation_gives_a_single_action(policy: ExportedPolicy, kind: Any) -> None:
    policy.reset()
    action = policy.select_action(kind(STATE))
    assert (action.shape, action.dtype) == ((2,), np.float32)
    np.testing.assert_allclose(action, ACTION, rtol=1e-6)


def test_many_observations_give_many_actions_within_the_bounds(policy: ExportedPolicy) -> None:
    states = np.linspace(-1.0, 1.0, 15).reshape(5, 3)
    actions = policy.select_action(states)
    np.testing.assert_allclose(actions, np.clip(states @ models.WEIGHTS, -1.0, 1.0), atol=1e-6)
    assert np.abs(states @ models.WEIGHTS).max() > 1.0


@pytest.mark.parametrize(
    ("observation", "words"),
    [
        ([0.1, np.nan, 0.3], ["'state'", "not a finite number", "index 1"]),
        ([0.1, 0.2, np.inf], ["not a finite number", "index 2"]),
        ([0.1, 0.2, 1e300], ["not a finite number in single precision"]),
        ([0.1, 0.2], ["shape (2,)", "takes (3,) or (B, 3)"]),
        (np.zeros((0, 3)), ["shape (0, 3)"]),
        (np.zeros((2, 2, 3)), ["shape (2, 2, 3)"]),
        (0.5, ["shape ()"]),
        (["a", "b", "c"], ["give numbers"]),
        (None, ["type object"]),
        (
            [[0.1, 0.2, 0.3], [0.4]],
            ["observation 'state' is not an array of numbers", "lists of equal length"],
        ),
        (torch.ones(3, requires_grad=True), ["'state' is not an array of numbers", "detach"]),
        (torch.ones(3, device="meta"), ["'state' is not an array of numbers", "meta"]),
        (np.ma.array(STATE, mask=[False, True, False]), ["'state' has masked entries", "fill them in"]),
        ([np.ma.array(STATE), np.ma.array(STATE, mask=True)], ["'state' has masked entries"]),
        ({"other": STATE}, ["has the parts other", "takes state"]),
        ({"state": STATE, "image": STATE}, ["has the parts state, image"]),
        ({}, ["has the parts none"]),
    ],
)
def test_a_wrong_observation_is_one_line_and_no_action(
    policy: ExportedPolicy, observation: Any, words: list[str]
) -> None:
    with pytest.raises(PolicyError) as caught:
        policy.select_action(observation)
    assert all(word in str(caught.value) for word in words), caught.value
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("place", [-1, 10, 40])
def test_a_changed_byte_of_the_model_is_refused(folder: Path, place: int) -> None:
    content = bytearray((folder / POLICY_FILE).read_bytes())
    content[place] ^= 1
    (folder / POLICY_FILE).write_bytes(content)
    with pytest.raises(PolicyError, match=r"policy\.onnx was changed: its SHA-256"):
        load_policy(folder)


def test_a_changed_contract_is_refused_whatever_was_changed(folder: Path) -> None:
    good = (folder / CONTRACT).read_bytes()
    letters = [place for place in range(len(good)) if chr(good[place]).isalnum()]
    for place in letters[::7]:
        content = bytearray(good)
        content[place] = ord("7") if content[place] != ord("7") else ord("8")
        (folder / CONTRACT).write_bytes(content)
        with pytest.raises(PolicyError, match=r"policy\.json"):
            load_policy(folder)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "it is no JSON"),
        (b"[]", "no contract"),
        (b'{"format": 1}', "no contract"),
        (b"\xff\xfe", "it is no JSON"),
    ],
)
def test_other_content_of_the_contract_is_refused(folder: Path, content: bytes, words: str) -> None:
    (folder / CONTRACT).write_bytes(content)
    with pytest.raises(PolicyError, match=words):
        load_policy(folder)


def test_missing_files_other_formats_and_other_models_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match=r"nowhere/policy\.json cannot be read"):
        load_policy(tmp_path / "nowhere")
    contract = json.loads((folder / CONTRACT).read_text())
    contract.pop("checksum")
    models.seal(folder, contract | {"format": 99})
    with pytest.raises(PolicyError, match="has format 99, this runner reads 1"):
        load_policy(folder / CONTRACT)
    (folder / POLICY_FILE).write_bytes(b"no model")
    contract["files"][POLICY_FILE] = runner.digest(b"no model")
    models.seal(folder, contract)
    with pytest.raises(PolicyError, match="ONNX Runtime cannot load it"):
        load_policy(folder)
    (folder / POLICY_FILE).unlink()
    with pytest.raises(PolicyError, match=r"policy\.onnx cannot be read"):
        load_policy(folder)


def test_an_answer_that_is_no_number_is_no_action(tmp_path: Path) -> None:
    policy = load_policy(models.write_folder(tmp_path / "exported", models.square_root()))
    np.testing.assert_allclose(policy.select_action([0.25, 0.5, 0.0]), np.sqrt([0.25, 0.5]), rtol=1e-6)
    with pytest.raises(PolicyError, match="action is not a finite number"):
        policy.select_action([-0.5, 0.5, 0.0])


def test_numbers_far_outside_of_the_data_warn_once_per_episode(folder: Path) -> None:
    policy = load_policy(folder)
    far = [0.0, 3.5, 0.0]  # allowed is -3 to 3: the width of the data, 2, on both sides
    with pytest.warns(PolicyWarning, match=r"'state' is 3\.5 at index 1, .* allowed is -3 to 3"):
        policy.select_action(far)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        policy.select_action(far)
        policy.select_action([0.0, 2.9, 0.0])
        load_policy(folder, outside="ignore").select_action([0.0, 1e30, 0.0])
    policy.reset()
    with pytest.warns(PolicyWarning):
        policy.select_action(far)
    with pytest.raises(PolicyError, match="far outside"):
        load_policy(folder, outside="raise", margin=0.0).select_action([0.0, 1.01, 0.0])


def test_the_watchdog_warns_or_raises(folder: Path) -> None:
    with pytest.warns(PolicyWarning, match=r"ms; at most 1e-06 ms are allowed"):
        load_policy(folder, latency_ms=1e-6).select_action(STATE)
    with pytest.raises(LatePolicyError, match="the action took"):
        load_policy(folder, latency_ms=1e-6, late="raise").select_action(STATE)
    load_policy(folder, latency_ms=1e6, late="raise").select_action(STATE)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"late": "stop"}, "late is 'stop'; give one of warn, raise"),
        ({"outside": "no"}, "outside is 'no'"),
        ({"latency_ms": 0.0}, "latency_ms is 0.0"),
        ({"latency_ms": "5"}, "latency_ms is '5'; give a number above 0, or None"),
        ({"margin": -1.0}, "margin is -1.0"),
        ({"margin": "x"}, "margin is 'x'; give a number from 0 on"),
        ({"margin": None}, "margin is None; give a number"),
        ({"threads": 0}, "threads is 0; give a whole number from 1 on"),
        (
            {"providers": ["CUDAExecutionProvider"]},
            "does not have CUDAExecutionProvider; .*CPUExecutionProvider",
        ),
        ({"providers": [("CUDAExecutionProvider", {"device_id": 0})]}, "does not have CUDAExecutionProvider"),
        ({"providers": "CPUExecutionProvider"}, "providers is 'CPUExecutionProvider'; give a list"),
        ({"providers": [1]}, r"providers is \[1\]"),
    ],
)
def test_options_that_do_not_exist_are_refused(folder: Path, options: dict[str, Any], words: str) -> None:
    with pytest.raises(PolicyError, match=words):
        load_policy(folder, **options)


@pytest.mark.filterwarnings("ignore:Specified provider")
def test_a_provider_that_is_there_but_does_not_work_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: names)
    with pytest.raises(
        PolicyError, match=r"^CUDAExecutionProvider does not work .* took CPUExecutionProvider;"
    ):
        load_policy(folder, providers=names)


def test_values_of_actions(policy: ExportedPolicy, tmp_path: Path) -> None:
    assert policy.value(STATE, [0.25, 0.5]) == pytest.approx(0.75)
    np.testing.assert_allclose(policy.value([STATE, STATE], [[0.0, 1.0], [0.5, 0.25]]), [1.0, 0.75])
    for action in ([0.25], [[0.25, 0.5]], ["a", "b"]):
        with pytest.raises(PolicyError, match="action has type"):
            policy.value(STATE, action)
    unread: list[Any] = [
        [[0.25], [0.25, 0.5]],
        torch.zeros(2, requires_grad=True),
        torch.zeros(2, device="meta"),
    ]
    for action in unread:
        with pytest.raises(
            PolicyError, match=r"^action is not an array of numbers \(.*\); give a NumPy array"
        ):
            policy.value(STATE, action)
    with pytest.raises(PolicyError, match="action has masked entries"):
        policy.value(STATE, np.ma.array([0.25, 0.5], mask=[True, False]))
    with pytest.raises(PolicyError, match="finite"):
        policy.value(STATE, [np.nan, 0.0])
    without = load_policy(models.write_folder(tmp_path / "without", models.linear()))
    with pytest.raises(PolicyError, match="no value was exported"):
        without.value(STATE, [0.0, 0.0])


def test_discrete_actions_are_whole_numbers(tmp_path: Path) -> None:
    value = models.sum_of_action()
    policy = load_policy(
        models.write_folder(tmp_path / "exported", models.choice(), value=value, discrete=True)
    )
    action = policy.select_action([0.1, 0.5, 0.0])
    assert action == 1
    assert type(action) is int
    np.testing.assert_array_equal(policy.select_action([[0.1, 0.5, 0.0], [0.5, 0.1, 0.0]]), [1, 0])
    assert policy.value(STATE, 1) == 1.0
    for wrong in (2, -1, 0.0, [0.0, 1.0], np.ma.masked):
        with pytest.raises(PolicyError, match="action"):
            policy.value(STATE, wrong)
    many = np.arange(100)
    with pytest.raises(PolicyError, match=r"^action is 2; give whole numbers from 0 to 1$"):
        policy.value(np.tile(STATE, (len(many), 1)), many)


def test_observations_of_several_parts_come_by_name(tmp_path: Path) -> None:
    policy = load_policy(models.write_folder(tmp_path / "exported", models.with_image(), image=True))
    image = np.ones((2, 2, 1), np.int64)
    action = policy.select_action({"image": image, "state": STATE - 1.0})
    np.testing.assert_allclose(action, (STATE - 1.0) @ models.WEIGHTS + 1.0, atol=1e-6)
    wrong: list[tuple[Any, str]] = [
        (STATE, "give one per part, by its name: state, image"),
        ({"state": STATE}, "has the parts state"),
        ({"state": STATE, "image": image * 256}, "whole numbers from 0 to 255"),
        ({"state": STATE, "image": image * 0.5}, "whole numbers from 0 to 255"),
        ({"state": STATE, "image": image[0]}, r"'image' has shape \(2, 1\)"),
        ({"state": STATE, "image": image[None]}, "different numbers of rows"),
    ]
    for observation, words in wrong:
        with pytest.raises(PolicyError, match=words):
            policy.select_action(observation)


@given(
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    wanted=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    channels=st.sampled_from([1, 3]),
    seed=st.integers(0, 1000),
)
def test_the_robot_resizes_pictures_as_the_source_did(
    size: tuple[int, int], wanted: tuple[int, int], channels: int, seed: int
) -> None:
    picture = np.random.default_rng(seed).integers(0, 256, (*size, channels), dtype=np.uint8)
    small = pictures.resized(picture[None], wanted)[0]
    np.testing.assert_array_equal(resized(picture, *wanted), small)
    np.testing.assert_array_equal(resized(picture.astype(np.float64), *wanted), small)


@pytest.mark.parametrize(
    ("picture", "words"),
    [
        (np.full((4, 4, 3), 0.5), "picture is an image: give whole numbers from 0 to 255"),
        (np.full((4, 4, 3), 256), "whole numbers from 0 to 255"),
        (np.full((4, 4, 3), np.nan), "whole numbers from 0 to 255"),
        (np.zeros((4, 4), np.uint8), r"picture has type uint8 and shape \(4, 4\); give \(H, W, C\)"),
        ([["a"]], "picture has type"),
        ([[0], [0, 1]], "picture is not an array of numbers"),
    ],
)
def test_a_picture_that_is_none_is_not_resized(picture: Any, words: str) -> None:
    for size in ((2, 2), (4, 4)):
        with pytest.raises(PolicyError, match=words):
            resized(picture, *size)
