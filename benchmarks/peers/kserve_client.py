"""Ask a server of KServe's protocol v2 over gRPC, and compare its actions and refusals with the runner's.

    python kserve_client.py FOLDER HOST:PORT

Runs where numpy, onnxruntime and tritonclient[grpc] are installed. FOLDER is the exported one that is served. Prints
one JSON object: how many actions differ, and what the server answers to an observation that is not a number.
"""

from __future__ import annotations

import json
import sys
from importlib import metadata
from typing import Any

import numpy as np

NAMES = {"float32": "FP32", "uint8": "UINT8"}
COUNTS = (1, 1, 2, 7, 64)
"""Rows of the requests."""


def main(folder: str, address: str) -> dict[str, Any]:
    """Compare."""
    sys.path.insert(0, folder)
    import tritonclient.grpc as client
    from runner import load_policy
    from tritonclient.utils import InferenceServerException

    policy = load_policy(folder, outside="ignore")
    server = client.InferenceServerClient(address)

    def ask(parts: dict[str, Any]) -> Any:
        inputs = []
        for name, rows in parts.items():
            given = client.InferInput(name, list(rows.shape), NAMES[str(rows.dtype)])
            given.set_data_from_numpy(rows)
            inputs.append(given)
        return server.infer("policy", inputs).as_numpy("action")

    generator, rows, different = np.random.default_rng(0), 0, 0
    for count in COUNTS:
        parts = {}
        for part in policy.contract["observations"]:
            if part["dtype"] == "uint8":
                parts[part["name"]] = generator.integers(0, 256, (count, *part["shape"]), np.uint8)
            else:
                numbers = generator.uniform(part["low"], part["high"], (count, *part["shape"]))
                parts[part["name"]] = numbers.astype(np.float32)
        wanted = np.asarray(policy.select_action(parts)).reshape(count, -1)
        rows += count
        different += int((ask(parts).reshape(count, -1) != wanted).any(1).sum())
    refusal = "none"
    for part in policy.contract["observations"]:
        if part["dtype"] == "float32":
            try:
                ask({**parts, part["name"]: np.full_like(parts[part["name"]], np.nan)})
            except InferenceServerException as error:
                refusal = str(error.message())
    return {
        "server": dict(zip(("name", "version"), _server(server), strict=True)),
        "tritonclient": metadata.version("tritonclient"),
        "observations": rows, "different_actions": different, "refusal": refusal,
    }  # fmt: skip


def _server(server: Any) -> tuple[str, str]:
    found = server.get_server_metadata()
    return found.name, found.version


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:])))  # noqa: T201
