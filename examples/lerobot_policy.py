"""An exported policy where LeRobot expects one of its own: ``rollout``, or a loop that calls ``select_action``.

    pip install numpy onnxruntime  # beside lerobot
    policy = LeRobotPolicy("cvl_exported")

Needs torch, which LeRobot has, and no cvl-pipeline.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn


class LeRobotPolicy(nn.Module):
    """Acts on LeRobot's batches: numbers, (B, O), and images with their channels first, (B, C, H, W) from 0 to 1.

    Standardisation is inside, so LeRobot's processors must not standardise.
    """

    def __init__(self, folder: str, names: Mapping[str, str] | None = None, **options: Any) -> None:
        """Load the policy.

        Args:
            folder: the exported folder.
            names: keys of the batch by part, if they are not ``observation.`` and the name of the part, such as
                ``{"image": "observation.images.top"}``.
            options: of the runner's ``load_policy``.
        """
        super().__init__()
        sys.path.insert(0, folder)
        from runner import load_policy

        self.policy = load_policy(folder, **options)
        parts = [part["name"] for part in self.policy.contract["observations"]]
        self.keys = {part: (names or {}).get(part, f"observation.{part}") for part in parts}

    def reset(self) -> None:
        """Start an episode."""
        self.policy.reset()

    @torch.no_grad()
    def select_action(self, batch: Mapping[str, Any]) -> Tensor:
        """Actions, (B, A), of a batch, whose other entries, such as the task, do not matter."""
        parts = {part: _as_in_the_log(batch[key]) for part, key in self.keys.items()}
        return torch.from_numpy(self.policy.select_action(parts))


def _as_in_the_log(part: Tensor) -> Any:
    if part.ndim == 4:  # images: whole numbers from 0 to 255, channels last
        part = (255 * part).round().permute(0, 2, 3, 1)
    return part.cpu().numpy()
