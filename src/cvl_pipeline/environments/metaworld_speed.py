"""Meta-World's simulations in less time, with the same bits."""

from __future__ import annotations

import copy
import importlib.metadata
import math
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from cvl_pipeline.environments.base import Array

KNOWN_VERSIONS = ("3.1.1",)
"""Versions of Meta-World whose observations and rewards this module computes; others do so themselves."""


def faster(environment: type[Any]) -> type[Any]:
    """Return a class of the same simulation as one of Meta-World's, which is built and stepped in less time.

    Args:
        environment: one of ``ALL_V3_ENVIRONMENTS``.
    """
    known = importlib.metadata.version("metaworld") in KNOWN_VERSIONS
    for part in environment.__mro__ if known else ():  # observations are made in the modules of these classes
        names = vars(sys.modules[part.__module__])
        if "Rotation" in names and names["Rotation"] is _scipys_rotation():
            names["Rotation"] = FastRotation
    if known:
        rewards = vars(sys.modules["metaworld.utils.reward_utils"])
        rewards["tolerance"] = fast_tolerance(rewards["tolerance"])
    return type(environment.__name__, (_Known if known else _Compiled, environment), {})


class _Compiled:
    """Compiles a model once per process; a copy of it takes a seventh of the time."""

    def _initialize_simulation(self: Any) -> tuple[Any, Any]:
        import mujoco

        if self.fullpath not in _MODELS:
            _MODELS[self.fullpath] = super()._initialize_simulation()[0]  # type: ignore[misc]
        # Episodes change their model, such as the place of a door, and so never see the compiled one.
        model = copy.copy(_MODELS[self.fullpath])
        return model, mujoco.MjData(model)


_MODELS: dict[str, Any] = {}


class _Known(_Compiled):
    """Takes half the time to reset and a third to observe, as a known version of Meta-World would."""

    _in_vain = False

    def reset(self: Any, *arguments: Any, **settings: Any) -> Any:
        # Meta-World resets its model, empties the simulation, and resets the model again. The first time, moving the
        # hand changes nothing that lasts, and it takes nearly all of the time. Some tasks read where it was.
        self._in_vain = hasattr(self, "init_tcp")
        return super().reset(*arguments, **settings)  # type: ignore[misc]

    def _reset_hand(self: Any, *arguments: Any, **settings: Any) -> None:
        if not self._in_vain:
            super()._reset_hand(*arguments, **settings)  # type: ignore[misc]
        self._in_vain = False

    def _get_curr_obs_combined_no_goal(self: Any) -> Array:
        objects, orientations = self._get_pos_objects(), self._get_quat_objects()
        count = len(objects) // 3
        if count == 0 or objects.shape != (3 * count,) or orientations.shape != (4 * count,):
            other: Array = super()._get_curr_obs_combined_no_goal()  # type: ignore[misc]
            return other
        fingers = self.data.body("rightclaw").xpos - self.data.body("leftclaw").xpos
        observation = np.zeros(4 + self._obs_obj_max_len)
        observation[:3] = self.data.body("hand").xpos
        observation[3] = min(max(math.sqrt(fingers.dot(fingers)) / 0.1, 0.0), 1.0)
        for i in range(count):
            observation[4 + 7 * i : 7 + 7 * i] = objects[3 * i : 3 * i + 3]
            observation[7 + 7 * i : 11 + 7 * i] = orientations[4 * i : 4 * i + 4]
        return observation

    def _get_obs(self: Any) -> Array:
        goal = self._get_pos_goal()
        current = self._get_curr_obs_combined_no_goal()
        if self._partially_observable:
            goal = np.zeros_like(goal)
        observation = np.concatenate((current, self._prev_obs, goal))
        self._prev_obs = current
        return observation


def fast_tolerance(original: Callable[..., Any]) -> Callable[..., Any]:
    """Return Meta-World's ``tolerance``, on which all rewards are built, with a short way for single numbers.

    NumPy's functions of conditions take most of its time, and numbers need none of them.
    """
    if "original" in vars(original):
        return original
    sigmoids = vars(sys.modules[original.__module__])["_sigmoids"]

    def tolerance(
        x: Any,
        bounds: Any = (0.0, 0.0),
        margin: Any = 0.0,
        sigmoid: Any = "gaussian",
        value_at_margin: Any = 0.1,
    ) -> Any:
        lower, upper = bounds
        if type(x) not in (float, np.float64) or not (lower <= upper and margin > 0):
            return original(x, bounds, margin, sigmoid, value_at_margin)
        if lower <= x <= upper:
            return 1.0
        # The original divides arrays, so overflow is no error.
        distance = np.float64(lower - x if x < lower else x - upper) / margin
        return float(sigmoids(distance, value_at_margin, sigmoid))

    vars(tolerance)["original"] = original
    return tolerance


def _scipys_rotation() -> Any:
    """Scipy's class, which Meta-World imports; no import here, since data does not depend on scipy's version."""
    return vars(sys.modules["scipy.spatial.transform"])["Rotation"]


class _ScipyOtherwise(type):
    def __getattr__(cls, name: str) -> Any:
        return getattr(_scipys_rotation(), name)


class FastRotation(metaclass=_ScipyOtherwise):
    """Scipy's ``Rotation`` for one matrix, with the same bits in a tenth of the time; all else is left to scipy.

    Every step reads an orientation. Scipy takes any number of matrices from any array library, which costs a fifth of
    the time of a step.
    """

    def __init__(self, quaternion: Array) -> None:
        """Keep a quaternion (x, y, z, w)."""
        self._quaternion = quaternion

    @staticmethod
    def from_matrix(matrix: Array) -> Any:
        """Take a rotation matrix, (3, 3); scipy takes all others: several, left-handed or not quite orthogonal."""
        if matrix.shape != (3, 3):
            return _scipys_rotation().from_matrix(matrix)
        (a, b, c), (d, e, f), (g, h, i) = matrix.tolist()
        determinant = a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g)
        lengths = a * a + b * b + c * c, d * d + e * e + f * f, g * g + h * h + i * i
        products = a * d + b * e + c * f, a * g + b * h + c * i, d * g + e * h + f * i
        # Negated, so that NaN goes to scipy too. Scipy changes matrices from 1e-12 on.
        if not (
            determinant > 0
            and max(abs(length - 1) for length in lengths) < 1e-13
            and max(map(abs, products)) < 1e-13
        ):
            return _scipys_rotation().from_matrix(matrix)
        trace = a + e + i
        largest = max(a, e, i, trace)
        if largest == a:
            quaternion = 1 - trace + 2 * a, d + b, g + c, h - f
        elif largest == e:
            quaternion = b + d, 1 - trace + 2 * e, h + f, c - g
        elif largest == i:
            quaternion = c + g, f + h, 1 - trace + 2 * i, d - b
        else:
            quaternion = h - f, c - g, d - b, 1 + trace
        x, y, z, w = quaternion
        norm = math.sqrt(x * x + y * y + z * z + w * w)
        return FastRotation(np.array([x / norm, y / norm, z / norm, w / norm]))

    def as_quat(self) -> Array:
        """The quaternion (x, y, z, w)."""
        return self._quaternion
