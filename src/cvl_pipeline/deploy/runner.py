"""Runs an exported policy. Needs NumPy and ONNX Runtime, and no other file of the project that trained it.

Every exported folder has a copy of this file beside its contract, ``policy.json``::

    from runner import load_policy

    policy = load_policy("folder")
    policy.reset()
    action = policy.select_action(observation)

Anything that is not as the contract says raises PolicyError with one line, and there is no action. ``python runner.py``
acts on the examples of its folder and compares the actions with those of the policy that was exported.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import onnxruntime

FORMAT = 1
"""Version of the contract that this file reads and the export writes."""
CONTRACT, EXAMPLES = "policy.json", "examples.npz"
POLICY_FILE, VALUE_FILE = "policy/1/policy.onnx", "value/1/value.onnx"
ACTION, VALUE = "action", "value"
"""Names of outputs, and of the value's last input."""


class PolicyError(ValueError):
    """The policy cannot act: a damaged file, a wrong observation, or an answer that must not be used."""


class LatePolicyError(PolicyError):
    """The action came too late."""


class PolicyWarning(UserWarning):
    """The policy acts, but on an observation unlike those it learned from, or late."""


def digest(content: bytes) -> str:
    """Return the SHA-256 of bytes, in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def checksum(contract: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a contract, without its own field ``checksum``."""
    content = {name: value for name, value in contract.items() if name != "checksum"}
    return digest(json.dumps(content, sort_keys=True, separators=(",", ":")).encode())


def differences(
    contract: Mapping[str, Any], actions: NDArray[Any], others: NDArray[Any]
) -> NDArray[np.float64]:
    """Compare actions, (B, A) or (B,), with others; the numbers of an action may have different units.

    Args:
        contract: the entry ``action`` of the contract.
        actions: some actions.
        others: those that they should be.

    Returns:
        (B,), the largest difference of any number as a share of that number's range. A range narrower than a hundredth
        of its numbers counts as one of a hundredth, because of rounding. Discrete actions differ by 0 or 1.
    """
    if contract["discrete"]:
        return np.asarray(np.asarray(actions) != others, np.float64)
    low, high = (np.array(contract[end], np.float64) for end in ("low", "high"))
    width = np.maximum(high - low, 0.01 * np.maximum(np.abs(low), np.abs(high)))
    gaps = np.abs(np.asarray(actions, np.float64) - others)
    shares: NDArray[np.float64] = (gaps / np.where(width > 0.0, width, 1.0)).max(-1)
    return shares


def resized(picture: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """Return a picture at the size that a policy takes, as ``dataset.image_size`` made it for the training.

    Each new pixel is the mean of those that it covers. Other ways to resize give other pixels than the policy has seen.

    Args:
        picture: (H, W, C), whole numbers from 0 to 255, with the order of channels of the log.
        height: of the result.
        width: of the result.

    Raises:
        PolicyError: another shape, or other numbers.
    """
    given = _array("picture", picture)
    if given.ndim != 3 or given.dtype.kind not in "biuf":
        raise PolicyError(f"picture has type {given.dtype} and shape {given.shape}; give (H, W, C)")
    picture = _whole("picture", given)
    if picture.shape[:2] == (height, width):
        return picture

    def spans(size: int, count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        first = np.arange(count) * size
        return first // count, -(-(first + size) // count)

    (top, bottom), (left, right) = spans(picture.shape[0], height), spans(picture.shape[1], width)
    sums = np.zeros((picture.shape[0] + 1, picture.shape[1] + 1, picture.shape[2]), dtype=np.int64)
    sums[1:, 1:] = picture.cumsum(0, dtype=np.int64).cumsum(1)
    total = sums[bottom][:, right] - sums[top][:, right] - sums[bottom][:, left] + sums[top][:, left]
    means: NDArray[np.uint8] = np.rint(total / np.outer(bottom - top, right - left)[..., None]).astype(
        np.uint8
    )
    return means


def load_policy(
    path: str | Path,
    *,
    threads: int = 1,
    providers: Sequence[str | tuple[str, Mapping[str, Any]]] = ("CPUExecutionProvider",),
    latency_ms: float | None = None,
    late: Literal["warn", "raise"] = "warn",
    outside: Literal["ignore", "warn", "raise"] = "warn",
    margin: float = 1.0,
) -> ExportedPolicy:
    """Read an exported policy and check the SHA-256 of all its files.

    Args:
        path: the exported folder, or its ``policy.json``.
        threads: of ONNX Runtime. More than one is slower for small networks.
        providers: of ONNX Runtime, the preferred one first; a pair has options of the provider.
        latency_ms: most milliseconds that a call of ``select_action`` may take; None: any time.
        late: what to do if it took longer.
        outside: what to do if a number of an observation is outside of the range of the training data.
        margin: how far outside counts, as a share of the width of that range.

    Raises:
        PolicyError: a missing, changed or unreadable file, an option that does not exist, or a provider that does not
            work here.
    """
    for name, value, known in (
        ("late", late, ("warn", "raise")),
        ("outside", outside, ("ignore", "warn", "raise")),
    ):
        if value not in known:
            raise PolicyError(f"{name} is {value!r}; give one of {', '.join(known)}")
    if latency_ms is not None and not (isinstance(latency_ms, Real) and latency_ms > 0):
        raise PolicyError(f"latency_ms is {latency_ms!r}; give a number above 0, or None")
    if not (isinstance(margin, Real) and margin >= 0):
        raise PolicyError(f"margin is {margin!r}; give a number from 0 on")
    if not (isinstance(threads, int) and threads > 0):
        raise PolicyError(f"threads is {threads!r}; give a whole number from 1 on")
    if isinstance(providers, str) or not all(
        isinstance(entry, str) or (isinstance(entry, tuple) and len(entry) == 2) for entry in providers
    ):
        raise PolicyError(f"providers is {providers!r}; give a list of names, or of pairs (name, options)")
    if "://" in str(path):
        raise PolicyError(f"{path} is a URL; download the folder, and name the copy")
    folder = Path(path)
    folder = folder.parent if folder.name == CONTRACT else folder
    contract = _contract(folder)
    contents = {name: _verified(folder, name, wanted) for name, wanted in contract["files"].items()}
    for name in contents.keys() - {POLICY_FILE, VALUE_FILE}:
        del contents[name]
    return ExportedPolicy(
        folder, contract, contents, threads, tuple(providers), latency_ms, late == "raise", outside, margin
    )


class ExportedPolicy:
    """Acts by an exported policy; made by ``load_policy``. It has no memory, so one object serves any number of robots.

    Attributes:
        contract: content of ``policy.json``.
    """

    def __init__(
        self,
        folder: Path,
        contract: Mapping[str, Any],
        contents: Mapping[str, bytes],
        threads: int,
        providers: tuple[Any, ...],
        latency_ms: float | None,
        raises: bool,
        outside: str,
        margin: float,
    ) -> None:
        """See ``load_policy``."""
        self.contract = contract
        self._folder, self._contents = folder, contents
        self._threads, self._providers = threads, providers
        self._latency_ms, self._raises = latency_ms, raises
        self._parts = [_Part(part, outside, margin) for part in contract["observations"]]
        action = contract["action"]
        self._discrete, self._size = bool(action["discrete"]), int(action["size"])
        self._low, self._high = (np.array(action[name], np.float32) for name in ("low", "high"))
        self._session = self._open(POLICY_FILE)
        self._value: Any = None
        # The first call of a session takes longer.
        self._run(self._session, ACTION, {part.name: part.middle for part in self._parts})

    def reset(self) -> None:
        """Start an episode: warn again of numbers outside of the range of the training data."""
        for part in self._parts:
            part.warned.clear()

    def select_action(self, observation: Any) -> Any:
        """Return the action for one observation, or the actions for several.

        Args:
            observation: one array per part, by its name, or an array if there is one part. Each has its part's shape,
                or (B, *shape) for several observations. Numbers of any type; images have whole numbers from 0 to 255.

        Returns:
            (A,) or (B, A) float32 within the action bounds; an integer or (B,) int64, if actions are discrete.

        Raises:
            PolicyError: an observation that is not as the contract says, or an action that is no finite number.
            LatePolicyError: the action came too late, and ``late`` is ``raise``.
        """
        start = time.perf_counter()
        inputs, single = self._inputs(observation)
        actions = self._checked(self._run(self._session, ACTION, inputs), len(next(iter(inputs.values()))))
        if self._latency_ms is not None:
            self._watch(1e3 * (time.perf_counter() - start), self._latency_ms)
        if not single:
            return actions
        return int(actions[0]) if self._discrete else actions[0]

    def value(self, observation: Any, action: Any) -> Any:
        """Return Q of the behaviour policy, for monitoring: discounted rewards from here on, in the reward's unit.

        Args:
            observation: see ``select_action``.
            action: (A,) or (B, A); an integer or (B,) integers, if actions are discrete.

        Returns:
            A number, or (B,) float32.

        Raises:
            PolicyError: no value was exported, or an observation or action is not as the contract says.
        """
        if self.contract["value"] is None:
            raise PolicyError(f"{self._folder / CONTRACT}: no value was exported with this policy")
        if self._value is None:
            self._value = self._open(VALUE_FILE)
        inputs, single = self._inputs(observation)
        actions, rows = _array("action", action), len(next(iter(inputs.values())))
        shape = (
            (() if single else (rows,))
            if self._discrete
            else ((self._size,) if single else (rows, self._size))
        )
        if actions.dtype.kind not in ("iu" if self._discrete else "biuf") or actions.shape != shape:
            raise PolicyError(
                f"action has type {actions.dtype} and shape {actions.shape}; this one takes {shape}"
            )
        if self._discrete:
            wrong = actions[(actions < 0) | (actions >= self._size)]
            if len(wrong):
                raise PolicyError(f"action is {wrong[0]}; give whole numbers from 0 to {self._size - 1}")
            actions = np.eye(self._size, dtype=np.float32)[actions]
        actions = np.ascontiguousarray(actions.reshape(rows, self._size), np.float32)
        if not np.isfinite(actions).all():
            raise PolicyError("action holds a value that is not a finite number")
        values = self._run(self._value, VALUE, {**inputs, ACTION: actions})
        if values.shape != (rows,) or not np.isfinite(values).all():
            raise PolicyError("the value is not a finite number")
        return values[0] if single else values

    def _open(self, name: str) -> onnxruntime.InferenceSession:
        """Start a session; the content is that whose SHA-256 was checked."""
        try:
            import onnxruntime
        except ImportError as error:
            raise PolicyError(f"onnxruntime is missing ({error}): pip install onnxruntime") from None
        names = [entry if isinstance(entry, str) else entry[0] for entry in self._providers]
        missing = [name for name in names if name not in onnxruntime.get_available_providers()]
        if missing:  # it would take another one, and hardly say so
            raise PolicyError(
                f"this installation of ONNX Runtime does not have {', '.join(missing)}; give providers of "
                f"{', '.join(onnxruntime.get_available_providers())}"
            )
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = self._threads, 1
        options.log_severity_level = 3
        try:
            session = onnxruntime.InferenceSession(
                self._contents[name], options, providers=list(self._providers)
            )
        except Exception as error:  # of a class per fault
            raise PolicyError(
                f"{self._folder / name}: ONNX Runtime cannot load it ({_line(error)})"
            ) from None
        unusable = [name for name in names if name not in session.get_providers()]
        if unusable:  # compiled in, but without its driver or libraries
            raise PolicyError(
                f"{', '.join(unusable)} does not work on this machine, and ONNX Runtime took "
                f"{', '.join(session.get_providers())}; install its driver and libraries, or give other providers"
            )
        return session

    @staticmethod
    def _run(
        session: onnxruntime.InferenceSession, output: str, inputs: Mapping[str, NDArray[Any]]
    ) -> NDArray[Any]:
        try:
            result = session.run([output], dict(inputs))[0]
        except Exception as error:
            raise PolicyError(f"ONNX Runtime failed: {_line(error)}") from None
        array: NDArray[Any] = np.asarray(result)
        return array

    def _inputs(self, observation: Any) -> tuple[dict[str, NDArray[Any]], bool]:
        """Return (B, *shape) of each part, and whether the observation is a single one."""
        names = [part.name for part in self._parts]
        if not isinstance(observation, Mapping):
            if len(names) != 1:
                raise PolicyError(
                    f"observation is one array; give one per part, by its name: {', '.join(names)}"
                )
            observation = {names[0]: observation}
        if observation.keys() != set(names):
            given = ", ".join(map(str, observation)) or "none"
            raise PolicyError(f"observation has the parts {given}; this policy takes {', '.join(names)}")
        inputs, counts = {}, set()
        for part in self._parts:
            inputs[part.name], single = part.rows(observation[part.name])
            counts.add((len(inputs[part.name]), single))
        if len(counts) != 1:
            raise PolicyError("the parts of the observation have different numbers of rows")
        return inputs, single

    def _checked(self, actions: NDArray[Any], rows: int) -> NDArray[Any]:
        """Return actions within their bounds; raise PolicyError if they are none."""
        if self._discrete:
            if actions.shape != (rows,) or not ((actions >= 0) & (actions < self._size)).all():
                raise PolicyError("the policy's answer is no action")
            return actions
        if actions.shape != (rows, self._size) or not np.isfinite(actions).all():
            raise PolicyError("the policy's action is not a finite number")
        within: NDArray[Any] = np.minimum(np.maximum(actions, self._low), self._high)
        return within

    def _watch(self, taken: float, allowed: float) -> None:
        if taken > allowed:
            text = f"the action took {taken:.3g} ms; at most {allowed:g} ms are allowed"
            if self._raises:
                raise LatePolicyError(text)
            warnings.warn(text, PolicyWarning, stacklevel=3)


class _Part:
    """One part of an observation: a vector of numbers, or an image."""

    def __init__(self, contract: Mapping[str, Any], outside: str, margin: float) -> None:
        self.name: str = contract["name"]
        self.shape = tuple(contract["shape"])
        self.dtype = np.dtype(contract["dtype"])
        self.warned: set[int] = set()
        self._outside = outside
        self._numbers = self.dtype.kind == "f"
        self.middle = np.zeros((1, *self.shape), self.dtype)
        if self._numbers:
            low, high = (np.array(contract[name], np.float64) for name in ("low", "high"))
            # Where the data never changed, their size is the scale.
            width = np.where(high > low, high - low, np.maximum(np.abs(low), 1.0))
            self.middle[0] = (low + high) / 2
            widest = np.finfo(np.float32).max
            width = np.full_like(low, np.inf) if outside == "ignore" else margin * width
            ends = (low - width).clip(-widest, widest), (high + width).clip(-widest, widest)
            self._low, self._high = (end.astype(np.float32) for end in ends)

    def rows(self, value: Any) -> tuple[NDArray[Any], bool]:
        """Return (B, *shape) of the part's type, and whether the value is a single row."""
        rows = _array(f"observation '{self.name}'", value)
        if rows.dtype.kind not in "biuf":
            raise PolicyError(f"observation '{self.name}' has type {rows.dtype}; give numbers")
        single = rows.shape == self.shape
        if not single and (rows.shape[1:] != self.shape or rows.ndim != len(self.shape) + 1 or not len(rows)):
            many = ", ".join(map(str, ("B", *self.shape)))
            raise PolicyError(
                f"observation '{self.name}' has shape {rows.shape}; this policy takes {self.shape} or ({many})"
            )
        rows = rows[None] if single else rows
        if rows.dtype != self.dtype:
            if self._numbers:
                with np.errstate(over="ignore"):
                    rows = rows.astype(self.dtype)
            else:
                rows = _whole(f"observation '{self.name}'", rows)
        if self._numbers:
            inside = (rows >= self._low) & (rows <= self._high)  # no comparison with NaN is true
            if not inside.all():
                self._refuse_or_warn(rows, inside)
        return np.ascontiguousarray(rows), single

    def _refuse_or_warn(self, rows: NDArray[Any], inside: NDArray[np.bool_]) -> None:
        places = sorted({int(place) for place in np.nonzero(~inside)[-1]} - self.warned)
        if not np.isfinite(rows).all():
            places = sorted({int(place) for place in np.nonzero(~np.isfinite(rows))[-1]})
            raise PolicyError(
                f"observation '{self.name}' holds a value that is not a finite number in single precision, at index "
                f"{places[0]}"
            )
        if not places:
            return
        place = places[0]
        column = rows[:, place]
        worst = column[int(np.argmax(np.abs(column - (self._low[place] + self._high[place]) / 2)))]
        text = (
            f"observation '{self.name}' is {worst:g} at index {place}, far outside of the training data; allowed is "
            f"{self._low[place]:g} to {self._high[place]:g} ({len(places)} such numbers)"
        )
        if self._outside == "raise":
            raise PolicyError(text)
        self.warned.update(places)
        warnings.warn(text, PolicyWarning, stacklevel=5)


def _contract(folder: Path) -> dict[str, Any]:
    """Read and check ``policy.json``."""
    path = folder / CONTRACT
    try:
        contract = json.loads(path.read_bytes())
    except OSError as error:
        raise PolicyError(f"{path} cannot be read ({error.strerror}); name an exported folder") from None
    except ValueError:
        raise PolicyError(f"{path} is damaged: it is no JSON; export the policy again") from None
    if not isinstance(contract, dict) or "checksum" not in contract:
        raise PolicyError(f"{path} is no contract of an exported policy")
    if contract.get("checksum") != checksum(contract):
        raise PolicyError(f"{path} was changed: its checksum differs; export the policy again")
    if contract.get("format") != FORMAT:
        raise PolicyError(
            f"{path} has format {contract.get('format')}, this runner reads {FORMAT}; use the runner.py beside it"
        )
    return contract


def _verified(folder: Path, name: str, wanted: str) -> bytes:
    """Read a file whose SHA-256 the contract has."""
    try:
        content = (folder / name).read_bytes()
    except OSError as error:
        raise PolicyError(
            f"{folder / name} cannot be read ({error.strerror}); export the policy again"
        ) from None
    if digest(content) != wanted:
        raise PolicyError(
            f"{folder / name} was changed: its SHA-256 is not that of {CONTRACT}; export the policy again"
        )
    return content


def _array(name: str, value: Any) -> NDArray[Any]:
    """Return a value as an array; raise PolicyError if NumPy makes none of it, or if entries are masked."""
    try:
        array: NDArray[Any] = np.asarray(value)
    except Exception as error:  # ragged lists, tensors on a GPU: of a class per library
        raise PolicyError(
            f"{name} is not an array of numbers ({_line(error)}); give a NumPy array, or lists of equal length"
        ) from None
    if array is not value and _has_masked(value):  # the array itself, of NumPy's own class, has no mask
        raise PolicyError(f"{name} has masked entries, which have no number; fill them in")
    return array


def _whole(name: str, image: NDArray[Any]) -> NDArray[np.uint8]:
    """Return an image as uint8; raise PolicyError if it has other numbers."""
    with np.errstate(over="ignore", invalid="ignore"):
        whole = image.astype(np.uint8, copy=False)
    if not np.array_equal(whole, image):
        raise PolicyError(f"{name} is an image: give whole numbers from 0 to 255")
    return whole


def _has_masked(value: Any) -> bool:
    """Return whether entries are masked, of an array of another class than NumPy's own or of one in a list."""
    if isinstance(value, np.ndarray):
        return bool(np.ma.is_masked(value))  # not asked for others: numpy.ma takes time to import
    several = isinstance(value, (list, tuple)) and len(value) > 0 and isinstance(value[0], np.ndarray)
    return several and set(map(type, value)) != {np.ndarray} and any(map(np.ma.is_masked, value))


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]


def self_test(path: str | Path) -> str:
    """Act on the folder's examples, one by one; return a line with the largest error and the time per action.

    Raises:
        PolicyError: a damaged file, or an action further from the exported policy's than the contract allows.
    """
    policy = load_policy(path, outside="ignore")
    folder = Path(path).parent if Path(path).name == CONTRACT else Path(path)
    # Not numpy.load: it reports every file that is not an archive as a pickle.
    with (folder / EXAMPLES).open("rb") as stream, np.lib.npyio.NpzFile(stream, allow_pickle=False) as file:
        examples = dict(file)
    wanted = examples.pop(ACTION)
    names = [part["name"] for part in policy.contract["observations"]]
    rows = [{name: examples[name][row] for name in names} for row in range(len(wanted))]
    start = time.perf_counter()
    actions = [policy.select_action(row) for row in rows]
    taken = (time.perf_counter() - start) / len(rows)
    error = float(differences(policy.contract["action"], np.array(actions), wanted).max())
    allowed = policy.contract["parity"]["tolerance"]
    if not error <= allowed:
        raise PolicyError(
            f"{folder}: actions differ from the exported policy's by {error:g} of their range; allowed is {allowed:g}"
        )
    return f"{len(rows)} actions as exported, largest error {error:.2g}, {1e6 * taken:.0f} microseconds per action"


def main(arguments: Sequence[str]) -> int:
    """Test the folder that is given, or that of this file; return the exit status."""
    try:
        sys.stdout.write(self_test(arguments[0] if arguments else Path(__file__).parent) + "\n")
    except PolicyError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
