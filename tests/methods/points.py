"""A world of points in a square, whose log has no task."""

from __future__ import annotations

import torch
from torch import Generator, Tensor, nn

from cvl_pipeline.episodes.container import Transitions

STEP = 0.1
"""Length of the largest move along each axis; the square is (-1, 1)^2."""
NEAR = 0.15


def log_points(episodes: int, steps: int, seed: int = 0) -> Transitions:
    """Points that walk, with much noise, from one random waypoint to the next."""
    generator = Generator().manual_seed(seed)

    def places() -> Tensor:
        return torch.rand(episodes, 2, generator=generator) * 2.0 - 1.0

    points, waypoints = [places()], places()
    actions = []
    for _ in range(steps):
        arrived = (waypoints - points[-1]).norm(dim=1, keepdim=True) < NEAR
        waypoints = torch.where(arrived, places(), waypoints)
        towards = ((waypoints - points[-1]) / STEP).clamp(-1.0, 1.0)
        actions.append((0.6 * towards + 0.5 * torch.randn(episodes, 2, generator=generator)).clamp(-1.0, 1.0))
        points.append(moved(points[-1], actions[-1]))
    return Transitions(
        observations=torch.stack(points, 1).reshape(-1, 2),
        actions=torch.stack(actions, 1).reshape(-1, 2),
        episode_starts=torch.arange(episodes + 1) * steps,
        terminated=torch.zeros(episodes, dtype=torch.bool),
        truncated=torch.ones(episodes, dtype=torch.bool),
        action_low=-torch.ones(2),
        action_high=torch.ones(2),
    )


def moved(points: Tensor, actions: Tensor) -> Tensor:
    """Where actions lead, (B, 2) and (B, 2) -> (B, 2)."""
    return (points + STEP * actions).clamp(-1.0, 1.0)


def share_that_arrives(policy: nn.Module, goal: Tensor, steps: int = 40, starts: int = 50) -> float:
    """Share of random starts from which a policy comes near the goal, (2,)."""
    points = torch.rand(starts, 2, generator=Generator().manual_seed(1)) * 2.0 - 1.0
    arrived = torch.zeros(starts, dtype=torch.bool)
    for _ in range(steps):
        with torch.no_grad():
            points = moved(points, policy(points))
        arrived |= (points - goal).norm(dim=1) < NEAR
    return float(arrived.float().mean())
