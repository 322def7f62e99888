"""``cvl init``: makes a folder a project, with the configuration that the package brings."""

from __future__ import annotations

import re
import shutil
import tomllib
from pathlib import Path

import cvl_pipeline
from cvl_pipeline.errors import InputError
from cvl_pipeline.io.storage import write_atomically
from kedro import __version__ as kedro_version

LAYERS = (
    "01_raw", "02_intermediate", "03_primary", "04_feature", "05_model_input", "06_models", "07_model_output",
    "08_reporting",
)  # fmt: skip
SECTION = f"""\
[tool.kedro]
package_name = "cvl_pipeline.kedro"
project_name = "cvl-pipeline"
kedro_init_version = "{kedro_version}"
source_dir = "src"
"""
IGNORED = """\
# Of data/, git keeps the folders, but no artifact.
/data/**
!/data/*/
!/data/*/.gitkeep
/conf/local/*
!/conf/local/.gitkeep
/conf/**/credentials*
.env
/lightning_logs/
/build/
.viz/
.venv*
__pycache__/
"""
README = """\
# A project of cvl-pipeline

```bash
kedro run --env smoke          # everything, much smaller: does it work here?
kedro run                      # collect, train, evaluate
kedro run --params dataset.task=reach-v3,seed=1
kedro suite run quick          # a comparison of methods; conf/suites has more
kedro viz                      # the pipeline in a browser
```

`conf/README.md` explains the settings. Results are in `data/08_reporting/`. Put classes of your own, such as a reward
or a source, into `src/`, and choose them with `module:Class`.

Some commands need extras: `pip install "cvl-pipeline[metaworld,suites,tuning,viz]"`.
"""
FILES = {
    ".gitignore": IGNORED,
    ".telemetry": "consent: false\n",  # kedro-telemetry sends nothing
    "README.md": README,
    "conf/local/.gitkeep": "",
    "src/.gitkeep": "",
    **{f"data/{layer}/.gitkeep": "" for layer in LAYERS},
}
"""What a project has beside its configuration and pyproject.toml."""


def configuration() -> Path:
    """Return the folder with the configuration of this version: of the installed package, or of the checkout."""
    package = Path(cvl_pipeline.__file__).parent
    installed = package / "conf"
    return installed if installed.is_dir() else package.parents[1] / "conf"


def write_project(folder: Path) -> list[str]:
    """Make a folder a project. Files that exist stay as they are.

    An existing pyproject.toml, such as uv's, gets a section for Kedro.

    Args:
        folder: is made if it does not exist.

    Returns:
        Names of the files that existed, and were left as they are.

    Raises:
        InputError: the folder is a project of Kedro, has a conf/, or cannot be written.
    """
    project = folder / "pyproject.toml"
    try:
        before = project.read_text() if project.exists() else ""
        tools = tomllib.loads(before).get("tool", {})
    except (OSError, ValueError) as error:
        raise InputError(f"{project} cannot be read ({error}); repair it, or choose another folder") from None
    if "kedro" in tools:
        raise InputError(f"{project} has a section [tool.kedro]: the folder is a project of Kedro already")
    if (folder / "conf").exists():
        raise InputError(f"{folder / 'conf'} exists; move it away, or choose another folder: cvl init FOLDER")
    try:
        shutil.copytree(
            configuration(), folder / "conf", ignore=shutil.ignore_patterns("local", "credentials*")
        )
        # The pages of docs/ are not in the package, so their names stay, but no links.
        page = folder / "conf/README.md"
        page.write_text(re.sub(r"\[([^]]+)\]\(\.\./[^)]*\)", r"\1", page.read_text()))
        kept = []
        for name, content in FILES.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.exists():
                kept.append(name)
            else:
                path.write_text(content)
        text = f"{before.rstrip()}\n\n{SECTION}" if before.strip() else SECTION
        write_atomically(project, lambda path: path.write_text(text))
    except OSError as error:
        raise InputError(f"{folder} cannot be written ({error.strerror}: {error.filename})") from None
    return kept
