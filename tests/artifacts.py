"""Small objects of every kind of artifact."""

from __future__ import annotations

from typing import Any

import torch

from cvl_pipeline.episodes.preparation import fit_normalisation, split_episodes
from cvl_pipeline.judging.networks import ValueNetworks
from cvl_pipeline.networks.actor import ActorShape, CategoricalActor, GaussianActor
from cvl_pipeline.networks.critic import ContrastiveCritic, CriticShape
from cvl_pipeline.networks.goal_policy import GoalPolicy, make_goal_actor
from cvl_pipeline.objectives.best_of_n import BestOfN
from cvl_pipeline.readout.q_function import QFunction
from cvl_pipeline.readout.readouts import ExactReadout, FeatureReadout, Readout
from cvl_pipeline.readout.regression import RegressedReadout
from cvl_pipeline.testing.builders import (
    make_discrete_transitions,
    make_packed_transitions,
    make_rewards,
    make_transitions,
)

HORIZONS = torch.tensor([1, 4, 9])
NO_HORIZONS = torch.zeros(0, dtype=torch.int64)

NAMES = (
    "transitions", "transitions, discrete", "transitions, packed", "rewards", "split", "normalisation",
    "critic", "critic, of horizons",
    "readout", "readout, of horizons", "readout, fourier", "readout, positive",
    "readout, regressed", "readout, regressed of horizons",
    "policy", "policy, categorical",
    "policy, best of n", "policy, best of n of horizons", "policy, best of n categorical",
    "policy, best of n regressed",
    "policy, goals", "policy, goals categorical", "judging_critics",
)  # fmt: skip
"""Names of ``make_artifacts``; the part before the comma is the kind."""


def kind_of(name: str) -> str:
    """The kind of artifact of that name."""
    return name.split(",")[0]


def make_artifacts() -> dict[str, Any]:
    """One object of every class that is saved, by name."""
    transitions = make_transitions([5, 1, 7], [True, False, False])
    discrete = make_discrete_transitions([5, 1, 7], [True, False, False], action_size=2)
    packed = make_packed_transitions([5, 1, 7], [True, False, False])
    split = split_episodes(transitions, 0.3, 0)
    normalisation = fit_normalisation(transitions, split, 1e-3)
    torch.manual_seed(0)
    bounds = (torch.tensor([-1.0, -2.0]), torch.tensor([1.0, 0.5]))
    # Temperatures learned and fixed.
    shapes = [CriticShape((3,), 2, (8, 4), 6, "unit_norm", 0.3, not k, 0.9, k) for k in (False, True)]
    critic, conditioned = (ContrastiveCritic(shape, normalisation) for shape in shapes)
    common: dict[str, Any] = {"temperature": torch.tensor(0.3), "discount": 0.9, "self_normalised": True}
    references: dict[str, Any] = {
        "psi": torch.randn(9, 6),
        "rewards": torch.rand(9),
        "log_weights": torch.rand(9),
    }
    exact = ExactReadout(**common, **references, horizons=NO_HORIZONS)
    of_horizons = ExactReadout(**common | {"discount": 0.97}, **references, horizons=HORIZONS)
    sums: dict[str, Any] = {
        "directions": torch.randn(16, 6),
        "xi": torch.randn(16),
        "normaliser": torch.rand(16),
    }
    fourier = FeatureReadout(
        **common | {"self_normalised": False}, **sums, phases=torch.rand(16), horizons=NO_HORIZONS
    )
    positive = FeatureReadout(**common, **sums, phases=torch.zeros(0), horizons=NO_HORIZONS)
    regressed, regressed_of_horizons = (
        RegressedReadout(
            temperature=base.temperature, discount=base.discount, self_normalised=True, horizons=base.horizons,
            base=base, networks=torch.randn(2, 64), sizes=(5, 7, 1), mixture=torch.tensor([0.1, 0.6, 0.3]),
        )
        for base in (fourier, of_horizons)
    )  # fmt: skip
    gaussian = GaussianActor(ActorShape((3,), 2, (8, 4)), normalisation, bounds)
    categorical = CategoricalActor(ActorShape((3,), 2, (8, 4)), normalisation)
    with torch.no_grad():  # the bias alone would choose the same action everywhere
        categorical.network[-1].bias.zero_()  # type: ignore[operator]
    proposals = torch.randn(5, 2)
    goal_actors = [make_goal_actor(log, normalisation, (8, 4), {}) for log in (transitions, discrete)]
    goals = transitions.observations[2:6].clone()
    artifacts = (
        transitions, discrete, packed, make_rewards(transitions), split, normalisation,
        critic, conditioned,
        exact, of_horizons, fourier, positive, regressed, regressed_of_horizons,
        gaussian, categorical,
        BestOfN(gaussian, QFunction(critic, exact).frozen("cpu"), proposals),
        BestOfN(gaussian, QFunction(conditioned, of_horizons).frozen("cpu"), proposals),
        BestOfN(categorical, QFunction(critic, positive).frozen("cpu"), proposals),
        BestOfN(gaussian, QFunction(conditioned, regressed_of_horizons).frozen("cpu"), proposals),
        *(GoalPolicy(actor, QFunction(critic, exact).frozen("cpu").critic, goals) for actor in goal_actors),
        ValueNetworks(torch.randn(3, 64), (5, 7, 1), mean=0.5, std=2.0, discount=0.9),
    )  # fmt: skip
    return dict(zip(NAMES, artifacts, strict=True))


def with_flipped_bit(content: bytes, place: int | None = None) -> bytes:
    """The content of a damaged file: one bit differs, in the middle if you name no place."""
    damaged = bytearray(content)
    damaged[len(content) // 2 if place is None else place] ^= 1
    return bytes(damaged)


def contents_of(artifact: Any) -> dict[str, Any]:
    """Every tensor and plain value of a dataclass or of a module, by name."""
    parts = dict(artifact.state_dict()) if isinstance(artifact, torch.nn.Module) else dict(vars(artifact))
    if isinstance(artifact, BestOfN):  # whose readout is no module
        parts["readout"] = artifact.readout
    contents: dict[str, Any] = {}
    for name, value in parts.items():
        if isinstance(value, Readout):
            contents[f"{name} class"] = type(value)
            contents |= {f"{name}.{inner}": part for inner, part in contents_of(value).items()}
        else:
            contents[name] = value
    return contents


def assert_alike(one: Any, other: Any) -> None:
    """Check that two objects have the same class and bitwise the same contents."""
    assert type(one) is type(other)
    ours, theirs = contents_of(one), contents_of(other)
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert type(ours[name]) is type(value), name
        if isinstance(value, torch.Tensor):
            assert ours[name].dtype == value.dtype, name
            assert torch.equal(ours[name], value), name
        else:
            assert ours[name] == value, name
