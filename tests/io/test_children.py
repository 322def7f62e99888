from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cvl_pipeline.errors import TERMINATED
from cvl_pipeline.io.children import sigterm_raised, start_child


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can do it")
def test_a_child_ends_with_the_process_that_started_it(tmp_path: Path) -> None:
    code = (
        "import os, signal; from cvl_pipeline.io.children import start_child; "
        "print(start_child(['sleep', '600'], os.environ).pid, flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    child, end = int(done.stdout), time.monotonic() + 500.0
    while Path(f"/proc/{child}").exists() and "Z" not in Path(f"/proc/{child}/stat").read_text().split()[2]:
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_child_has_its_own_session_environment_folder_and_output(tmp_path: Path) -> None:
    with (tmp_path / "out").open("wb") as file:
        code = "import os; print(os.getsid(0), os.environ['WORD'], os.getcwd(), input() if False else '')"
        child = start_child([sys.executable, "-c", code], {"WORD": "x"}, stdout=file, cwd=tmp_path)
    assert child.wait() == 0
    assert (tmp_path / "out").read_text().split() == [str(child.pid), "x", str(tmp_path)]
    assert os.getsid(0) != child.pid


def test_sigterm_is_raised_so_that_children_can_be_ended_first() -> None:
    with pytest.raises(SystemExit) as caught, sigterm_raised():
        os.kill(os.getpid(), signal.SIGTERM)
    assert caught.value.code == TERMINATED
