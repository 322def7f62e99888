"""Videos of recorded episodes, rendered in a process of its own.

An episode is not run again with its policy: its actions are repeated from the same seed, so the video shows exactly the
episode that was scored, and any policy can be shown. MuJoCo reads ``MUJOCO_GL`` when it is imported, so a process of
its own leaves the run's simulators as they are. It also survives a crash of the graphics library.
"""

from __future__ import annotations

import logging
import os
import pickle
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any

import gymnasium
import numpy as np

from cvl_pipeline.environments.base import Array, Environment
from cvl_pipeline.environments.parameters import RANKS, VideoParameters
from cvl_pipeline.errors import one_line, printable

if TYPE_CHECKING:  # the process that renders needs neither
    import pandas as pd

    from cvl_pipeline.episodes.container import Transitions

logger = logging.getLogger(__name__)

MISSING_LIBRARY = "pip install 'cvl-pipeline[videos]'"
MISSING_GL = "without a GPU, MuJoCo needs Mesa (apt-get install libegl1 libegl-mesa0 libgl1-mesa-dri)"
GL = re.compile("mujoco_gl|egl|opengl|osmesa|glfw|gladload|framebuffer|glcontext", re.IGNORECASE)
"""Words in errors of missing graphics libraries."""
METAWORLD_CAMERA = ("corner2", (0.75, 0.075, 0.7))
"""Name of a camera of Meta-World, and a place for it nearer to the table, in metres. It is mounted upside down."""


@dataclass(frozen=True)
class Replay:
    """An episode to repeat: its seed, its T actions (T, A), and the observation at its end, (O,) or (H, W, C)."""

    seed: int
    actions: Array
    last_observation: Array


def ranked_episodes(rollouts: pd.DataFrame) -> dict[str, int]:
    """Return the positions of the best, the median and the worst episode by return.

    No episode is taken twice: two have a best and a median one, one is the median. Unknown returns count as the lowest.

    Args:
        rollouts: one row per episode, with a column ``return``.
    """
    order = np.argsort(rollouts["return"].fillna(-np.inf).to_numpy(np.float64), kind="stable")
    places = {"median": (len(order) - 1) // 2, "best": len(order) - 1, "worst": 0}
    chosen: dict[str, int] = {}
    for rank, place in places.items():
        if int(order[place]) not in chosen.values():
            chosen[rank] = int(order[place])
    return {rank: chosen[rank] for rank in RANKS if rank in chosen}


def record(
    make_environment: Callable[[], Environment],
    transitions: Transitions,
    rollouts: pd.DataFrame,
    settings: VideoParameters,
    name: str,
) -> dict[str, bytes]:
    """Record the best, the median and the worst episode of a policy as MP4 files (H.264).

    If they cannot be rendered, a warning of one line says why, and the result is empty.

    Args:
        make_environment: of the evaluation; importable, because another process calls it.
        transitions: the episodes.
        rollouts: one row per episode, with columns ``return`` and ``episode_seed``.
        settings: of the videos.
        name: of the policy, in messages.
    """
    chosen = ranked_episodes(rollouts)
    replays = [
        _replay(transitions, episode, int(rollouts["episode_seed"].iloc[episode]))
        for episode in chosen.values()
    ]
    try:
        videos, repeated = _in_another_process((make_environment, replays, settings))
    except RenderingError as error:
        logger.warning("No videos of %s: %s", name, printable(str(error)))
        return {}
    if not all(repeated):
        logger.warning(
            "The environment does not repeat an episode from its seed and actions, so videos of %s show others",
            name,
        )
    return dict(zip(chosen, videos, strict=True))


class RenderingError(Exception):
    """Why nothing was rendered."""


def _replay(transitions: Transitions, episode: int, seed: int) -> Replay:
    start, end = (int(row) for row in transitions.episode_starts[episode : episode + 2])
    return Replay(
        seed,
        transitions.actions[start:end].numpy(),
        transitions.observations[end + episode].numpy(),  # every earlier episode has an observation more
    )


def _in_another_process(task: Any) -> tuple[list[bytes], list[bool]]:
    """Return the videos of ``render``; raises RenderingError."""
    variables = {"MUJOCO_GL": "egl"} if sys.platform == "linux" else {}
    environment = {
        **variables, "SDL_VIDEODRIVER": "dummy", "PYGAME_HIDE_SUPPORT_PROMPT": "1", **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
    }  # fmt: skip
    with tempfile.TemporaryFile() as errors, subprocess.Popen(
        [sys.executable, "-m", __name__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, env=environment
    ) as process:  # fmt: skip
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            pickle.dump(task, process.stdin)
            process.stdin.flush()
            # The pipe stays open: the process ends if this one does.
            answer = pickle.load(process.stdout)  # noqa: S301 (our own process)
        except (BrokenPipeError, EOFError, pickle.PickleError):
            with suppress(BrokenPipeError):
                process.stdin.close()
            errors.seek(0)
            lines = errors.read().decode(errors="replace").split("\n")
            last = next((line for line in reversed(lines) if line.strip()), "no message")
            raise RenderingError(f"the process that renders died ({last}); {MISSING_GL}") from None
    if isinstance(answer, str):
        raise RenderingError(answer)
    videos: tuple[list[bytes], list[bool]] = answer
    return videos


def render(
    make_environment: Callable[[], Environment], replays: Sequence[Replay], settings: VideoParameters
) -> tuple[list[bytes], list[bool]]:
    """Repeat episodes and return their videos, and whether each ended where it did before."""
    videos, repeated = [], []
    with closing(make_environment()) as environment:
        for replay in replays:
            ends: list[Array] = []
            videos.append(encoded(_frames(environment, replay, settings, ends), settings))
            repeated.append(np.allclose(ends[-1], replay.last_observation, rtol=1e-4, atol=1e-4))
    return videos, repeated


def _frames(
    environment: Environment, replay: Replay, settings: VideoParameters, ends: list[Array]
) -> Iterator[Array]:
    """Frames (H, W, 3) of the start, of every n-th step and of the end; the last observation is put into ``ends``."""
    observation, _ = environment.reset(seed=replay.seed)
    with closing(Camera(environment, settings.size)) as camera:
        yield camera.picture()
        for step, action in enumerate(replay.actions, 1):
            observation, _, terminated, truncated, _ = environment.step(action)
            over = terminated or truncated or step == len(replay.actions)
            if over or step % settings.every == 0:
                yield camera.picture()
            if over:
                break
    ends.append(observation)


def render_plainly(scene: Any) -> None:
    """Leave shadows and reflections out of a scene of MuJoCo; a software renderer takes twenty times as long with them.

    Multisampling takes as long. Models switch it off: ``model.vis.quality.offsamples = 0``.
    """
    import mujoco

    for flag in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION):
        scene.flags[flag] = 0


class Camera:
    """Takes pictures of an environment in its present state."""

    def __init__(self, environment: Environment, size: int) -> None:
        """Look at the environment after a reset.

        Args:
            environment: MuJoCo's, or one with Gymnasium's ``render``.
            size: height and width of MuJoCo's pictures.

        Raises:
            RenderingError: the environment cannot be rendered.
        """
        self._outer: Any = getattr(environment, "simulation", environment)
        self._inner: Any = getattr(self._outer, "unwrapped", self._outer)
        self._renderer: Any = None
        self._upside_down = False
        model = getattr(self._inner, "model", None)
        if "mujoco" in sys.modules and isinstance(model, sys.modules["mujoco"].MjModel):
            self._renderer = self._mujoco(model, size)
        elif isinstance(getattr(self._inner, "metadata", None), Mapping):
            modes = self._inner.metadata.get("render_modes")
            if "rgb_array" in (modes or ()):
                self._inner.render_mode = "rgb_array"  # it was made without one
            elif modes or getattr(type(self._inner), "render", None) is gymnasium.Env.render:
                raise RenderingError("the environment has no render mode 'rgb_array'")

    def _mujoco(self, model: Any, size: int) -> Any:
        import mujoco

        model.vis.quality.offsamples = 0  # see render_plainly
        model.vis.global_.offwidth = max(size, model.vis.global_.offwidth)
        model.vis.global_.offheight = max(size, model.vis.global_.offheight)
        renderer = mujoco.Renderer(model, size, size)
        self._view = mujoco.MjvCamera()
        mujoco.mjv_defaultFreeCamera(model, self._view)
        own = getattr(self._inner, "mujoco_renderer", None)
        wanted = [METAWORLD_CAMERA[0], getattr(own, "camera_name", None), "track"]
        cameras = [model.camera(index).name for index in range(model.ncam)]
        name = next((name for name in wanted if name in cameras), None)
        if name is not None:
            self._view.type, self._view.fixedcamid = mujoco.mjtCamera.mjCAMERA_FIXED, cameras.index(name)
            self._upside_down = name == METAWORLD_CAMERA[0]
        else:
            for field, value in (getattr(own, "default_cam_config", None) or {}).items():
                if isinstance(value, np.ndarray):
                    getattr(self._view, field)[:] = value
                else:
                    setattr(self._view, field, value)
        return renderer

    def picture(self) -> Array:
        """Return a picture, (H, W, 3) uint8; raises RenderingError."""
        if self._renderer is not None:
            with self._moved():
                self._renderer.update_scene(self._inner.data, self._view)
            render_plainly(self._renderer.scene)
            picture: Any = self._renderer.render()
        else:
            picture = self._outer.render()
        pixels = np.asarray(picture)
        if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8:
            raise RenderingError(
                f"the environment's render returns {type(picture).__name__}, not (H, W, 3) uint8"
            )
        return pixels[::-1, ::-1] if self._upside_down else pixels

    @contextmanager
    def _moved(self) -> Iterator[None]:
        """Move Meta-World's camera to where all of the scene is seen; observations may show what it sees itself."""
        if not self._upside_down:
            yield
            return
        before = self._inner.model.cam_pos[self._view.fixedcamid].copy()
        self._set_camera(METAWORLD_CAMERA[1])
        try:
            yield
        finally:
            self._set_camera(before)

    def _set_camera(self, position: Any) -> None:
        import mujoco

        self._inner.model.cam_pos[self._view.fixedcamid] = position
        mujoco.mj_camlight(self._inner.model, self._inner.data)  # moves the camera, and nothing else

    def close(self) -> None:
        """Free MuJoCo's renderer."""
        if self._renderer is not None:
            self._renderer.close()


def encoded(frames: Iterator[Array], settings: VideoParameters) -> bytes:
    """Return frames (H, W, 3) uint8 as an MP4 file, scaled to the height ``settings.size``."""
    import av

    # Bit-exact: no name of an encoder, no time; browsers need yuv420p, and an index at the beginning to start at once.
    flags = {"movflags": "faststart", "fflags": "+bitexact"}
    with tempfile.TemporaryDirectory() as folder:  # the index is moved in a second pass, which needs a file
        path = Path(folder, "video.mp4")
        with av.open(path, "w", options=flags) as file:
            _encode(file, frames, settings)
        return path.read_bytes()


def _encode(file: Any, frames: Iterator[Array], settings: VideoParameters) -> None:
    import av

    stream: Any = None
    for pixels in frames:
        if stream is None:
            height, width = pixels.shape[:2]
            stream = file.add_stream("libx264", rate=settings.frames_per_second)
            stream.height, stream.width = settings.size, 2 * round(settings.size * width / height / 2)
            stream.pix_fmt = "yuv420p"
            # With mbtree, the same frames do not always give the same bytes.
            stream.options = {"crf": "23", "preset": "veryfast", "threads": "1", "x264-params": "mbtree=0"}
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
        file.mux(stream.encode(frame.reformat(width=stream.width, height=stream.height, format="yuv420p")))
    file.mux(stream.encode(None))


def _main() -> None:
    """Answer one task from standard input: the result of ``render``, or a text that says why there is none."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # environments may print
    answer: Any
    try:
        task = pickle.load(sys.stdin.buffer)  # noqa: S301 (our own process)
        Thread(target=_end_with_parent, daemon=True).start()
        import av  # noqa: F401

        answer = render(*task)
    except RenderingError as error:
        answer = str(error)
    except ModuleNotFoundError as error:
        answer = f"they need {error.name}" + (f": {MISSING_LIBRARY}" if error.name == "av" else "")
    except Exception as error:
        text = one_line(error)[:300]
        answer = f"{text}; {MISSING_GL}" if GL.search(text) else text
    pickle.dump(answer, answers)
    answers.flush()
    os._exit(0)  # graphics libraries may crash when Python ends


def _end_with_parent() -> None:
    sys.stdin.buffer.read()
    os._exit(1)


if __name__ == "__main__":
    _main()
