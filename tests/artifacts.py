"""One small object of every kind of artifact."""

from __future__ import annotations

from typing import Any

import torch

from cvl_pipeline.networks.actor import ActorShape, GaussianActor
from cvl_pipeline.networks.critic import ContrastiveCritic, CriticShape
from cvl_pipeline.readout.exact import Readout
from cvl_pipeline.trajectories.preparation import fit_normalisation, split_episodes
from tests.builders import make_rewards, make_transitions


def make_artifacts() -> dict[str, Any]:
    """One object of every kind that is stored."""
    transitions = make_transitions([5, 1, 7], [True, False, False])
    split = split_episodes(transitions, 0.3, 0)
    normalisation = fit_normalisation(transitions, split, 1e-3)
    torch.manual_seed(0)
    return {
        "transitions": transitions,
        "rewards": make_rewards(transitions),
        "split": split,
        "normalisation": normalisation,
        "critic": ContrastiveCritic(CriticShape(3, 2, (8, 4), 6, "unit_norm", 0.3, True, 0.9), normalisation),
        "readout": Readout(torch.randn(9, 6), torch.rand(9), torch.tensor(0.3), torch.tensor(0.97)),
        "actor": GaussianActor(
            ActorShape(3, 2, (8, 4)), normalisation, (torch.tensor([-1.0, -2.0]), torch.tensor([1.0, 0.5]))
        ),
    }


def tensors_of(artifact: Any) -> dict[str, torch.Tensor]:
    """The tensors of a dataclass of tensors or of a module, by name."""
    return dict(artifact.state_dict()) if isinstance(artifact, torch.nn.Module) else dict(vars(artifact))
