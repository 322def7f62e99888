"""Contrastive training of the dynamics, without rewards."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import torch
from torch import Generator, Tensor, nn

from cvl_pipeline.dynamics.losses import SymmetricInfoNCE, contrastive_metrics, symmetric_infonce_gradients
from cvl_pipeline.dynamics.parameters import LOSSES, DynamicsParameters
from cvl_pipeline.episodes.data import EpisodeData
from cvl_pipeline.episodes.sampling import Draws, Segments, SegmentSampler
from cvl_pipeline.episodes.shifts import random_shift
from cvl_pipeline.networks.critic import ContrastiveCritic, CriticShape
from cvl_pipeline.training.callbacks import BestWeights, Watcher
from cvl_pipeline.training.fit import fit, run_fingerprint
from cvl_pipeline.training.module import OfflineModule
from cvl_pipeline.training.processes import gather, own_share, world_size
from cvl_pipeline.training.seeds import stream_seed
from cvl_pipeline.training.vector import Part

Observer = Callable[[Segments, Tensor], None]
"""Receives every training batch and the psi of its futures, without gradient; see ``readout.moving_average``."""


class ContrastiveDynamics(OfflineModule):
    """Learns ``f(s, a, s') ~ log p_gamma(s' | s, a) / p(s')`` from transitions alone.

    Positives are discounted future states of the same episode. Negatives are the other positives of the batch
    (Mazoure et al. 2023, section 4.1).
    """

    def __init__(
        self,
        data: EpisodeData,
        parameters: DynamicsParameters,
        seed: int,
        observer: Observer | None = None,
    ) -> None:
        """Build the critic.

        Args:
            data: the episodes; their rewards are never read.
            parameters: the stage's parameters.
            seed: seed of the initial weights and the batches.
            observer: receives every training batch.
        """
        super().__init__(parameters.training, seed, parameters)
        self.parameters_of_stage = parameters
        self._observer = observer
        self._loss = LOSSES.create(parameters.loss)
        self.own_code = ":" in parameters.loss.name or parameters.own_encoder
        self.graphable = observer is None and not self.own_code
        self._transitions, self._split = data.transitions, data.split
        self.augmentation = random_shift(data.transitions, parameters.training.random_shift)
        transitions = self._transitions
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(stream_seed(seed, "initialisation", 0))
            self.critic = ContrastiveCritic(
                CriticShape(
                    observation_shape=tuple(transitions.observations.shape[1:]),
                    action_size=transitions.actions.shape[1],
                    hidden=parameters.hidden,
                    representation_size=parameters.representation_size,
                    representation=parameters.representation,
                    temperature=parameters.temperature,
                    learned_temperature=parameters.learned_temperature,
                    discount=parameters.discount,
                    horizon_conditioning=parameters.horizon_conditioning,
                    encoder=parameters.encoding,
                    parts=transitions.parts,
                ),
                data.normalisation,
            )

    def parts(self) -> Sequence[tuple[Iterable[nn.Parameter], Part]]:
        """The temperature, which does not decay towards 1, and all else."""
        temperature = self.critic.log_temperature
        return self.without_decay(temperature) if temperature.requires_grad else ()

    def on_fit_start(self) -> None:
        """Move the episodes to the network's device, if they fit."""
        discount = self.parameters_of_stage.discount
        log = self._transitions
        transitions = log.to(self.place(log.observations, log.actions))
        self._train_sampler = SegmentSampler(transitions, discount, self._split.train)
        self._validation_sampler = SegmentSampler(transitions, discount, self._split.validation)

    def draw(self, batches: int, generator: Generator) -> list[Draws]:
        """Sample the positions of the next batches' segments."""
        size = self.training_parameters.batch_size
        per_episode = self.parameters_of_stage.segments_per_episode
        return self._train_sampler.draw(batches * size, generator, per_episode).split(size)

    def read(self, entry: Draws) -> Segments:
        """Read this process's share of a batch."""
        return self._train_sampler.gather(entry.map(own_share))

    def training_loss(self, batch: Draws | Segments) -> tuple[Tensor, dict[str, Tensor]]:
        """Contrastive loss of one batch, with the negatives of all processes."""
        segments = self._segments(batch)
        phi, psi = self._representations(segments)
        if self._observer is not None:
            self._observer(segments, psi.detach())
        with torch.autocast(phi.device.type, enabled=False):
            left, right = self.critic.factors(gather(phi), gather(psi))
            return self._loss.of_factors(left, right, self.critic.bound), {}

    def gradient_step(self, batch: Draws | Segments) -> tuple[Tensor, dict[str, Tensor]]:
        """See OfflineModule. Without autograd, where loss and networks have derivatives of their own.

        In a small network's step, autograd takes a tenth of the time.
        """
        whole = type(self).training_loss is ContrastiveDynamics.training_loss
        fused = isinstance(self._loss, SymmetricInfoNCE) and self._loss.fused
        if not (whole and fused and self._vector.joint and world_size() == 1):
            return super().gradient_step(batch)
        with torch.no_grad():
            return self._fused_step(self._segments(batch)), {}

    def _fused_step(self, segments: Segments) -> Tensor:
        critic = self.critic
        of_pairs, of_futures = critic.phi_network.variable, critic.psi_network.variable
        assert of_pairs is not None
        assert of_futures is not None
        pairs = critic.phi_inputs(segments.observations, segments.actions, self._offsets(segments))
        phi, kept_of_phi = of_pairs.run(pairs)
        psi, kept_of_psi = of_futures.run(critic.psi_inputs(segments.futures, segments.absorbed))
        phi, psi = critic.finish(phi), critic.finish(psi)
        if self._observer is not None:
            self._observer(segments, psi)
        loss, *gradients = symmetric_infonce_gradients(*critic.factors(phi, psi), critic.bound)
        # Both scalings are linear, so the chain rule is the same scaling.
        of_phi, of_psi = (critic.finish(gradient) for gradient in critic.factors(*gradients))
        of_pairs.differentiate(of_phi, kept_of_phi, of_pairs.parts)
        of_futures.differentiate(of_psi, kept_of_psi, of_futures.parts)
        self._vector.take_parts()
        return loss

    def validation_metrics(self, generator: Generator) -> dict[str, Tensor]:
        """Mean loss and contrastive metrics of held-out segments over a few batches.

        They depend on the number of negatives, so the batches are as large as in training. This makes the two
        losses comparable.
        """
        count = self.parameters_of_stage.validation_batches
        totals: dict[str, Tensor] = {}
        for _ in range(count):
            segments = self._validation_sampler.sample(
                self.training_parameters.batch_size, generator, self.parameters_of_stage.segments_per_episode
            ).map(lambda column: column.to(self.device))
            logits = self.critic.logits(*self._representations(segments))
            for name, value in {"loss": self._loss(logits), **contrastive_metrics(logits)}.items():
                totals[name] = totals.get(name, torch.zeros_like(value)) + value / count
        return {**totals, "temperature": self.critic.temperature}

    def _representations(self, segments: Segments) -> tuple[Tensor, Tensor]:
        """Phi of the anchors and psi of the futures, (B, D) each."""
        phi = self.critic.phi(segments.observations, segments.actions, self._offsets(segments))
        return phi, self.critic.psi(segments.futures, segments.absorbed)

    def _segments(self, batch: Draws | Segments) -> Segments:
        return batch if isinstance(batch, Segments) else self.read(batch)

    def _offsets(self, segments: Segments) -> Tensor | None:
        return segments.offsets if self.parameters_of_stage.horizon_conditioning else None


class TrainedCritic(NamedTuple):
    """A critic, on the CPU, and the history of its training (see ``fit``)."""

    critic: ContrastiveCritic
    history: pd.DataFrame


def train_dynamics(
    data: EpisodeData,
    parameters: DynamicsParameters,
    seed: int,
    *,
    checkpoints: Path | None = None,
    logs: Path | None = None,
    observer: Observer | None = None,
    watch: Watcher | None = None,
) -> TrainedCritic:
    """Train a contrastive critic on transitions alone.

    Args:
        data: the episodes; their rewards are never read.
        parameters: the stage's parameters.
        seed: seed of the initial weights and the batches.
        checkpoints: folder for checkpoints, from which the same call resumes.
        logs: folder for metrics.csv and other logs.
        observer: receives every training batch. Do not combine it with checkpoints, because it is not resumed,
            nor with logs, because their count of operations passes the first batch twice.
        watch: receives every row of the history, and may raise to end the training.
    """
    data = data.without_rewards()
    module = ContrastiveDynamics(data, parameters, seed, observer)
    history = fit(
        module,
        description="Training the contrastive critic",
        checkpoints=checkpoints,
        fingerprint=run_fingerprint(parameters, seed, *data.parts().values()),
        logs=logs,
        best=BestWeights(parameters.keep, parameters.patience),
        watch=watch,
    )
    return TrainedCritic(module.critic.cpu().eval(), history)
