from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from benchmarks.peers import harness, ours
from benchmarks.speed import Configuration, Contender

from benchmarks import speed
from cvl_pipeline.training import callbacks
from cvl_pipeline.training.callbacks import operations_of_a_step
from tests.clocks import FakeClock

TINY = (Configuration("critic", (8, 8), 16), Configuration("policy", (8, 8), 16))
LARGER = Configuration("critic", (8, 8), 1024)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    speed.write_log(tmp_path, episodes=20, steps=30)
    return tmp_path


def test_operations_are_those_counted_by_hand() -> None:
    # phi: 43 x 10, 10 x 20, 20 x 64; psi: 40 x 10, 10 x 20, 20 x 64; all three times, the first twice.
    phi, psi = 2 * 430 + 3 * (200 + 1280), 2 * 400 + 3 * (200 + 1280)
    expected = 2 * 5 * (phi + psi) + 3 * 2 * 5 * 5 * 64
    assert speed.operations_of_a_step(Configuration("critic", (10, 20), 5)) == expected == 115_000


def test_operations_are_those_that_torch_counts(log: Path) -> None:
    job = speed.job_of(speed.OURS, TINY[0], log, "cpu", 0.0)
    module = ours.TimedDynamics(ours.read(job), ours.dynamics_parameters(job, 1), 0)
    module.on_fit_start()
    assert operations_of_a_step(module) == speed.operations_of_a_step(TINY[0])


def test_peers_read_the_episodes_that_ours_trains_on(log: Path) -> None:
    data = ours.read(speed.job_of(speed.OURS, TINY[0], log, "cpu", 0.0))
    with np.load(log / "log.npz") as arrays:
        train = data.transitions.select(data.split.train)
        assert np.array_equal(arrays["observations"], train.observations.numpy())
        assert np.array_equal(arrays["episode_starts"], np.arange(19) * 30)
        assert np.array_equal(arrays["observation_mean"], data.normalisation.observation_mean.numpy())
        assert len(arrays["advantages"]) == len(arrays["rewards"]) == len(train) == 18 * 30


@pytest.mark.parametrize("configuration", TINY)
def test_ours_is_timed_from_the_first_step_to_the_last(
    log: Path, configuration: Configuration, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = FakeClock(monkeypatch)
    module: type = ours.TimedPolicy if configuration.stage == "policy" else ours.TimedDynamics
    clock.price(module, "gradient_step", 0.25)
    for name in ("__init__", "on_fit_start", "validation_metrics"):
        clock.price(module, name, 1000.0)
    clock.price(callbacks.Threads, "on_train_start", 1000.0)  # the last of the start-up
    monkeypatch.setattr(ours, "time", clock)
    train = ours.trainer(speed.job_of(speed.OURS, configuration, log, "cpu", 0.0))
    assert train(60) == (60, 60 * 0.25)
    assert clock.now >= 4000.0, "the start-up and the validation took place"


def test_shares_add_up_to_the_step(log: Path) -> None:
    row = ours.shares(speed.job_of(speed.OURS, TINY[0], log, "cpu", 0.03))
    assert list(row) == [*ours.PIECES, "Lightning and the rest", "step"]
    step = row.pop("step")
    assert sum(row.values()) == pytest.approx(step)
    assert all(row[piece] > 0.0 for piece in ours.PIECES)


def test_the_timed_run_takes_the_given_seconds() -> None:
    asked: list[int] = []

    def train(steps: int) -> tuple[int, float]:
        asked.append(steps)
        return steps, steps * 0.01

    assert harness.timed(train, 2.0) == (200, 2.0)
    assert asked == [1, 8, 16, 32, 200]  # until a trial run takes 0.3 seconds


def test_an_environment_is_made_once_for_the_same_versions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands: list[list[str]] = []

    def remember(command: list[str]) -> str:
        commands.append(command)
        (tmp_path / "peer").mkdir(exist_ok=True)
        return ""

    monkeypatch.setattr(speed, "ENVIRONMENTS", tmp_path)
    monkeypatch.setattr(speed, "output", remember)
    peer = Contender("peer", "", (), "", "peer", (("one==1", "two==2"), ("--no-deps", "three==3")))
    for _ in range(2):
        assert speed.python_of(peer) == tmp_path / "peer/bin/python"
    assert [command[-2:] for command in commands[1:]] == [["one==1", "two==2"], ["--no-deps", "three==3"]]
    assert commands[0][1:4] == ["-m", "venv", "--clear"]
    speed.python_of(replace(peer, requirements=(("one==2",),)))
    assert commands[4][-1] == "one==2"


def installs_nothing(run: Callable[[Sequence[str], bool], str]) -> Callable[..., str]:
    def output(command: Sequence[str], one_core: bool = False) -> str:
        if "venv" in command:
            raise RuntimeError("no matching distribution")
        return run(command, one_core)

    return output


def test_the_command_runs_all_in_turn_and_ends_with_the_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    docs = tmp_path / "speed.md"
    docs.write_text(f"before\n{speed.BEGIN}\nold\n{speed.END}\nafter\n")
    fake = "tests.benchmarks.fake_peer"
    monkeypatch.setattr(speed, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(speed, "DOCS", docs)
    monkeypatch.setattr(speed, "CONFIGURATIONS", (*TINY, LARGER))
    monkeypatch.setattr(speed, "CRITICS", (TINY[0], TINY[0]))
    monkeypatch.setattr(speed, "LARGE", TINY[0])
    monkeypatch.setattr(speed, "OURS", Contender("ours", "benchmarks.peers.ours", TINY[:1], "equal"))
    monkeypatch.setattr(
        speed, "CONTENDERS",
        (
            speed.OURS,
            Contender("fake", fake, (TINY[0], LARGER), "equal"),
            Contender("nowhere", fake, TINY, "equal", "nowhere", (("no-such-package",),)),
        ),
    )  # fmt: skip
    monkeypatch.setattr(speed, "shares", lambda *_: [])
    monkeypatch.setattr(speed, "weak_scaling", lambda *_: [])
    monkeypatch.setattr(speed, "shared", lambda: 0.5)
    monkeypatch.setattr("sys.argv", ["speed", "--rounds", "1", "--seconds", "0.2"])
    monkeypatch.setattr(speed, "output", installs_nothing(speed.output))
    speed.main()
    record = json.loads((tmp_path / "results/speed.json").read_text())
    rates = {row["contender"]: row["steps_per_second"] for row in record["rows"]}
    assert set(rates) == {"ours", "fake"}
    assert rates["fake"] == pytest.approx(2000.0)
    numbers = record["summary"]
    operations = speed.operations_of_a_step(TINY[0])
    assert numbers == {
        **dict.fromkeys(
            ("ratio_256", "ratio_1024", "ratio_wide"), pytest.approx(rates["ours"] / rates["fake"])
        ),
        "matmul_fraction": pytest.approx(operations * rates["ours"] / record["product_rate"]),
        "shared": 0.5,
    }
    assert record["left_out"][f"fake; {LARGER}"] == "MemoryError: too large an error"
    assert record["left_out"]["nowhere"] == "no matching distribution"
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == " ".join(f"{name}={value:.2f}" for name, value in numbers.items())
    monkeypatch.setattr("sys.argv", ["speed", "--write-docs"])
    speed.main()
    written = docs.read_text()
    assert written.startswith(f"before\n{speed.BEGIN}\n\n**critic, hidden (8, 8), batch 16**:")
    assert written.endswith(f"{speed.END}\nafter\n")
    assert "old" not in written


def test_the_documentation_has_the_marks() -> None:
    text = speed.DOCS.read_text()
    assert text.count(speed.BEGIN) == text.count(speed.END) == 1
