"""Q(s, a) of the behaviour policy: a critic combined with a readout."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, overload

import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from cvl_pipeline.errors import InputError
from cvl_pipeline.networks.arrays import as_rows
from cvl_pipeline.networks.critic import ContrastiveCritic
from cvl_pipeline.readout.action_values import ActionValues
from cvl_pipeline.readout.readouts import Readout
from cvl_pipeline.readout.references import CHUNK

Array = NDArray[Any]


@dataclass(frozen=True)
class QFunction(ActionValues):
    """Action values from a critic, trained without rewards, and a readout, which contains the rewards."""

    critic: ContrastiveCritic
    readout: Readout

    @overload
    def __call__(self, observations: Tensor, actions: Tensor) -> Tensor: ...

    @overload
    def __call__(self, observations: Array | Mapping[str, ArrayLike], actions: Array) -> Array: ...

    def __call__(
        self, observations: Tensor | Array | Mapping[str, ArrayLike], actions: Tensor | Array
    ) -> Tensor | Array:
        """Q of state-action pairs, with actions as in ``Transitions``: one-hot if they are discrete.

        Args:
            observations: tensor (B, O); or NumPy numbers of any type, (O,) or (B, O), images (H, W, C) or (B, H, W, C);
                or such arrays by name of the part, if observations have parts.
            actions: tensor (B, A); or NumPy numbers of any type, (A,) or (B, A).

        Returns:
            For tensors (B,), differentiable in both. For arrays float32, (B,); a single number for one pair.

        Raises:
            InputError: arrays of other shapes, or that hold a value that is not a finite number.
        """
        if isinstance(observations, Tensor) and isinstance(actions, Tensor):
            pair = tuple(
                part.float() if part.dtype == torch.float64 else part for part in (observations, actions)
            )
            return self.readout.values(self.phi(*pair), self.inputs(*pair))
        return self._of_arrays(observations, actions)

    @torch.no_grad()
    def _of_arrays(self, observations: ArrayLike | Mapping[str, ArrayLike], actions: ArrayLike) -> Array:
        shape = self.critic.shape
        states = as_rows(observations, tuple(shape.observation_shape), "observations", "critic", shape.parts)
        taken = as_rows(actions, (shape.action_size,), "actions", "critic")
        single = taken.ndim == 1
        if (states.ndim == len(shape.observation_shape)) != single or (
            not single and len(states) != len(taken)
        ):
            raise InputError(
                f"observations have shape {tuple(states.shape)} and actions {tuple(taken.shape)}; give one action per "
                "observation"
            )
        pair = (part.unsqueeze(0) if single else part for part in (states, taken))
        values: Array = self(*(part.to(self.device) for part in pair)).cpu().numpy()
        return values[0] if single else values

    def phi(self, observations: Tensor, actions: Tensor) -> Tensor:
        """Representations for the readout: (..., D), or (..., H, D) for a horizon-conditioned critic.

        The leading axes of observations (..., O) and actions (..., A) are broadcast, and each state is encoded once.
        """
        horizons = self.readout.horizons
        if not len(horizons):
            return self.critic.phi(observations, actions)
        before_state = -1 - len(self.critic.shape.observation_shape)
        return self.critic.phi(observations.unsqueeze(before_state), actions.unsqueeze(-2), horizons)

    def inputs(self, observations: Tensor, actions: Tensor) -> Tensor | None:
        """Encoded pairs, (..., I), if the readout needs them; see ``phi``."""
        return self.critic.inputs(observations, actions) if self.readout.needs_inputs else None

    def rows_in_chunk(self, actions: int) -> int:
        """Return how many states with as many actions each have CHUNK representations."""
        return max(1, CHUNK // (actions * max(1, len(self.readout.horizons))))

    def values_and_sample_size(self, observations: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        """Q of pairs, and the effective sample size of the readout, (B,) each."""
        return self.readout.values_and_sample_size(
            self.phi(observations, actions), self.inputs(observations, actions)
        )

    def of_actions(self, observations: Tensor, actions: Tensor) -> Tensor:
        """Q of several actions per state, (B, O) and (B, M, A) -> (B, M); each state is encoded once."""
        pairs = observations.unsqueeze(1), actions
        phi, inputs = self.phi(*pairs).flatten(0, 1), self.inputs(*pairs)
        values = self.readout.values(phi, None if inputs is None else inputs.flatten(0, 1))
        return values.reshape(actions.shape[:2])

    def encode(self, observations: Tensor) -> Tensor:
        """Features of states, as the critic encodes them, (B, O) -> (B, F)."""
        features: Tensor = self.critic.encode_observation(observations)
        return features

    @property
    def parts(self) -> tuple[Any, ...]:
        """Critic and readout."""
        return self.critic, self.readout

    @property
    def device(self) -> torch.device:
        """Device of the critic."""
        return next(self.critic.parameters()).device

    @property
    def action_size(self) -> int:
        """Size of an action, A."""
        return self.critic.shape.action_size

    def frozen(self, device: torch.device | str) -> QFunction:
        """Copy the function to a device, without gradients for its weights; the original is unchanged."""
        return QFunction(copy.deepcopy(self.critic).to(device).requires_grad_(False), self.readout.to(device))
