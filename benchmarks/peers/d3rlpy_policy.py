"""A policy of d3rlpy's algorithms, trained on a log in D4RL's format, for ``benchmarks.references``.

Losses, updates and targets are d3rlpy's own. Its default networks have LayerNorm after ReLU; here, as in this package,
LayerNorm comes first. Batches are drawn from arrays, because d3rlpy's own buffer takes longer than a step and has no
next observation for the last step of a truncated episode.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import d3rlpy
import h5py
import numpy as np
import torch
from d3rlpy.dataset import TransitionMiniBatch
from d3rlpy.models.encoders import EncoderFactory, register_encoder_factory
from d3rlpy.models.torch.encoders import VectorEncoder, VectorEncoderWithAction
from d3rlpy.optimizers import AdamFactory
from d3rlpy.optimizers.lr_schedulers import CosineAnnealingLRFactory
from d3rlpy.preprocessing import MultiplyRewardScaler, StandardObservationScaler
from torch import nn

Log = dict[str, np.ndarray]

SMALLEST = 1e-6
"""Smallest standard deviation that rewards are divided by."""


@dataclasses.dataclass()
class NormalisedFactory(EncoderFactory):
    """Hidden layers of Linear, LayerNorm and ReLU, in this order."""

    hidden: list[int] = dataclasses.field(default_factory=lambda: [256, 256])

    def create(self, observation_shape: Sequence[int]) -> VectorEncoder:
        """Build the encoder of observations."""
        return normalised(VectorEncoder(observation_shape, self.hidden), self.hidden)

    def create_with_action(
        self, observation_shape: Sequence[int], action_size: int, discrete_action: bool = False
    ) -> VectorEncoderWithAction:
        """Build the encoder of observations and actions."""
        encoder = VectorEncoderWithAction(
            observation_shape, action_size, self.hidden, discrete_action=discrete_action
        )
        return normalised(encoder, self.hidden)

    @staticmethod
    def get_type() -> str:
        """Name of the encoder in d3rlpy's files."""
        return "normalised"


register_encoder_factory(NormalisedFactory)


def normalised(encoder: Any, hidden: Sequence[int]) -> Any:
    """Insert LayerNorm after every linear layer of an encoder, which has a Linear and a ReLU per hidden layer."""
    linear = [layer for layer in encoder._layers if isinstance(layer, nn.Linear)]
    layers: list[nn.Module] = []
    for layer, size in zip(linear, hidden, strict=True):
        layers += [layer, nn.LayerNorm(size), nn.ReLU()]
    encoder._layers = nn.Sequential(*layers)
    return encoder


def read(path: Path, episodes: Sequence[int]) -> Log:
    """Read the steps of some episodes, N rows each.

    Args:
        path: log in D4RL's format, with ``next_observations`` and ``timeouts``.
        episodes: numbers of the episodes, from 0, in the order of the file.
    """
    with h5py.File(path) as file:
        log = {name: values[()] for name, values in file.items()}
    ends = log["terminals"] | log["timeouts"]
    numbers = np.concatenate([[0], np.cumsum(ends)[:-1]])
    chosen = np.isin(numbers, episodes)
    return {name: values[chosen] for name, values in log.items()}


def create(job: dict[str, Any], log: Log) -> Any:
    """Build the algorithm with the settings of the job."""
    settings, steps, rate = job["settings"], job["steps"], job["learning_rate"]
    encoder = NormalisedFactory(list(job["hidden"]))

    def adam(updates: int = steps) -> AdamFactory:
        return AdamFactory(lr_scheduler_factory=CosineAnnealingLRFactory(T_max=updates))

    shared = {
        "batch_size": job["batch"],
        "observation_scaler": StandardObservationScaler(
            mean=log["observations"].mean(0), std=log["observations"].std(0), eps=0.0
        ),
    }
    if job["method"] == "bc":
        return d3rlpy.algos.BCConfig(
            **shared, learning_rate=rate, optim_factory=adam(), encoder_factory=encoder
        ).create(job["device"])
    shared |= {
        "reward_scaler": MultiplyRewardScaler(1.0 / max(float(log["rewards"].std()), SMALLEST)),
        "gamma": settings["discount"], "tau": settings["target_rate"],
        "actor_learning_rate": rate, "critic_learning_rate": rate,
        "actor_optim_factory": adam(), "critic_optim_factory": adam(),
        "actor_encoder_factory": encoder, "critic_encoder_factory": encoder,
    }  # fmt: skip
    if job["method"] == "iql":
        config = d3rlpy.algos.IQLConfig(
            **shared, value_encoder_factory=encoder, expectile=settings["expectile"],
            weight_temp=settings["beta"], max_weight=settings["max_weight"],
        )  # fmt: skip
    elif job["method"] == "td3_bc":
        delay = settings["policy_delay"]
        shared["actor_optim_factory"] = adam(-(-steps // delay))
        config = d3rlpy.algos.TD3PlusBCConfig(
            **shared, alpha=settings["alpha"], update_actor_interval=delay,
            target_smoothing_sigma=settings["target_noise"], target_smoothing_clip=settings["noise_clip"],
        )  # fmt: skip
    else:
        shared["actor_learning_rate"] = rate * settings["actor_rate"]
        config = d3rlpy.algos.CQLConfig(
            **shared, temp_learning_rate=rate * settings["actor_rate"], temp_optim_factory=adam(),
            conservative_weight=settings["conservative_weight"], n_action_samples=settings["samples"],
            alpha_learning_rate=0.0,  # no Lagrange multiplier
        )  # fmt: skip
    return config.create(job["device"])


def main() -> None:
    """Train, save the policy as TorchScript, and print the time."""
    job = json.loads(sys.argv[1])
    d3rlpy.seed(job["seed"])
    torch.set_float32_matmul_precision("highest")  # d3rlpy chooses tf32 on GPUs
    generator = np.random.default_rng(job["seed"])
    log = read(Path(job["log"]), job["episodes"])
    observations, actions, arrivals = (
        log[name].astype(np.float32) for name in ("observations", "actions", "next_observations")
    )
    rewards, terminals = (log[name].astype(np.float32)[:, None] for name in ("rewards", "terminals"))
    learner = create(job, log)
    learner.create_impl(observations.shape[1:], actions.shape[1])
    batch = job["batch"]
    ones = np.ones((batch, 1), dtype=np.float32)
    start = time.process_time()
    losses: dict[str, float] = {}
    for _ in range(job["steps"]):
        index = generator.integers(len(actions), size=batch)
        losses = learner.update(
            TransitionMiniBatch(
                observations=observations[index],
                actions=actions[index],
                rewards=rewards[index],
                next_observations=arrivals[index],
                next_actions=actions[index],  # not used by these algorithms
                terminals=terminals[index],
                intervals=ones,
                transitions=[],
            )
        )
    if not all(np.isfinite(value) for value in losses.values()):
        raise FloatingPointError("a loss is not a number")
    # A traced policy stays on the device on which it was traced.
    traced = create(job | {"device": "cpu:0"}, log)
    traced.create_impl(observations.shape[1:], actions.shape[1])
    name = "imitator" if job["method"] == "bc" else "policy"
    network, trained = (getattr(one.impl.modules, name) for one in (traced, learner))
    network.load_state_dict(trained.state_dict())
    traced.save_policy(job["policy"])
    result = {
        "seconds": time.process_time() - start,
        "transitions": len(actions),
        "losses": losses,
        "versions": {"d3rlpy": d3rlpy.__version__, "torch": torch.__version__},
    }
    print(json.dumps(result))  # noqa: T201


if __name__ == "__main__":
    main()
