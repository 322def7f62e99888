"""Effect of single ideas for better action values on the policy (docs/tuning.md).

The script also ranks numbers from held-out episodes against the policies' returns, to test which of them
identifies the better critic without the environment. The seeds are those reserved for choosing settings.

    python -m benchmarks.ideas --tasks reach-v3 door-open-v3 push-v3 drawer-close-v3 --seeds 0 1 2
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pandas as pd
import torch
from scipy import stats
from torch import Generator, Tensor

from benchmarks.common import PROJECT, RESULTS, half_width, markdown, write_record
from cvl_pipeline.api import EpisodeData, QFunction, evaluate, ingest, load, read_out
from cvl_pipeline.dynamics.module import ContrastiveDynamics
from cvl_pipeline.episodes.container import Transitions
from cvl_pipeline.episodes.preparation import fit_normalisation, observed_returns
from cvl_pipeline.episodes.sampling import Draws, Segments, SegmentSampler
from cvl_pipeline.networks.actor import Actor
from cvl_pipeline.networks.mlp import MLP
from cvl_pipeline.objectives.advantages import MarginalActions, advantages
from cvl_pipeline.objectives.awr import AdvantageWeightedRegression
from cvl_pipeline.objectives.training import train_policy
from cvl_pipeline.parameters import StageParameters
from cvl_pipeline.sources.environment import environment_for
from cvl_pipeline.training.fit import fit

PARAMETERS = StageParameters()
FOLDER = PROJECT / "data/ideas"
DISCOUNTS = (0.9, 0.97, 0.99)
"""Discounts of the held-out returns on which all critics are measured, for any discount of their own."""
STEPS_LEFT = 30
"""Smallest number of logged steps after which a return is measured."""


class OtherActions(ContrastiveDynamics):
    """Training with a second loss: choose the logged action among five; four come from other states."""

    weight = 0.5
    others = 4

    def training_loss(self, batch: Draws | Segments) -> tuple[Tensor, dict[str, Tensor]]:
        """Sum of the contrastive loss and the cross-entropy of the choice."""
        segments = batch if isinstance(batch, Segments) else self.read(batch)
        phi, psi = self._representations(segments)
        logits = self.critic.logits(phi, psi)
        # Seeded by the batch, so that the same step always samples the same actions.
        generator = Generator().manual_seed(int(segments.anchors.sum()))
        train = self._transitions.transition_index(self._split.train)
        index = train[torch.randint(len(train), (len(phi), self.others), generator=generator)]
        phi = self.critic.phi(segments.observations.unsqueeze(1), self._transitions.actions[index])
        other = (phi * psi.unsqueeze(1)).sum(-1) / self.critic.temperature
        choice = torch.cat([logits.diagonal().unsqueeze(1), other], 1)
        return self._loss(logits) - self.weight * choice.log_softmax(1)[:, 0].mean(), {}


@dataclass(frozen=True)
class Ensemble(QFunction):
    """Mean Q of several critics."""

    members: tuple[QFunction, ...]

    def in_batches(self, observations: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        """See QFunction; the sample size is a mean too."""
        results = [member.in_batches(observations, actions) for member in self.members]
        values, sizes = (torch.stack(parts).mean(0) for parts in zip(*results, strict=True))
        return values, sizes

    def frozen(self, device: torch.device | str) -> Ensemble:
        """See QFunction."""
        members = tuple(member.frozen(device) for member in self.members)
        return Ensemble(members[0].critic, members[0].readout, members)


@dataclass(frozen=True)
class Idea:
    """Changes to the pipeline's settings.

    Attributes:
        dynamics: parameters of the critic.
        readout: parameters of the readout.
        module: training module of the critic.
        members: number of critics whose Q is averaged.
        action_free: V comes from a critic without actions.
    """

    dynamics: dict[str, Any] = field(default_factory=dict)
    readout: dict[str, Any] = field(default_factory=dict)
    module: type[ContrastiveDynamics] = ContrastiveDynamics
    members: int = 1
    action_free: bool = False


ALONE: dict[str, Any] = {"regression": None}

IDEAS = {
    "defaults": Idea(),
    "1 segment an episode": Idea({"segments_per_episode": 1}),
    "other actions as negatives": Idea(module=OtherActions),
    "V of an action-free critic": Idea(action_free=True),
    "representation 256": Idea({"representation_size": 256}),
    "temperature 0.05": Idea({"temperature": 0.05}),
    "temperature 0.25": Idea({"temperature": 0.25}),
    "ensemble of 3": Idea(members=3),
    "without regression": Idea(readout=ALONE),
    **{
        f"critic's discount {discount}, without regression": Idea({"discount": discount}, ALONE)
        for discount in (0.97, 0.9, 0.8, 0.6, 0.3, 0.02)
    },
}
"""Changes of the pipeline's defaults; the critic's discount 0.97 is the first version's, with fewer steps."""


def without_actions(data: EpisodeData) -> EpisodeData:
    """Copy episodes with all actions zero, so that their critic depends on states only."""
    blank = replace(data.transitions, actions=torch.zeros_like(data.transitions.actions))
    return replace(data, transitions=blank, normalisation=fit_normalisation(blank, data.split, 1.0))


def parameters_of(task: str) -> StageParameters:
    """Return the default parameters for a task."""
    dataset = PARAMETERS.dataset.model_copy(update={"task": task})
    return PARAMETERS.model_copy(update={"dataset": dataset})


def collected(task: str, seed: int, workers: int | None) -> EpisodeData:
    """Load the episodes of an earlier ``kedro run`` of a task, or collect new ones with the default settings."""
    parameters = parameters_of(task)
    files = [
        PROJECT / f"data/01_raw/{task}/seed_{seed}/{name}.safetensors" for name in ("transitions", "rewards")
    ]
    if all(file.exists() for file in files):
        transitions, rewards = (load(file) for file in files)
    else:
        transitions, rewards = ingest(parameters.dataset, seed, workers)
    return EpisodeData.prepare(transitions, rewards, parameters.data_ingestion, seed)


class Critics:
    """Critics with their readouts; each is trained once and shared by all ideas that use it."""

    def __init__(self, data: EpisodeData, seed: int) -> None:
        """Train on ``data``; every member of an ensemble has its own seed."""
        self._data = data
        self._seed = seed
        self._trained: dict[str, QFunction] = {}

    def __call__(self, idea: Idea, member: int = 0, blind: bool = False) -> QFunction:
        """Q of one critic; ``blind``: without actions."""
        settings = sorted(idea.dynamics.items()), sorted(idea.readout.items())
        key = repr((*settings, idea.module.__name__, member, blind))
        if key not in self._trained:
            data = without_actions(self._data) if blind else self._data
            seed = self._seed + 1000 * member
            module = idea.module(data, PARAMETERS.contrastive_dynamics.model_copy(update=idea.dynamics), seed)
            fit(module, description="Training the contrastive critic")
            critic = module.critic.cpu().eval()
            readout = PARAMETERS.value_readout.model_copy(update=idea.readout)
            self._trained[key] = QFunction(critic, read_out(critic, data, readout, seed))
        return self._trained[key]

    def q(self, idea: Idea) -> QFunction:
        """Q of an idea."""
        members = tuple(self(idea, member) for member in range(idea.members))
        return members[0] if len(members) == 1 else Ensemble(members[0].critic, members[0].readout, members)

    def state_value(self, idea: Idea) -> AbstractContextManager[Any]:
        """Replace the default V(s) by the idea's within the context."""
        if not idea.action_free:
            return nullcontext()
        blind = self(idea, blind=True)

        def values(_: Any, q: QFunction, transitions: Transitions, index: Tensor, *__: Any) -> Tensor:
            return blind.in_batches(transitions.states(index), torch.zeros_like(transitions.actions[index]))[
                0
            ]

        return patch.object(MarginalActions, "values", values)


def returns_per_step(data: EpisodeData, episodes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """States (N, O), returns (N, discounts) as in ``value_table``, and steps left (N,)."""
    assert data.rewards is not None
    transitions = data.transitions.select(episodes)
    labels = data.rewards.select(data.transitions.transition_index(episodes))
    index = torch.arange(len(transitions))
    left = transitions.episode_starts[transitions.episode_of(index) + 1] - index
    returns = [observed_returns(labels.rewards, transitions, discount) for discount in DISCOUNTS]
    return transitions.states(), torch.stack(returns, 1).float(), left


def held_out_table(data: EpisodeData, seed: int) -> pd.DataFrame:
    """Returns of the held-out transitions, and residuals after a network's prediction from the state."""
    states, returns, left = returns_per_step(data, data.split.validation)
    train_states, train_returns, train_left = returns_per_step(data, data.split.train)
    mean, std = data.normalisation.observation_mean, data.normalisation.observation_std
    train_states, train_returns = (part[train_left > STEPS_LEFT] for part in (train_states, train_returns))
    centre, spread = train_returns.mean(0), train_returns.std(0)
    generator = Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = MLP(states.shape[1], (256, 256), len(DISCOUNTS))
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=0.1)
    for _ in range(1000):  # few steps, so that the network does not memorise episodes
        index = torch.randint(len(train_states), (512,), generator=generator)
        predicted = network((train_states[index] - mean) / std)
        loss = (predicted - (train_returns[index] - centre) / spread).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        expected = network((states - mean) / std) * spread + centre
    columns = {"left": left.numpy()}
    for number, discount in enumerate(DISCOUNTS):
        columns[f"return {discount}"] = returns[:, number].numpy()
        columns[f"residual {discount}"] = (returns - expected)[:, number].numpy()
    return pd.DataFrame(columns)


@torch.no_grad()
def telling_actions(q: QFunction, data: Transitions) -> float:
    """Share of held-out segments with f(s, a, s') > f(s, b, s') for a random logged action b."""
    generator = Generator().manual_seed(0)
    segments = SegmentSampler(data, q.critic.shape.discount).sample(8192, generator)
    other = data.actions[torch.randint(len(data), (8192,), generator=generator)]
    psi = q.critic.psi(segments.futures, segments.absorbed)
    logged, another = (
        (q.critic.phi(segments.observations, actions) * psi).sum(1) for actions in (segments.actions, other)
    )
    return float((logged > another).float().mean())


def study(task: str, seed: int, chosen: dict[str, Idea], folder: Path, workers: int | None) -> None:
    """Run all ideas on one log; save a table of held-out transitions and a record per idea."""
    parameters = parameters_of(task)
    extraction = parameters.policy_extraction
    assert isinstance(extraction, AdvantageWeightedRegression.Parameters)
    environment = environment_for(parameters.dataset, parameters.evaluation)
    data = collected(task, seed, workers)
    critics = Critics(data, seed)
    held_out = data.transitions.select(data.split.validation)
    states = held_out.states()
    folder.mkdir(parents=True, exist_ok=True)
    table = held_out_table(data, seed)
    records: list[dict[str, Any]] = []
    actions: dict[str, Tensor] = {}
    judges: dict[str, QFunction] = {}
    for name, idea in chosen.items():
        start = time.perf_counter()
        q = critics.q(idea)
        with critics.state_value(idea):
            actor, _ = train_policy(data, extraction, seed, values=q)
            table[f"advantage: {name}"] = advantages(
                q, held_out, torch.arange(len(held_out)), extraction.state_value, seed
            ).numpy()
        rollouts = evaluate(
            actor, environment, episodes=parameters.evaluation.episodes, seed=seed, workers=workers
        )
        with torch.no_grad():
            assert isinstance(actor, Actor)
            actions[name] = actor(states)
            table[f"log_prob: {name}"] = actor.log_prob(states, held_out.actions).numpy()
        table[f"q: {name}"] = q.in_batches(states, held_out.actions)[0].numpy()
        judges[name] = q
        records.append(
            {
                "idea": name,
                "success": float(rollouts["success"].mean()),
                "return": float(rollouts["return"].mean()),
                "telling actions": telling_actions(q, held_out),
                "seconds": time.perf_counter() - start,
            }
        )
        print(task, seed, records[-1], flush=True)  # noqa: T201
    for name, q in judges.items():
        logged, _ = q.in_batches(states, held_out.actions)
        for record in records:
            gain = q.in_batches(states, actions[record["idea"]])[0] - logged
            record[f"judged by: {name}"] = float(gain.mean() / logged.std())
    table.to_parquet(folder / "held_out.parquet")
    (folder / "records.json").write_text(json.dumps(records, indent=2) + "\n")


def spearman(one: pd.Series[float], other: pd.Series[float]) -> float:
    """Rank correlation."""
    return float(stats.spearmanr(one, other).statistic)


def numbers(table: pd.DataFrame, record: dict[str, Any]) -> dict[str, float]:
    """Compute numbers that judge a critic from held-out episodes only."""
    name = record["idea"]
    table = table[table["left"] > STEPS_LEFT]
    q, advantage, log_prob = (table[f"{kind}: {name}"] for kind in ("q", "advantage", "log_prob"))
    others = [key for key in record if key.startswith("judged by: ") and key != f"judged by: {name}"]
    judgements = [record[key] for key in others]
    results = {"telling the logged action from another": record["telling actions"]}
    for discount in DISCOUNTS:
        returns, residual = table[f"return {discount}"], table[f"residual {discount}"]
        weights = np.exp(3.0 * advantage).clip(upper=100.0)
        results |= {
            f"Q with returns, gamma {discount}": spearman(q, returns),
            f"A with returns less V(s), gamma {discount}": spearman(advantage, residual),
            f"the same, weighted as awr does, gamma {discount}": float(
                (weights * residual).sum() / weights.sum() / residual.std()
            ),
            f"the policy's log-likelihood with the same, gamma {discount}": spearman(log_prob, residual),
        }
    if judgements:
        results["its policy's actions, judged by the other critics"] = float(np.mean(judgements))
    return results


def cells(tasks: list[str], seeds: list[int]) -> Iterator[tuple[str, int, Path]]:
    """Folder of each task and seed."""
    for task in tasks:
        for seed in seeds:
            yield task, seed, FOLDER / task / f"seed_{seed}"


def summarise(tasks: list[str], seeds: list[int]) -> tuple[pd.DataFrame, pd.DataFrame, list[dict[str, Any]]]:
    """Return the table of ideas, the table of numbers, and all records."""
    records: list[dict[str, Any]] = []
    correlations = []
    for task, seed, folder in cells(tasks, seeds):
        if not (folder / "records.json").exists():
            continue
        cell = json.loads((folder / "records.json").read_text())
        table = pd.read_parquet(folder / "held_out.parquet")
        values = pd.DataFrame([numbers(table, record) for record in cell])
        returns = pd.Series([record["return"] for record in cell])
        correlations.append({"task": task} | {name: spearman(values[name], returns) for name in values})
        records += [{"task": task, "seed": seed} | record for record in cell]
    frame = pd.DataFrame(records)
    success = frame.pivot_table(index="idea", columns=["task", "seed"], values="success", sort=False)
    ideas = pd.DataFrame({"idea": success.index})
    for task in tasks:
        ideas[task] = [
            ", ".join("-" if x != x else f"{x:.2f}" for x in row) for row in success[task].to_numpy()
        ]
    gain = (success - success.loc["defaults"]).T  # one row per cell, a task and seed
    ideas["cells"] = gain.count().astype(str).to_numpy()
    ideas["gain"] = gain.mean().to_numpy()
    ideas["gain_ci"] = half_width(gain.sem().to_numpy(), gain.count().to_numpy() - 1)
    by_cell = pd.DataFrame(correlations)
    ranks = by_cell.groupby("task", sort=False).mean().T
    ranks["mean"] = by_cell.drop(columns="task").mean()
    ranks["lowest"] = by_cell.drop(columns="task").min()
    ranks.insert(0, "number", ranks.index)
    return ideas, ranks, records


def main() -> None:
    """Run missing cells, then print and save the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        "--tasks", nargs="+", default=["reach-v3", "door-open-v3", "push-v3", "drawer-close-v3"]
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--ideas", nargs="+", choices=IDEAS, default=list(IDEAS))
    parser.add_argument(
        "--workers", type=int, help="number of processes that run episodes; default: one per core"
    )
    parser.add_argument("--keep", action="store_true", help="do not rerun finished cells")
    parser.add_argument("--report", action="store_true", help="run nothing, tabulate finished cells")
    arguments = parser.parse_args()
    chosen = {name: IDEAS[name] for name in dict.fromkeys(["defaults", *arguments.ideas])}
    for task, seed, folder in cells(arguments.tasks, arguments.seeds):
        if not (arguments.report or (arguments.keep and (folder / "records.json").exists())):
            study(task, seed, chosen, folder, arguments.workers)
    ideas, ranks, records = summarise(arguments.tasks, arguments.seeds)
    write_record(
        RESULTS / "ideas.json",
        measured=not arguments.report,
        ideas=ideas.to_dict("records"),
        numbers=ranks.to_dict("records"),
        records=records,
    )
    print(markdown(ideas, digits=2))  # noqa: T201
    print("\nRank correlation of each number with the policies' returns, over the ideas\n")  # noqa: T201
    print(markdown(ranks, digits=2))  # noqa: T201


if __name__ == "__main__":
    main()
