"""Meta-World seen by cameras, beside the state or alone."""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Sequence
from functools import cache
from typing import Any, SupportsFloat

import gymnasium
import numpy as np

from cvl_pipeline.environments.base import Array, Environment
from cvl_pipeline.environments.metaworld import MetaWorldEnvironment, MetaWorldGoals
from cvl_pipeline.environments.video import MISSING_GL, render_plainly
from cvl_pipeline.episodes.parts import Layout, Part
from cvl_pipeline.errors import InputError, one_line

STATE = "state"
"""Name of the part that has Meta-World's own observation."""


class MetaWorldCameras(Environment):
    """A Meta-World task whose observations are pictures of its cameras, and its state.

    Pictures are as Meta-World renders them: those of the cameras in the corners are upside down. Shadows, reflections
    and multisampling are off, because without a GPU they take twenty times as long.
    """

    def __init__(
        self,
        task: str,
        episode_steps: int,
        cameras: Sequence[str],
        size: int,
        state: bool = True,
        goals: bool = False,
    ) -> None:
        """Build the simulation; pictures need graphics only from the first reset on.

        Args:
            task: see ``MetaWorldEnvironment``.
            episode_steps: likewise.
            cameras: names of the model's cameras, such as ``corner``.
            size: height and width of the pictures, in pixels.
            state: whether the state is a part, beside the pictures.
            goals: whether ``info["goal"]`` of the reset is what is seen when the goal is reached; see
                ``MetaWorldGoals``.

        Raises:
            InputError: unknown task.
        """
        self._environment = (
            MetaWorldGoals(task, episode_steps, self._packed)
            if goals
            else MetaWorldEnvironment(task, episode_steps)
        )
        self.simulation = self._environment.simulation
        self._task, self._cameras, self._size = task, tuple(cameras), size
        numbers = self._environment.observation_space.shape
        parts = [Part(STATE, numbers, "float32")] if state else []
        parts += [Part(f"images.{name}", (size, size, 3), "uint8") for name in cameras]
        self.parts = Layout(tuple(parts))
        self.discrete = False
        self.action_space = self._environment.action_space
        self.observation_space = gymnasium.spaces.Box(0, 255, (self.parts.nbytes,), np.uint8)

    def reset(self, *, seed: int) -> tuple[Array, dict[str, Any]]:
        """Start the episode that ``seed`` determines."""
        observation, info = self._environment.reset(seed=seed)
        return self._packed(observation), info

    def step(self, action: Array) -> tuple[Array, SupportsFloat, bool, bool, dict[str, Any]]:
        """Advance by one control step."""
        observation, *others = self._environment.step(action)
        return self._packed(observation), *others  # type: ignore[return-value]

    def close(self) -> None:
        """Free the simulation; the canvas serves other environments of the process."""
        self._environment.close()

    def _packed(self, state: Array) -> Array:
        canvas = _canvas(self._task, self._size)
        pictures = canvas.pictures(self.simulation.model, self.simulation.data, self._cameras)
        values: dict[str, Any] = {
            f"images.{name}": picture for name, picture in zip(self._cameras, pictures, strict=True)
        }
        if STATE in self.parts.names:
            values[STATE] = state
        return self.parts.pack(values).numpy()


@cache
def _canvas(task: str, size: int) -> _Canvas:
    """The canvas of this process; its environments of a task have models with the same meshes."""
    environment = MetaWorldEnvironment(task, 1)
    try:
        return _Canvas(environment.simulation.model, size)
    except (ImportError, AttributeError, RuntimeError) as error:
        raise InputError(f"dataset.cameras: cannot render ({one_line(error)[:200]}); {MISSING_GL}") from error


class _Canvas:
    """Takes pictures of simulations of one model."""

    def __init__(self, model: Any, size: int) -> None:
        import mujoco

        if sys.platform == "linux" and not os.environ.get("MUJOCO_GL"):
            # MuJoCo would take GLFW, which needs a display. It reads MUJOCO_GL when it is imported, which is long ago.
            from mujoco.egl import GLContext
        else:
            from mujoco.gl_context import GLContext
        self._gl = GLContext(size, size)
        atexit.register(self._gl.free)  # while the modules that it needs are there
        self._gl.make_current()
        samples, model.vis.quality.offsamples = model.vis.quality.offsamples, 0
        self._context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100.value)
        model.vis.quality.offsamples = samples
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN.value, self._context)
        self._scene = mujoco.MjvScene(model, maxgeom=2000)
        render_plainly(self._scene)
        self._options, self._camera = mujoco.MjvOption(), mujoco.MjvCamera()
        self._camera.type = mujoco.mjtCamera.mjCAMERA_FIXED
        self._frame = mujoco.MjrRect(0, 0, size, size)

    def pictures(self, model: Any, data: Any, cameras: Sequence[str]) -> list[Array]:
        """Pictures of the present state, (size, size, 3) uint8 each."""
        import mujoco

        self._gl.make_current()
        taken: list[Array] = []
        for name in cameras:
            self._camera.fixedcamid = model.camera(name).id
            mujoco.mjv_updateScene(
                model, data, self._options, None, self._camera, mujoco.mjtCatBit.mjCAT_ALL.value, self._scene
            )
            mujoco.mjr_render(self._frame, self._scene, self._context)
            picture = np.empty((self._frame.height, self._frame.width, 3), dtype=np.uint8)
            mujoco.mjr_readPixels(picture, None, self._frame, self._context)
            taken.append(np.flipud(picture))
        return taken
