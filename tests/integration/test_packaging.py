"""The package as users get it: built, installed elsewhere, and run in a folder that ``cvl init`` made."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.project import CONF, PROJECT

pytestmark = pytest.mark.integration
SOURCES = (
    "src", "conf", "examples", "pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE", "CHANGELOG.md",
    "CITATION.cff", "SECURITY.md", "requirements.lock",
)  # fmt: skip


def _run(*command: str | Path, cwd: Path) -> str:
    """Run a command without this checkout on the path; return its output."""
    environment = {
        name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "KEDRO_ENV")
    }
    done = subprocess.run(
        [str(word) for word in command], cwd=cwd, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        env=environment | {"COLUMNS": "400", "OMP_NUM_THREADS": "1"}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with sdist and wheel; the wheel is built from the sdist."""
    root = tmp_path_factory.mktemp("built")
    for name in SOURCES:
        source = PROJECT / name
        if source.is_dir():
            shutil.copytree(source, root / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
        else:
            shutil.copy(source, root / name)
    # What must stay on this machine.
    (root / "conf/local").mkdir(exist_ok=True)
    (root / "conf/local/parameters.yml").write_text("seed: 7\n")
    (root / "conf/base/credentials.yml").write_text("lab: {secret: s}\n")
    _run(sys.executable, "-m", "build", "--no-isolation", cwd=root)
    return root / "dist"


@pytest.fixture(scope="module")
def installed(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the programs of an environment with the wheel; it borrows the other packages from this one."""
    root = tmp_path_factory.mktemp("installed")
    _run(sys.executable, "-m", "venv", "--without-pip", root, cwd=root)
    (wheel,) = built.glob("*.whl")
    pip = (sys.executable, "-m", "pip", "--python", root / "bin/python", "--disable-pip-version-check")
    _run(*pip, "install", "--quiet", "--no-deps", "--no-index", wheel, cwd=root)
    (site,) = root.glob("lib/python*/site-packages")
    (site / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return root / "bin"


def test_sdist_and_wheel_hold_the_configuration_and_nothing_private(built: Path) -> None:
    (sdist,), (wheel,) = built.glob("*.tar.gz"), built.glob("*.whl")
    expected = {str(path.relative_to(CONF)) for path in CONF.rglob("*") if path.is_file()}
    expected = {name for name in expected if "credentials" not in name and not name.startswith("local/")}
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert {name.removeprefix("cvl_pipeline/conf/") for name in names if "/conf/" in name} == expected
    assert {name.split("/")[0].split("-")[0] for name in names} == {"cvl_pipeline"}
    with tarfile.open(sdist) as archive:
        members = {name.partition("/")[2] for name in archive.getnames()}
    assert {"CITATION.cff", "SECURITY.md", "CHANGELOG.md", "setup.py", "conf/base/parameters.yml"} <= members
    assert [name for name in members if "conf/local" in name or "credentials" in name] == []


def test_installed_package_makes_a_project_that_runs(installed: Path, tmp_path: Path) -> None:
    project = tmp_path / "mine"
    assert "cd mine && kedro run --env smoke" in _run(installed / "cvl", "init", "mine", cwd=tmp_path)
    where = _run(installed / "python", "-c", "import cvl_pipeline; print(cvl_pipeline.__file__)", cwd=project)
    assert where.startswith(str(installed.parent))
    stages = ("--env", "smoke", "--pipelines", "data_ingestion,contrastive_dynamics")  # the rest takes longer
    _run(installed / "cvl", "run", *stages, cwd=project)
    assert (project / "data/06_models/reach-v3-smoke/seed_0/critic.safetensors").exists()
