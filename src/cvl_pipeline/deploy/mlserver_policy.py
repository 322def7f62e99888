"""Serves an exported folder with MLServer: ``mlserver start FOLDER`` finds it by the folder's ``model-settings.json``.

This file is copied into exported folders. It needs MLServer, NumPy and the runner beside it, nothing else of this
package.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

try:
    from mlserver import MLModel
    from mlserver.codecs import NumpyCodec
    from mlserver.errors import InferenceError
    from mlserver.types import InferenceResponse
    from mlserver.utils import get_model_uri
except ImportError:  # where policies are exported, there is no server
    MLModel = object


class ServedPolicy(MLModel):  # type: ignore[misc]
    """Answers with the actions for observations; with their values, if the request has actions, too.

    Inputs are the parts of the observation, (B, *shape), by name. What the runner refuses is answered with status 400
    and the runner's line. ``parameters.extra`` of the settings are options of ``load_policy``.
    """

    async def load(self) -> bool:
        """Load the policy from the folder of the settings."""
        folder = await get_model_uri(self.settings)
        sys.path.insert(0, folder)
        from runner import PolicyError, load_policy

        self.policy, self.refusal = load_policy(folder, **(self.settings.parameters.extra or {})), PolicyError
        return True

    async def predict(self, payload: Any) -> Any:
        """Act, or judge an action."""
        inputs = {given.name: NumpyCodec.decode_input(given) for given in payload.inputs}
        try:
            if "action" in inputs:
                action = inputs.pop("action")
                if self.policy.contract["action"]["discrete"]:
                    action = action.reshape(-1)  # the codec writes (B,) as (B, 1)
                name, answer = "value", self.policy.value(inputs, action)
            else:
                name, answer = "action", self.policy.select_action(inputs)
        except self.refusal as error:
            raise InferenceError(str(error)) from None
        return InferenceResponse(
            model_name=self.name,
            id=payload.id,
            outputs=[NumpyCodec.encode_output(name, np.asarray(answer))],
        )
