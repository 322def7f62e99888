"""Rank correlation of measures that judge policies from the log alone with true values (docs/deploy.md).

python -m benchmarks.judging

In worlds whose true values are known, a dozen policies are judged: CVL, its clone, exactly improved, random and harmful
ones. The log of the world "linear, narrow" lacks most actions.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from itertools import repeat
from multiprocessing import get_context
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor, nn

from benchmarks.common import RESULTS, markdown, record_path, write_record
from cvl_pipeline import api
from cvl_pipeline.episodes.container import Rewards, Transitions
from cvl_pipeline.episodes.parameters import IngestionParameters
from cvl_pipeline.judging.critics import regress_critics
from cvl_pipeline.judging.judge import Judge
from cvl_pipeline.judging.parameters import JudgingParameters
from cvl_pipeline.testing.finite_mdp import FiniteMDP, garnet, grid_world
from cvl_pipeline.testing.linear_gaussian import LinearGaussian, linear_gaussian

Floats = NDArray[np.float64]
World = FiniteMDP | LinearGaussian

HELD_OUT = 0.25
"""Share of the episodes that are held out."""
MEMBERS, STEPS, HIDDEN = 4, 600, (64, 64)
RANDOM_GAINS = 40
"""Random changes of the behaviour's gain, of which the best and the worst are policies."""
ROLLOUTS, LENGTH = 16, 80
"""Rollouts from each start, and their steps, that give the true values in linear worlds."""


@dataclass(frozen=True)
class Setting:
    """A world, and how much of it is logged."""

    world: World
    episodes: int
    steps: int


def settings() -> dict[str, Setting]:
    """The worlds; fixed before the first run."""
    skewed: dict[str, Any] = {"states": 30, "actions": 4, "branching": 3, "discount": 0.9, "rewards": "dense"}
    linear = linear_gaussian(size=4, actions=2, discount=0.9, seed=3)
    return {
        "grid": Setting(grid_world(goal=True), 300, 20),
        "random MDP": Setting(garnet(**skewed, skewed=True, seed=5), 300, 20),
        "random MDP, 24 episodes": Setting(garnet(**skewed, skewed=True, seed=6), 24, 20),
        "linear": Setting(linear, 200, 30),
        "linear, narrow": Setting(replace(linear, spread=0.05), 200, 30),
    }


class Table(nn.Module):
    """A policy of a finite MDP."""

    def __init__(self, actions: Floats, count: int) -> None:
        """Keep the action of each state, (S,)."""
        super().__init__()
        self.one_hot = torch.eye(count)[torch.from_numpy(actions)]

    def forward(self, observations: Tensor) -> Tensor:
        """One-hot actions, (B, S) -> (B, A)."""
        return self.one_hot[observations.argmax(-1)]


class Gain(nn.Module):
    """A linear policy."""

    def __init__(self, gain: Floats) -> None:
        """Keep the gain, (A, O)."""
        super().__init__()
        self.gain = torch.from_numpy(gain).float()

    def forward(self, observations: Tensor) -> Tensor:
        """Actions, (B, O) -> (B, A)."""
        return observations @ self.gain.T


def logged(setting: Setting, seed: int) -> tuple[Transitions, Rewards]:
    """The log of a setting."""
    transitions, rewards = setting.world.log_episodes(setting.episodes, setting.steps, seed)
    if isinstance(setting.world, FiniteMDP):
        return replace(transitions, discrete=torch.tensor(True)), rewards
    # Policies may take any action, so that bounds do not hide how far they go.
    bound = torch.full_like(transitions.action_low, 10.0)
    return replace(transitions, action_low=-bound, action_high=bound), rewards


@torch.no_grad()
def true_values(world: World, policy: nn.Module, starts: Tensor) -> float:
    """Mean value of a policy from some states, (B, O): exact in finite MDPs, by simulation in linear worlds."""
    if isinstance(world, FiniteMDP):
        law = policy(torch.eye(world.states)).double().numpy()
        values = (replace(world, policy=law).q() * law).sum(1)
        return float(values[starts.argmax(-1).numpy()].mean())
    generator = np.random.default_rng(0)
    states = starts.double().numpy().repeat(ROLLOUTS, 0)
    total = np.zeros(len(states))
    for step in range(LENGTH):
        actions = policy(torch.from_numpy(states).float()).double().numpy().clip(-10.0, 10.0)
        states = states @ world.drift.T + actions @ world.push.T
        states += world.noise * generator.standard_normal(states.shape)
        rewards = np.einsum("ni,ij,nj->n", states, world.quadratic, states) + states @ world.linear
        total += world.discount**step * rewards
    return float(total.mean())


def made_policies(world: World, starts: Tensor) -> dict[str, nn.Module]:
    """Policies whose quality is known: improved, random and harmful ones."""
    generator = np.random.default_rng(1)
    if isinstance(world, FiniteMDP):
        q, count = world.q(), world.actions
        choices = generator.integers(count, size=(5, world.states))
        best = q.argmax(1)
        actions = {"mode": world.policy.argmax(1), "improved": best, "harmful": q.argmin(1)}
        actions |= {f"random {place}": row for place, row in enumerate(choices[:3])}
        actions |= {
            f"improved in {share:.0%}": np.where(
                generator.random(world.states) < share, best, choices[3 + place % 2]
            )
            for place, share in enumerate((0.25, 0.5, 0.75, 0.9))
        }
        return {name: Table(row, count) for name, row in actions.items()}
    changes = 0.4 * generator.standard_normal((RANDOM_GAINS, *world.gain.shape)) / np.sqrt(world.size)
    gains = [world.gain + change for change in changes]
    order = np.argsort([true_values(world, Gain(gain), starts) for gain in gains])
    chosen = {"mode": world.gain, "improved": gains[order[-1]], "harmful": gains[order[0]]}
    chosen |= {f"random {place}": gains[place] for place in range(4)}
    chosen |= {
        f"improved by {share:.0%}": (1 - share) * world.gain + share * gains[order[-1]]
        for share in (0.33, 0.66)
    }
    chosen["reversed"] = -world.gain
    return {name: Gain(gain) for name, gain in chosen.items()}


def study(name: str, steps: int, seed: int) -> tuple[list[dict[str, Any]], float]:
    """Judge all policies of a setting; one row per policy with its true value and all numbers.

    Also return the processor seconds.
    """
    torch.set_num_threads(1)
    start = time.process_time()
    setting = settings()[name]
    world = setting.world
    transitions, rewards = logged(setting, seed)
    data = api.EpisodeData.prepare(
        transitions, rewards, IngestionParameters(validation_fraction=HELD_OUT), seed
    )
    training = {"steps": steps, "batch_size": 256, "validation_interval": steps}
    critic, _ = api.train_critic(
        data, seed=seed, hidden=HIDDEN, representation_size=32, validation_batches=1, training=training
    )
    regression = {"steps": steps, "value_steps": steps // 2, "hidden": HIDDEN}
    readout = api.read_out(
        critic, data, seed=seed, discount=world.discount, references=1024, regression=regression
    )
    actor: dict[str, Any] = {"hidden": HIDDEN, "training": training}
    policies: dict[str, nn.Module] = {
        "cvl": api.extract_policy(critic, readout, data, seed=seed, **actor).policy,
        "bc": api.train_method(data, "bc", seed, **actor).policy,
    }
    parameters = JudgingParameters(members=MEMBERS, hidden=HIDDEN, critic_steps=steps, fqe_steps=steps)
    judge = Judge(
        critic, transitions, rewards, data.split, data.normalisation, world.discount, parameters, seed
    )
    others, own = (
        regress_critics(critic, part, world.discount, parameters, seed)
        for part in (judge.held_out, judge.training)
    )
    first = judge.held_out.index[judge.held_out.encoded.episode_starts[:-1]]
    starts = transitions.states(first)
    policies |= made_policies(world, starts)
    rows = []
    for name, policy in policies.items():
        numbers = judge.judge(policy, others)
        rows.append(
            {
                "policy": name,
                "true": true_values(world, policy, starts),
                **numbers,
                "advantage, same episodes": judge.advantage(policy, own)["advantage"],
            }
        )
    return rows, time.process_time() - start


MEASURES: dict[str, Callable[[pd.DataFrame], Any]] = {
    "likeness to the log": lambda rows: rows["agreement"] if "agreement" in rows else -rows["action_error"],
    "advantage": lambda rows: rows["advantage"],
    "advantage, same episodes": lambda rows: rows["advantage, same episodes"],
    "fitted Q evaluation": lambda rows: rows["fqe_value"],
    "closeness of actions": lambda rows: -rows["action_rank"],
}


def summary(rows: pd.DataFrame) -> dict[str, float]:
    """Rank correlation of each measure with the true values, and the errors of fitted Q evaluation."""
    true = rows["true"]
    inside = (rows["fqe_value_ci_low"] <= true) & (true <= rows["fqe_value_ci_high"])
    return {
        **{name: float(stats.spearmanr(true, of(rows)).statistic) for name, of in MEASURES.items()},
        # Medians and quartiles, because an unstable policy may have any value.
        "FQE error / spread": float((rows["fqe_value"] - true).abs().median() / stats.iqr(true)),
        "FQE intervals with the truth": float(inside.mean()),
    }


def main() -> None:
    """Judge, save and print the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--worlds", nargs="+", choices=list(settings()), default=list(settings()))
    parser.add_argument("--steps", type=int, default=STEPS, help="gradient steps of every network")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1, help="processes, each with a world of its own")
    options = parser.parse_args()
    rest = repeat(options.steps), repeat(options.seed)
    if options.jobs == 1:
        studies = list(map(study, options.worlds, *rest))
    else:
        with ProcessPoolExecutor(options.jobs, mp_context=get_context("spawn")) as pool:
            studies = list(pool.map(study, options.worlds, *rest))
    tables = {name: rows for name, (rows, _) in zip(options.worlds, studies, strict=True)}
    seconds = round(sum(seconds for _, seconds in studies))
    correlations = [{"world": name} | summary(pd.DataFrame(rows)) for name, rows in tables.items()]
    path = record_path(RESULTS / "judging.json", parser, options)
    write_record(path, processor_seconds=seconds, correlations=correlations, policies=tables)
    print(markdown(pd.DataFrame(correlations), digits=2))  # noqa: T201


if __name__ == "__main__":
    main()
