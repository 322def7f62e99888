"""Serve an exported policy to openpi's websocket client, where neither torch nor cvl-pipeline is installed.

    pip install numpy onnxruntime openpi-client
    python openpi_server.py FOLDER 8000

FOLDER is an exported one (docs/deploy.md). The client sends the parts of one observation by name, and gets a chunk of
one action:

    WebsocketClientPolicy("localhost", 8000).infer({"state": state})["actions"]  # (1, A)
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from openpi_client import msgpack_numpy
from openpi_client.base_policy import BasePolicy
from websockets.sync.server import Server, ServerConnection, serve


class OpenPiPolicy(BasePolicy):  # type: ignore[misc]
    """An exported policy with openpi's interface."""

    def __init__(self, folder: str, **options: Any) -> None:
        """Load the policy; options are those of the runner's ``load_policy``."""
        sys.path.insert(0, folder)
        from runner import PolicyError, load_policy

        self.policy, self.refusal = load_policy(folder, **options), PolicyError

    def infer(self, obs: dict[str, Any]) -> dict[str, Any]:
        """Act on one observation, the parts by name; returns ``actions``, (1, A), or (1,) if they are discrete."""
        return {"actions": np.asarray(self.policy.select_action(obs))[None]}

    def reset(self) -> None:
        """Start an episode."""
        self.policy.reset()


def server(policy: OpenPiPolicy, host: str, port: int) -> Server:
    """Make the server. A client gets the contract first; what the runner refuses, it gets as the runner's line."""

    def answer(client: ServerConnection) -> None:
        pack = msgpack_numpy.Packer().pack
        policy.reset()
        client.send(pack(dict(policy.policy.contract)))
        for message in client:
            try:
                client.send(pack(policy.infer(msgpack_numpy.unpackb(message))))
            except policy.refusal as error:
                client.send(str(error))  # the client raises RuntimeError with it

    return serve(answer, host, port, compression=None, max_size=None)


if __name__ == "__main__":
    folder, port = sys.argv[1:]
    server(OpenPiPolicy(folder), "127.0.0.1", int(port)).serve_forever()
