"""The interface of Q(s, a): what objectives need of it, whether it is CVL's or a network of another method."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Self

import torch
from torch import Tensor

from cvl_pipeline.episodes.container import Transitions
from cvl_pipeline.readout.references import CHUNK
from cvl_pipeline.training.threads import mapped

ROUNDING = 1e-5
"""Differences between values that are smaller than this share of them are rounding."""


class ActionValues(ABC):
    """Q of the behaviour policy. Actions are as in ``Transitions``: one-hot if they are discrete."""

    @abstractmethod
    def __call__(self, observations: Any, actions: Any) -> Any:
        """Q of pairs, tensors (B, O) and (B, A) -> (B,); differentiable in both."""

    @abstractmethod
    def of_actions(self, observations: Tensor, actions: Tensor) -> Tensor:
        """Q of several actions per state, (B, O) and (B, M, A) -> (B, M)."""

    @abstractmethod
    def encode(self, observations: Tensor) -> Tensor:
        """Features of states for networks of V(s), (B, O) -> (B, F)."""

    @abstractmethod
    def frozen(self, device: torch.device | str) -> Self:
        """Copy the function to a device, without gradients for its weights; the original is unchanged."""

    @property
    @abstractmethod
    def parts(self) -> tuple[Any, ...]:
        """All that the values depend on, as modules and dataclasses of tensors; fingerprints cover it."""

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Device of the weights."""

    @property
    @abstractmethod
    def action_size(self) -> int:
        """Size of an action, A."""

    def values_and_sample_size(self, observations: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        """Q of pairs and its effective sample size, (B,) each; NaN for a Q that is no weighted mean of samples."""
        values: Tensor = self(observations, actions)
        return values, torch.full_like(values, torch.nan)

    def rows_in_chunk(self, actions: int) -> int:
        """Return how many states with as many actions each are computed at once."""
        return max(1, CHUNK // actions)

    @torch.no_grad()
    def in_batches(self, observations: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        """Q and effective sample size of many pairs, (N, O) and (N, A) -> (N,) each."""
        values, sizes = [], []
        rows = self.rows_in_chunk(1)
        for start in range(0, len(actions), rows):
            part = slice(start, start + rows)
            value, size = self.values_and_sample_size(observations[part], actions[part])
            values.append(value)
            sizes.append(size)
        return torch.cat(values), torch.cat(sizes)

    def of_transitions(
        self, transitions: Transitions, index: Tensor, actions: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Q and effective sample size of logged states with logged actions, (M,) each.

        Args:
            transitions: the log; also on another device.
            index: (M,) int64, transitions that provide the states.
            actions: (M,) int64, transitions that provide the actions; None: the same.
        """
        rows, device = self.rows_in_chunk(1), self.device
        actions = index if actions is None else actions

        def part(states: Tensor, taken: Tensor) -> tuple[Tensor, Tensor]:
            pairs = transitions.states(states), transitions.actions.index_select(0, taken)
            return self.in_batches(*(rows.to(device) for rows in pairs))

        parts = torch.split(index, rows), torch.split(actions, rows)
        values, sizes = zip(*mapped(part, *parts, device=device, wide=transitions.wide), strict=True)
        return torch.cat(values), torch.cat(sizes)

    def of_all_actions(self, observations: Tensor) -> Tensor:
        """Q of every discrete action, (B, O) -> (B, A); actions are one-hot."""
        actions = torch.eye(self.action_size, device=observations.device)
        return self.of_actions(observations, actions.expand(len(observations), -1, -1))
