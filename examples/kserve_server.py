"""Serve an exported policy with KServe's Python server, where neither torch nor cvl-pipeline is installed.

    pip install numpy onnxruntime kserve
    python kserve_server.py FOLDER 8080 8081

FOLDER is an exported one (docs/deploy.md); the numbers are the ports of HTTP and gRPC. The server listens on all
networks, as containers of KServe do, and asks nobody for a password.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from kserve import InferOutput, InferResponse, Model, ModelServer
from kserve.errors import InvalidInput


class KServePolicy(Model):  # type: ignore[misc]
    """An exported policy as the model ``policy`` of protocol v2."""

    def __init__(self, folder: str, **options: Any) -> None:
        """Load the policy; options are those of the runner's ``load_policy``."""
        super().__init__("policy")
        sys.path.insert(0, folder)
        from runner import PolicyError, load_policy

        self.policy, self.refusal = load_policy(folder, **options), PolicyError
        self.ready = True

    async def predict(self, payload: Any, *_: Any, **__: Any) -> Any:
        """Act on the parts of observations, (B, *shape). The client gets the runner's line for what it refuses."""
        try:
            actions = np.asarray(
                self.policy.select_action({one.name: one.as_numpy() for one in payload.inputs})
            )
        except self.refusal as error:
            raise InvalidInput(str(error)) from None
        answer = InferOutput("action", list(actions.shape), "INT64" if actions.dtype.kind == "i" else "FP32")
        answer.set_data_from_numpy(actions, binary_data=payload.from_grpc)  # over HTTP, JSON
        return InferResponse(payload.id or "", "policy", [answer])


if __name__ == "__main__":
    folder, http, grpc = sys.argv[1:]
    del sys.argv[1:]  # ModelServer reads them, too
    ModelServer(http_port=int(http), grpc_port=int(grpc)).start([KServePolicy(folder)])
