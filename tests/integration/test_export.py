"""kedro run --pipelines export, and the folder that it makes."""

from __future__ import annotations

import json
import re

from cvl_pipeline.deploy.runner import CONTRACT, load_policy, self_test
from tests.integration.conftest import DATASET, Forks, Project


def test_the_policy_of_a_run_is_exported_and_listed(kedro: Forks, scratch: Project) -> None:
    assert kedro.run(scratch, "run", "--pipelines", "export") == {"export.export_cvl"}
    folder = scratch.artifact(f"cvl_exported/{CONTRACT}").parent
    assert self_test(folder).startswith("4 actions as exported")

    about = load_policy(folder).contract["about"]
    assert (about["dataset"], about["method"], about["seed"]) == (DATASET.split("/")[0], "CVL", 0)
    settings = json.loads((folder / "model-settings.json").read_text())
    module, name = settings["implementation"].split(".")
    assert f"class {name}(" in (folder / f"{module}.py").read_text()
    assert settings["inputs"] == [{"name": "state", "datatype": "FP32", "shape": [-1, 39]}]
    assert settings["outputs"] == [{"name": "action", "datatype": "FP32", "shape": [-1, 4]}]

    status = "artifacts", "status", "--pipelines", "export"
    assert re.search(r"cvl_exported +│ fresh", kedro.kedro(scratch, *status))
    changed = kedro.kedro(scratch, *status, "--params", "export.control_hz=20")
    assert re.search(r"cvl_exported +│ stale +│ parameter export.control_hz", changed)
