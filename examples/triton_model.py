"""Serve an exported policy with Triton's Python backend, through the runner and all its checks.

    pip install nvidia-pytriton onnxruntime      # or any Triton server that has the Python backend
    python triton_model.py FOLDER REPOSITORY     # makes the model repository
    tritonserver --model-repository REPOSITORY --backend-directory BACKENDS --http-address 127.0.0.1

FOLDER is an exported one (docs/deploy.md), and stays where it is. REPOSITORY gets one model, ``policy``: this file, and
the folder's ``config.pbtxt`` with another backend. The server's Python needs numpy and onnxruntime alone. With NumPy 2,
the backend of nvidia-pytriton 0.7 (Triton 2.51) answers with empty arrays: keep its own requirement, ``numpy<2``.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any


class TritonPythonModel:
    """The policy as Triton calls it. The parameter ``folder`` of its configuration names the exported folder."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the policy."""
        folder = json.loads(args["model_config"])["parameters"]["folder"]["string_value"]
        sys.path.insert(0, folder)
        from runner import PolicyError, load_policy

        self.policy, self.refusal = load_policy(folder), PolicyError
        self.parts = [part["name"] for part in self.policy.contract["observations"]]

    def execute(self, requests: list[Any]) -> list[Any]:
        """Act on each request, (B, *shape) per part. What the runner refuses, the client gets as the runner's line."""
        import numpy as np
        import triton_python_backend_utils as triton

        answers = []
        for request in requests:
            parts = {name: triton.get_input_tensor_by_name(request, name).as_numpy() for name in self.parts}
            try:
                actions = np.asarray(self.policy.select_action(parts))
                answers.append(triton.InferenceResponse([triton.Tensor("action", actions)]))
            except self.refusal as error:
                answers.append(triton.InferenceResponse(error=triton.TritonError(str(error))))
        return answers


def make_repository(folder: Path, repository: Path) -> Path:
    """Write the model repository, and return the folder of its model."""
    model = repository / "policy"
    (model / "1").mkdir(parents=True, exist_ok=True)
    config = (folder / "policy/config.pbtxt").read_text()
    config = re.sub(r"^(backend|default_model_filename): .*\n", "", config, flags=re.MULTILINE)
    config = re.sub(r"^parameters .*\n", "", config, flags=re.MULTILINE)
    place = json.dumps(str(folder.resolve()))
    config += f'backend: "python"\nparameters {{ key: "folder" value: {{ string_value: {place} }} }}\n'
    (model / "config.pbtxt").write_text(config)
    shutil.copy(__file__, model / "1/model.py")
    return model


if __name__ == "__main__":
    exported, target = map(Path, sys.argv[1:])
    make_repository(exported, target)
