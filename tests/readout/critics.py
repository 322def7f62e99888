"""A small untrained critic."""

from __future__ import annotations

import torch

from cvl_pipeline.networks.critic import ContrastiveCritic, CriticShape


def small_critic(
    discount: float = 0.9, temperature: float = 0.25, horizon_conditioning: bool = False
) -> ContrastiveCritic:
    """Three observed numbers and two actions become points on a sphere in four dimensions."""
    torch.manual_seed(0)
    return ContrastiveCritic(
        CriticShape((3,), 2, (8,), 4, "unit_norm", temperature, False, discount, horizon_conditioning)
    )
