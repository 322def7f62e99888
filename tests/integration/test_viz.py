"""The site that kedro-viz builds from the pipeline."""

from __future__ import annotations

import functools
import http.server
import json
import shutil
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest

from tests.integration.conftest import FinishedRun, Project
from tests.integration.test_run import STAGES

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def site(finished: FinishedRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("site") / "project"
    shutil.copytree(finished.project.root, root)
    result = Project(root).kedro("viz", "build", "--include-previews")
    assert result.returncode == 0, result.stdout
    assert "WARNING" not in result.stdout
    return root / "build"


@pytest.fixture(scope="module")
def graph(site: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((site / "api/main").read_text())
    return content


def test_five_stages_stand_in_the_graph(graph: dict[str, Any]) -> None:
    assert set(graph["modular_pipelines"]) == {"__root__", *STAGES}


def test_contrastive_training_takes_no_reward(graph: dict[str, Any]) -> None:
    names = {node["id"]: node["name"] for node in graph["nodes"]}
    stage = graph["modular_pipelines"]["contrastive_dynamics"]
    inputs = {names[node] for node in stage["inputs"]}
    assert "transitions" in inputs
    assert not any("reward" in name for name in inputs)


def test_every_dataset_has_a_layer_and_every_report_a_preview(site: Path, graph: dict[str, Any]) -> None:
    kinds = {"report": "JSONPreview", "metrics": "JSONPreview", "plot": "ImagePreview"}
    for node in graph["nodes"]:
        if node["type"] != "data":
            continue
        assert node["layer"], node["name"]
        wanted = kinds.get(node["name"].split("_")[-1])
        if wanted:
            page = json.loads((site / "api/nodes" / node["id"]).read_text())
            assert page["preview_type"] == wanted
            assert page["preview"]


def test_no_path_of_the_machine_and_no_tracker_is_published(site: Path) -> None:
    project = str(site.parent).encode()
    home = str(Path.home()).encode() + b"/"
    for path in site.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert project not in content, path
            if path.suffix not in {".js", ".css"}:  # kedro-viz's own files may contain any word
                assert home not in content, path
                assert b"heapanalytics" not in content or path.name == "telemetry.html", path


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")
def test_a_browser_draws_the_five_stages(site: Path) -> None:
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(site))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        page = subprocess.run(
            [
                str(CHROMIUM),
                "--headless=new",
                "--no-sandbox",
                "--disable-gpu",
                "--virtual-time-budget=15000",
                "--dump-dom",
                f"http://127.0.0.1:{server.server_port}/",
            ],
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        ).stdout
        server.shutdown()
    drawn = page.split('class="pipeline-node__text"')[1:]
    for stage in STAGES:
        assert any(f">{stage}<" in node for node in drawn), stage
