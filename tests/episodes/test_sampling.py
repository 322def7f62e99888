from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from cvl_pipeline.episodes.sampling import Segments, SegmentSampler
from cvl_pipeline.testing.builders import labelled_transitions

# A correct sampler fails a test at this level for one seed in ten thousand; the seeds here are fixed.
LEVEL = 1e-4


def _sample(
    lengths: list[int], terminated: list[bool], discount: float, count: int, seed: int = 0
) -> Segments:
    data = labelled_transitions(lengths, terminated)
    return SegmentSampler(data, discount).sample(count, torch.Generator().manual_seed(seed))


def _p_value(counts: NDArray[np.float64], law: NDArray[np.float64]) -> float:
    """Chi-square test of counts against probabilities, with small cells merged."""
    expected = law / law.sum() * counts.sum()
    small = expected < 5.0
    if small.any():
        counts = np.append(counts[~small], counts[small].sum())
        expected = np.append(expected[~small], expected[small].sum())
    return float(stats.chisquare(counts, expected).pvalue)


def _joint_law(
    lengths: list[int], terminated: list[bool], discount: float, longest: int
) -> NDArray[np.float64]:
    """Probability of every (anchor, offset), (N, longest + 1); the last column sums all longer offsets.

    From the definition: every logged pair in proportion to gamma^(k-1).
    """
    law = np.zeros((sum(lengths), longest + 1))
    anchor = 0
    for length, ends in zip(lengths, terminated, strict=True):
        for time in range(length):
            shown = longest if ends else length - time
            law[anchor, :shown] = (1.0 - discount) * discount ** np.arange(shown)
            law[anchor, longest] = discount**longest if ends else 0.0
            anchor += 1
    law /= law.sum()
    return law


@pytest.mark.parametrize("discount", [0.5, 0.9, 0.99, 0.999])
def test_offsets_of_truncated_episodes_follow_the_truncated_geometric_law(discount: float) -> None:
    length = 12
    segments = _sample([length], [False], discount, 120_000)
    assert not segments.absorbed.any()
    for anchor in range(length):
        offsets = segments.offsets[segments.anchors == anchor].numpy()
        left = length - anchor
        law = np.float64(discount) ** np.arange(left)
        counts = np.bincount(offsets - 1, minlength=left).astype(np.float64)
        assert len(counts) == left, "an offset past the end of the log"
        if left > 1:
            assert _p_value(counts, law) > LEVEL


@pytest.mark.parametrize("discount", [0.5, 0.9, 0.99])
def test_offsets_of_terminated_episodes_follow_the_whole_geometric_law(discount: float) -> None:
    length = 6
    segments = _sample([length], [True], discount, 60_000)
    longest = 40
    law = np.append((1.0 - discount) * discount ** np.arange(longest), discount**longest)
    for anchor in range(length):
        of_anchor = segments.anchors == anchor
        offsets = segments.offsets[of_anchor].clamp(max=longest + 1).numpy()
        counts = np.bincount(offsets - 1, minlength=longest + 1).astype(np.float64)
        assert _p_value(counts, law) > LEVEL
        # The mass gamma^L beyond a termination, which renormalisation would drop.
        share = float(segments.absorbed[of_anchor].double().mean())
        mass = discount ** (length - anchor)
        assert share == pytest.approx(mass, abs=5.0 * np.sqrt(mass * (1 - mass) / int(of_anchor.sum())))


def test_absorbed_marks_exactly_the_offsets_past_a_termination() -> None:
    segments = _sample([4, 3], [True, False], 0.9, 20_000)
    starts = torch.tensor([0, 4, 7])
    episodes = (segments.anchors >= 4).long()
    left = starts[episodes + 1] - segments.anchors
    assert torch.equal(segments.absorbed, (episodes == 0) & (segments.offsets > left))
    assert segments.absorbed.any()
    assert (segments.offsets[episodes == 1] <= left[episodes == 1]).all()


@pytest.mark.parametrize(
    ("lengths", "terminated"),
    [
        ([6], [False]),
        ([6], [True]),
        ([1], [False]),
        ([1], [True]),
        ([1, 9, 3, 5], [False, True, False, True]),
        ([8, 1, 2, 1], [False, False, True, True]),
    ],
)
@pytest.mark.parametrize("discount", [0.4, 0.9, 0.99])
def test_anchors_and_offsets_follow_the_law_of_the_log(
    lengths: list[int], terminated: list[bool], discount: float
) -> None:
    longest = 40
    law = _joint_law(lengths, terminated, discount, longest)
    segments = _sample(lengths, terminated, discount, 80_000)
    cells = segments.anchors * (longest + 1) + segments.offsets.clamp(max=longest + 1) - 1
    counts = np.bincount(cells.numpy(), minlength=law.size).astype(np.float64)
    assert len(counts) == law.size
    assert not counts[law.ravel() == 0.0].any(), "a pair that the log does not show"
    possible = law.ravel() > 0.0
    if possible.sum() > 1:
        assert _p_value(counts[possible], law.ravel()[possible]) > LEVEL


def test_an_anchor_counts_by_the_logged_share_of_its_future() -> None:
    # By hand: gamma = 1/2, so the mass of L logged steps is 1 - 2^-L, or 1 after a termination.
    segments = _sample([3, 2], [False, True], 0.5, 70_000)
    law = np.array([7 / 8, 3 / 4, 1 / 2, 1.0, 1.0])
    counts = np.bincount(segments.anchors.numpy(), minlength=5).astype(np.float64)
    assert _p_value(counts, law) > LEVEL
    assert _p_value(counts, np.ones(5)) < LEVEL, "enough samples to distinguish it from uniform anchors"


@given(
    episodes=st.lists(st.tuples(st.integers(1, 12), st.booleans()), min_size=1, max_size=6),
    discount=st.floats(0.01, 0.999),
)
def test_the_marginal_is_the_sum_of_the_law_over_anchors(
    episodes: list[tuple[int, bool]], discount: float
) -> None:
    lengths, terminated = [length for length, _ in episodes], [end for _, end in episodes]
    data = labelled_transitions(lengths, terminated)
    law = _joint_law(lengths, terminated, discount, 12)
    steps = sum(lengths)
    ends = np.repeat(np.cumsum(lengths), lengths)
    expected = np.zeros(steps + 1)
    for anchor, end in enumerate(ends):
        left = int(end) - anchor
        expected[anchor : int(end)] += law[anchor, :left]  # transition anchor + k - 1 leads to offset k
        expected[steps] += law[anchor, left:].sum()
    states, absorbed = SegmentSampler(data, discount).marginal()
    assert states.dtype == torch.float64
    np.testing.assert_allclose(states, expected[:steps], rtol=1e-9)
    assert float(absorbed) == pytest.approx(expected[steps], rel=1e-9, abs=1e-12)
    assert float(states.sum() + absorbed) == pytest.approx(1.0, abs=1e-12)
    if not any(terminated):
        assert float(absorbed) == 0.0


@pytest.mark.parametrize("discount", [0.6, 0.97])
def test_the_marginal_is_the_law_of_the_futures_that_are_drawn(discount: float) -> None:
    lengths, terminated = [1, 9, 3, 5], [False, True, False, True]
    sampler = SegmentSampler(labelled_transitions(lengths, terminated), discount)
    segments = sampler.sample(80_000, torch.Generator().manual_seed(1))
    outcome = segments.arrivals.masked_fill(segments.absorbed, 18)
    counts = np.bincount(outcome.numpy(), minlength=19).astype(np.float64)
    assert _p_value(counts, torch.cat([sampler.marginal()[0], sampler.marginal()[1][None]]).numpy()) > LEVEL


def test_the_marginal_of_long_logs_keeps_its_digits() -> None:
    # gamma^L is close to one in one case and close to zero in the other.
    for discount, lengths in ((1.0 - 1e-6, [3, 4]), (0.5, [2000, 1500])):
        states, absorbed = SegmentSampler(labelled_transitions(lengths, [False, False]), discount).marginal()
        assert float(states.sum()) == pytest.approx(1.0, abs=1e-12)
        assert float(absorbed) == 0.0
        assert (states > 0.0).all()
    states, absorbed = SegmentSampler(labelled_transitions([3], [True]), 1.0 - 1e-6).marginal()
    # Almost all of the future of a terminated episode is after its end.
    assert float(absorbed) == pytest.approx(1.0 - 2e-6, abs=1e-9)


@pytest.mark.parametrize("discount", [0.4, 0.97])
def test_segments_that_share_an_episode_follow_the_same_law_each(discount: float) -> None:
    lengths, terminated = [1, 9, 3, 5], [False, True, False, True]
    sampler = SegmentSampler(labelled_transitions(lengths, terminated), discount)
    segments = sampler.sample(80_000, torch.Generator().manual_seed(1), per_episode=4)
    longest = 40
    law = _joint_law(lengths, terminated, discount, longest).ravel()
    cells = segments.anchors * (longest + 1) + segments.offsets.clamp(max=longest + 1) - 1
    for place in range(4):  # segments at the same place are independent
        counts = np.bincount(cells[place::4].numpy(), minlength=len(law)).astype(np.float64)
        assert not counts[law == 0.0].any()
        assert _p_value(counts[law > 0.0], law[law > 0.0]) > LEVEL


def test_segments_share_an_episode_by_groups_and_nothing_else() -> None:
    data = labelled_transitions([30] * 50, [False] * 50)
    sampler = SegmentSampler(data, 0.9)
    segments = sampler.sample(1003, torch.Generator().manual_seed(0), per_episode=4)
    assert len(segments.anchors) == 1003  # the last group is incomplete
    episodes = data.episode_of(segments.anchors)[:1000].reshape(250, 4)
    assert torch.equal(episodes, episodes[:, :1].expand(-1, 4))
    assert len(set(episodes[:, 0].tolist())) > 40
    times = (segments.anchors[:1000] % 30).reshape(250, 4).double()
    offsets = segments.offsets[:1000].reshape(250, 4).double()
    for drawn in (times, offsets):
        assert np.abs(np.corrcoef(drawn.T) - np.eye(4)).max() < 0.25  # four deviations of 250 samples
    alone = data.episode_of(sampler.sample(1000, torch.Generator().manual_seed(0)).anchors).reshape(250, 4)
    assert float((alone == alone[:, :1]).all(1).double().mean()) < 0.05


@given(
    episodes=st.lists(st.tuples(st.integers(1, 12), st.booleans()), min_size=1, max_size=6),
    discount=st.floats(0.01, 0.999),
    seed=st.integers(0, 2**31),
)
def test_segments_never_leave_their_episode(
    episodes: list[tuple[int, bool]], discount: float, seed: int
) -> None:
    lengths, terminated = [length for length, _ in episodes], [end for _, end in episodes]
    data = labelled_transitions(lengths, terminated)
    segments = SegmentSampler(data, discount).sample(200, torch.Generator().manual_seed(seed))
    starts = [0, *np.cumsum(lengths).tolist()]
    place = {n: (e, n - start) for e, (start, end) in enumerate(pairwise(starts)) for n in range(start, end)}
    for i in range(200):
        episode, time = place[int(segments.anchors[i])]
        left = lengths[episode] - time
        offset, absorbed = int(segments.offsets[i]), bool(segments.absorbed[i])
        reached = min(offset, left)
        assert offset >= 1
        assert absorbed == (offset > left)
        assert not absorbed or terminated[episode]
        assert segments.observations[i].tolist() == [episode, time]
        assert torch.equal(segments.actions[i], data.actions[segments.anchors[i]])
        # s_{t+k} and the transition that leads to it; past a termination, the episode's last one.
        assert segments.futures[i].tolist() == [episode, time + reached]
        assert int(segments.arrivals[i]) == int(segments.anchors[i]) + reached - 1
        assert place[int(segments.arrivals[i])][0] == episode


def test_long_episodes_at_a_high_discount_reach_their_end_and_no_further() -> None:
    # Cases in which single precision fails: 0.999 ** 1000 and steps that differ in the fourth digit.
    segments = _sample([1000], [False], 0.999, 200_000)
    left = 1000 - segments.anchors
    assert int((left - segments.offsets).min()) == 0
    u = (1.0 - 0.999 ** (segments.offsets.double() - 0.5)) / (1.0 - 0.999 ** left.double())
    # The distribution function maps k back to a uniform u (up to the width of k's cell).
    long = left > 500
    assert stats.kstest(u[long].clamp(0.0, 1.0).numpy(), "uniform").statistic < 0.006


def test_the_generator_determines_the_segments() -> None:
    first, again, other = (_sample([5, 8], [True, False], 0.9, 50, seed) for seed in (3, 3, 4))
    torch.testing.assert_close(vars(first), vars(again), rtol=0, atol=0)
    assert not torch.equal(first.anchors, other.anchors)
