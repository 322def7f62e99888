from __future__ import annotations

import importlib.metadata
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from metaworld.env_dict import ALL_V3_ENVIRONMENTS
from metaworld.utils import reward_utils
from scipy.spatial.transform import Rotation

from cvl_pipeline.environments import metaworld_speed
from cvl_pipeline.environments.metaworld import MetaWorldEnvironment
from cvl_pipeline.environments.metaworld_speed import FastRotation, fast_tolerance, faster

TASKS = (
    "door-open-v3", "coffee-pull-v3", "stick-push-v3", "push-v3", "box-close-v3", "faucet-close-v3",
    "basketball-v3", "sweep-into-v3",
)  # fmt: skip


def _original(value: Any) -> Any:
    return vars(value).get("original", value)


def _bytes(environment: MetaWorldEnvironment, seeds: tuple[int, ...], steps: int) -> list[bytes]:
    """All that episodes of random actions return, bit for bit; later ones start where earlier ones ended."""
    parts = []
    for seed in seeds:
        actions = np.random.default_rng(seed).uniform(-1.0, 1.0, (steps, 4)).astype(np.float32)
        observation, _ = environment.reset(seed=seed)
        parts.append(observation.tobytes())
        for action in actions.repeat(5, axis=0)[:steps]:
            observation, reward, _, _, info = environment.step(action)
            values = {name: float(value) for name, value in info.items()}
            parts.append(observation.tobytes() + repr((float(reward), values)).encode())
    return parts


@pytest.fixture
def untouched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Meta-World as it is installed, whatever other tests have built before."""
    tolerance = reward_utils.tolerance
    monkeypatch.setattr(reward_utils, "tolerance", _original(tolerance))
    for environment in ALL_V3_ENVIRONMENTS.values():
        for part in environment.__mro__:
            if vars(sys.modules[part.__module__]).get("Rotation") is FastRotation:
                monkeypatch.setattr(sys.modules[part.__module__], "Rotation", Rotation)


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize("task", TASKS)
def test_episodes_have_the_bits_of_the_untouched_package(task: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seeds, steps = (3, 4, 5), 60
    with monkeypatch.context() as patch:
        patch.setattr("cvl_pipeline.environments.metaworld.faster", lambda kind: kind)
        plain = MetaWorldEnvironment(task, steps)
        assert type(plain._environment) is ALL_V3_ENVIRONMENTS[task]
        expected = _bytes(plain, seeds, steps)
    fast = MetaWorldEnvironment(task, steps)
    assert isinstance(fast._environment, metaworld_speed._Known)
    assert vars(reward_utils.tolerance)["original"]
    assert _bytes(fast, seeds, steps) == expected
    again = MetaWorldEnvironment(task, steps)  # from the copy of the model
    assert _bytes(again, seeds[1:], steps) == expected[steps + 1 :]


@pytest.mark.usefixtures("untouched")
def test_another_version_of_metaworld_observes_and_rewards_for_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = reward_utils.tolerance
    monkeypatch.setattr(importlib.metadata, "version", lambda package: "4.0.0")
    kind = faster(ALL_V3_ENVIRONMENTS["reach-v3"])
    assert not issubclass(kind, metaworld_speed._Known)
    assert reward_utils.tolerance is before


def test_a_model_that_an_episode_has_changed_is_not_the_next_ones() -> None:
    first = MetaWorldEnvironment("door-open-v3", 5)
    place = first._environment.model.body("door").pos.copy()
    first.reset(seed=1)
    assert not np.array_equal(first._environment.model.body("door").pos, place)
    second = MetaWorldEnvironment("door-open-v3", 5)
    np.testing.assert_array_equal(second._environment.model.body("door").pos, place)


numbers = st.floats(-3.0, 3.0) | st.sampled_from([0.0, 0.5, -0.5, float("inf"), float("nan"), 1e308])


@given(
    numbers, st.booleans(), st.sampled_from([(0.0, 0.0), (0.0, 0.5), (-0.5, 0.5), (0.5, float("inf"))]),
    st.sampled_from([0, 0.0, 1e-9, 0.3, np.float64(1.5)]),
    st.sampled_from(["gaussian", "hyperbolic", "long_tail", "cosine", "linear", "quadratic", "tanh_squared"]),
)  # fmt: skip
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_tolerances_of_numbers_are_metaworlds_to_the_last_bit(
    x: float, scalar: bool, bounds: tuple[float, float], margin: float, sigmoid: str
) -> None:
    original = _original(reward_utils.tolerance)
    value = np.float64(x) if scalar else x
    expected = original(value, bounds=bounds, margin=margin, sigmoid=sigmoid)
    found = fast_tolerance(original)(value, bounds=bounds, margin=margin, sigmoid=sigmoid)
    assert type(found) is type(expected)
    assert np.float64(found).tobytes() == np.float64(expected).tobytes()


@pytest.mark.parametrize("faulty", [{"bounds": (1.0, 0.0)}, {"margin": -1.0}])
def test_faulty_tolerances_are_refused_as_by_metaworld(faulty: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"bound|margin"):
        fast_tolerance(_original(reward_utils.tolerance))(0.5, **faulty)


def test_tolerances_of_arrays_are_left_to_metaworld() -> None:
    original = _original(reward_utils.tolerance)
    x = np.linspace(-1.0, 1.0, 7)
    np.testing.assert_array_equal(fast_tolerance(original)(x, (0, 0.2), 0.4), original(x, (0, 0.2), 0.4))


@given(st.integers(0, 10**6), st.booleans())
def test_orientations_are_scipys_to_the_last_bit(seed: int, right_angles: bool) -> None:
    generator = np.random.default_rng(seed)
    angles = 90.0 * generator.integers(-2, 3, 3) if right_angles else generator.uniform(-180, 180, 3)
    matrix = Rotation.from_euler("xyz", angles, degrees=True).as_matrix()
    found = FastRotation.from_matrix(matrix)
    assert isinstance(found, FastRotation)
    assert found.as_quat().tobytes() == Rotation.from_matrix(matrix).as_quat().tobytes()


@pytest.mark.parametrize("change", ["stretched", "nearly", "stacked"])
def test_other_matrices_are_left_to_scipy(change: str) -> None:
    matrix = Rotation.from_euler("xyz", [10, 20, 30], degrees=True).as_matrix()
    changed = {"stretched": 1.1 * matrix, "nearly": matrix + 1e-12, "stacked": matrix[None]}[change]
    found = FastRotation.from_matrix(changed)
    assert isinstance(found, Rotation)
    assert found.as_quat().tobytes() == Rotation.from_matrix(changed).as_quat().tobytes()
    with pytest.raises(ValueError, match="determinant"):
        FastRotation.from_matrix(-matrix)


def test_all_else_of_rotation_is_scipys() -> None:
    assert FastRotation.from_euler("x", 1.0).as_quat().shape == (4,)
