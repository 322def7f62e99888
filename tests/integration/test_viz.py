"""The site that kedro-viz builds from the pipeline."""

from __future__ import annotations

import functools
import html
import http.server
import json
import shutil
import subprocess
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib import image

from tests.integration.conftest import Forks, Project
from tests.integration.test_run import STAGES
from tests.kedro.sessions import make_loader

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def site(kedro: Forks, copied: Project) -> Path:
    assert "WARNING" not in kedro.kedro(copied, "viz", "build", "--include-previews")
    return copied.root / "build"


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


def test_every_dataset_has_a_layer_and_a_preview_with_its_description(
    site: Path, graph: dict[str, Any]
) -> None:
    kinds = {"report": "JSONPreview", "metrics": "JSONPreview", "plot": "HTMLPreview"}
    catalog = make_loader(env="smoke")["catalog"]
    described = [entry["metadata"]["description"].replace("{method}", "") for entry in catalog.values()]
    names = [node["name"] for node in graph["nodes"] if node["type"] == "data"]
    assert {"cvl_policy", "reward_free_bc_policy", "cvl_rollouts", "critic", "metrics"} <= set(names)
    for node in graph["nodes"]:
        if node["type"] != "data":
            continue
        assert node["layer"] in graph["layers"], node["name"]
        page = json.loads((site / "api/nodes" / node["id"]).read_text())
        wanted = kinds.get(node["name"].split("_")[-1])
        assert page["preview_type"] == wanted or wanted is None, node["name"]
        shown = html.unescape(str(page["preview"])).replace("cvl", "").replace("bc", "")
        assert any(text in shown for text in described), node["name"]


def test_layers_are_in_the_order_of_the_folders(graph: dict[str, Any]) -> None:
    assert graph["layers"] == ["raw", "intermediate", "models", "model_output", "reporting"]


def test_every_dataset_but_parameters_has_a_producer(graph: dict[str, Any]) -> None:
    made = {edge["target"] for edge in graph["edges"]}
    for node in graph["nodes"]:
        if node["type"] == "data":
            assert node["id"] in made, node["name"]
            assert not {"checkpoints", "logs"} & set(node["name"].split("_")), node["name"]


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


def _chromium(site: Path, *arguments: str, place: str = "") -> str:
    """Let headless Chromium open the site; returns its standard output."""
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(site))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            return subprocess.run(
                [
                    str(CHROMIUM), "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run",
                    "--disable-background-networking", "--virtual-time-budget=15000", *arguments,
                    f"http://127.0.0.1:{server.server_port}/{place}",
                ],
                capture_output=True, text=True, timeout=500, check=True,
            ).stdout  # fmt: skip
        finally:
            server.shutdown()


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")
def test_a_browser_draws_the_five_stages(site: Path, tmp_path: Path) -> None:
    page = _chromium(site, f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom")
    labels = page.split('class="pipeline-node__text"')[1:]
    for stage in STAGES:
        assert any(f">{stage}<" in label for label in labels), stage


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")
def test_a_screenshot_shows_the_graph(site: Path, graph: dict[str, Any], tmp_path: Path) -> None:
    """The picture is as large as asked for and neither blank nor one colour."""
    picture = tmp_path / "viz.png"
    chosen = next(node["id"] for node in graph["nodes"] if node["name"] == "comparison_plot")
    _chromium(
        site, f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1600,1200",
        f"--screenshot={picture}", place=f"?pid=__default__&sid={chosen}",
    )  # fmt: skip
    pixels = image.imread(picture)
    assert pixels.shape[:2] == (1200, 1600)
    colours, counts = np.unique(
        (pixels[..., :3] * 255).astype(int).reshape(-1, 3), axis=0, return_counts=True
    )
    assert len(colours) > 50
    assert counts.max() < 0.98 * counts.sum()
