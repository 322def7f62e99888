"""Judgement of one policy from the log alone: four measures, and what each can and cannot say."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from cvl_pipeline.episodes.container import Normalisation, Rewards, Split, Transitions
from cvl_pipeline.episodes.preparation import logged_shares, observed_returns
from cvl_pipeline.judging.coverage import coverage
from cvl_pipeline.judging.critics import pair_inputs
from cvl_pipeline.judging.fqe import fit_q_of_policy
from cvl_pipeline.judging.networks import ValueNetworks
from cvl_pipeline.judging.parameters import JudgingParameters
from cvl_pipeline.judging.samples import Estimate, Sample, actions_of, estimate, sample
from cvl_pipeline.networks.actor import CategoricalActor
from cvl_pipeline.networks.critic import ContrastiveCritic
from cvl_pipeline.readout.action_values import ActionValues
from cvl_pipeline.training.seeds import stream_seed

Numbers = dict[str, float | None]


@dataclass(frozen=True)
class Judge:
    """What policies of one log are judged with.

    Attributes:
        critic: the trained critic, whose encoder serves all measures.
        transitions: the log.
        labels: rewards of all transitions.
        split: training and held-out episodes.
        normalisation: statistics of the training episodes.
        discount: of the values.
        parameters: of the judgement.
        seed: of all draws.
    """

    critic: ContrastiveCritic
    transitions: Transitions
    labels: Rewards
    split: Split
    normalisation: Normalisation
    discount: float
    parameters: JudgingParameters
    seed: int

    @cached_property
    def training(self) -> Sample:
        """Episodes that policies learned from."""
        return self._sample(self.split.train, 0)

    @cached_property
    def held_out(self) -> Sample:
        """Episodes that no policy learned from."""
        return self._sample(self.split.validation, 1)

    def _sample(self, episodes: Tensor, part: int) -> Sample:
        seed = stream_seed(self.seed, "judging", 3000 + part)
        return sample(self.critic, self.transitions, self.labels, episodes, self.parameters.transitions, seed)

    def behaviour_value(self) -> Estimate:
        """Mean discounted return of held-out episodes from their first step.

        Episodes count by the share of their future that is logged. Among episodes of which some terminate, those that
        were truncated survived longest, so the mean of what their steps promise would be that of survivors.
        """
        returns, shares = self._first_returns
        return self._estimate(returns, self.held_out.episodes[self._first], weights=shares)

    def judge(self, policy: nn.Module, critics: ValueNetworks | ActionValues) -> Numbers:
        """Judge a policy by all measures.

        Args:
            policy: observations (B, O) to actions (B, A). A module of your own gets observations of several parts as a
                dictionary of tensors.
            critics: values of the held-out episodes.

        Returns:
            The numbers that docs/metrics.md explains.
        """
        policy = policy.cpu().eval()
        actions = actions_of(policy, self.transitions, self.held_out.index)
        return {
            **self.action_error(policy, actions),
            **self.advantage(policy, critics),
            **self.fitted_q_evaluation(policy),
            **coverage(
                policy, self.critic, self.transitions, self.training, self.held_out, actions, self.parameters,
                self.seed,
            ),
        }  # fmt: skip

    def action_error(self, policy: nn.Module, actions: Tensor) -> Numbers:
        """Compare a policy's actions with those of held-out episodes.

        Args:
            policy: the policy.
            actions: (N, A), of the policy in the held-out states.

        Returns:
            Of vectors, ``action_error``, the root mean square error in standard deviations of the logged actions, over
            all dimensions and for each. Of choices, ``agreement``, the share of equal ones, and ``log_likelihood``, the
            mean log-probability of the logged one in nats, if the policy has probabilities.
        """
        logged, episodes = self.held_out.encoded.actions, self.held_out.episodes
        if self.transitions.discrete:
            agreement = (actions.argmax(-1) == logged.argmax(-1)).float()
            return {
                **self._estimate(agreement, episodes).named("agreement"),
                "log_likelihood": self._log_likelihood(policy),
            }
        errors = ((actions - logged) / self.normalisation.action_std).square()
        whole = self._estimate(errors.mean(1), episodes)
        roots = Estimate(whole.value**0.5, *(None if end is None else end**0.5 for end in whole[1:]))
        dimensions = {
            f"action_error.{place}": float(error) for place, error in enumerate(errors.mean(0).sqrt())
        }
        return {**roots.named("action_error"), **(dimensions if len(dimensions) > 1 else {})}

    @torch.no_grad()
    def _log_likelihood(self, policy: nn.Module) -> float | None:
        if not isinstance(policy, CategoricalActor):
            return None
        logged, total = self.held_out.encoded.actions, 0.0
        for part in torch.split(torch.arange(len(logged)), 256):
            states = self.transitions.states(self.held_out.index[part])
            total += float(policy.log_prob(states, logged[part]).sum())
        return total / len(logged)

    def advantage(self, policy: nn.Module, critics: ValueNetworks | ActionValues) -> Numbers:
        """Mean of ``Q(s, pi(s)) - Q(s, a)`` over training steps, by critics of the held-out episodes.

        The policy was chosen by values of the training episodes. Critics of other episodes have other errors, so the
        policy's choice does not lean on them.
        """
        training = self.training
        own = actions_of(policy, self.transitions, training.index)
        values: list[Tensor] = []
        for actions in (own, training.encoded.actions):
            if isinstance(critics, ValueNetworks):
                values.append(critics(pair_inputs(self.critic, training.encoded.states(), actions)))
            else:
                values.append(self._values(critics, actions))
        return {**self._estimate(values[0] - values[1], training.episodes).named("advantage")}

    def _values(self, critics: ActionValues, actions: Tensor) -> Tensor:
        """Values of actions in the training states, (N, A) -> (N,)."""
        rows = critics.rows_in_chunk(1)
        parts = zip(torch.split(self.training.index, rows), torch.split(actions, rows), strict=True)
        return torch.cat(
            [critics.in_batches(self.transitions.states(index), taken)[0] for index, taken in parts]
        )

    def fitted_q_evaluation(self, policy: nn.Module) -> Numbers:
        """Value of the policy from the first states of held-out episodes, and its gain over their returns."""
        following = actions_of(policy, self.transitions, self.training.index, arrivals=True)
        networks, clipped = fit_q_of_policy(
            self.critic, self.training, following, self.discount, self.parameters, self.seed
        )
        first, episodes = self._first, self.held_out.episodes[self._first]
        actions = actions_of(policy, self.transitions, self.held_out.index[first])
        values = networks(pair_inputs(self.critic, self.held_out.encoded.states(first), actions))
        returns, shares = self._first_returns
        # Both means of the gain have the same weights: how long the log is may depend on where an episode starts.
        gain = self._estimate(values, episodes, weights=shares, less=(returns, shares))
        return {
            **self._estimate(values, episodes).named("fqe_value"),
            **gain.named("fqe_gain"),
            "fqe_clipped": clipped,
        }

    @property
    def _first(self) -> Tensor:
        return self.held_out.encoded.episode_starts[:-1]

    @property
    def _first_returns(self) -> tuple[Tensor, Tensor]:
        """Returns from the first steps, and their weights, (E,) each."""
        log = self.held_out.encoded
        returns = observed_returns(self.held_out.rewards, log, self.discount)
        return returns[self._first], logged_shares(log, self.discount)[self._first]

    def _estimate(self, values: Tensor, episodes: Tensor, **more: Any) -> Estimate:
        return estimate(values, episodes, self.parameters.confidence, self.seed, **more)


def swapped(split: Split) -> Split:
    """A split whose training episodes are the held-out ones, and the reverse."""
    return Split(train=split.validation, validation=split.train)
