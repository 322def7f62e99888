from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cvl_pipeline.episodes.parts import Layout, Part
from cvl_pipeline.errors import InputError

STATE, WRIST = Part("state", (3,), "float32"), Part("images.wrist", (5, 4, 3), "uint8")
SIZES = st.integers(1, 5)
VECTORS = st.builds(lambda size: ((size,), "float32"), SIZES)
IMAGES = st.builds(lambda h, w, c: ((h, w, min(h, w, c)), "uint8"), SIZES, SIZES, st.integers(1, 3))
LAYOUTS = st.lists(st.one_of(VECTORS, IMAGES), min_size=1, max_size=5).map(
    lambda kinds: Layout(tuple(Part(f"p{i}", *kind) for i, kind in enumerate(kinds)))
)
ROWS = st.lists(st.integers(0, 4), max_size=2).map(tuple)


def random_parts(layout: Layout, rows: tuple[int, ...], seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        part.name: torch.randint(0, 256, (*rows, *part.shape), generator=generator, dtype=torch.uint8)
        if part.image
        else torch.randn(*rows, *part.shape, generator=generator)
        for part in layout.parts
    }


@given(LAYOUTS, ROWS, st.booleans())
def test_unpack_undoes_pack(layout: Layout, rows: tuple[int, ...], arrays: bool) -> None:
    parts = random_parts(layout, rows)
    given_parts: dict[str, Any] = {name: part.numpy() for name, part in parts.items()} if arrays else parts
    packed = layout.pack(given_parts)
    assert packed.dtype == torch.uint8
    assert packed.shape == (*rows, layout.nbytes)
    assert layout.nbytes % 4 == 0
    for name, part in layout.unpack(packed).items():
        assert part.dtype == parts[name].dtype
        assert torch.equal(part, parts[name])


@given(LAYOUTS, st.data())
def test_rows_stay_rows(layout: Layout, data: st.DataObject) -> None:
    """Gathered, sliced and shifted rows unpack to the same rows of the parts."""
    parts = random_parts(layout, (6,))
    packed = layout.pack(parts)
    shifted = torch.empty(packed.numel() + 1, dtype=torch.uint8)[1:].view_as(packed).copy_(packed)
    index = torch.tensor(data.draw(st.lists(st.integers(0, 5), min_size=1, max_size=4)))
    for rows, expected in (
        (packed.index_select(0, index), index),
        (packed[1:4], torch.arange(1, 4)),
        (shifted, torch.arange(6)),
        (packed[::2], torch.arange(0, 6, 2)),
        (packed.t().contiguous().t(), torch.arange(6)),
    ):
        assert all(torch.equal(part, parts[name][expected]) for name, part in layout.unpack(rows).items())


@given(LAYOUTS)
def test_parts_of_aligned_rows_are_views(layout: Layout) -> None:
    packed = layout.pack(random_parts(layout, (3,)))
    start, end = packed.data_ptr(), packed.data_ptr() + packed.numel()
    for part in layout.unpack(packed).values():
        assert start <= part.data_ptr() < end


@given(LAYOUTS)
def test_a_layout_survives_json(layout: Layout) -> None:
    assert Layout.from_plain(json.loads(json.dumps(layout.plain()))) == layout


@given(LAYOUTS)
def test_two_observations_beside_each_other_are_joined_by_part(layout: Layout) -> None:
    first, second = random_parts(layout, (2,)), random_parts(layout, (2,), seed=1)
    pairs = layout.beside(layout.pack(first), layout.pack(second))
    for name, part in layout.twice.unpack(pairs).items():
        assert torch.equal(part, torch.cat([first[name], second[name]], dim=-1))
    assert torch.equal(layout.first_of(pairs), layout.pack(first))


def test_rows_are_written_to_given_memory_and_padded_with_zeros() -> None:
    layout = Layout((Part("image", (3, 1, 1), "uint8"), Part("size", (1,), "float32")))
    assert layout.names == ("size", "image")
    out = torch.full((2, 8), 7, dtype=torch.uint8)
    assert layout.pack({"size": np.ones((1, 1)), "image": np.full((1, 3, 1, 1), 9)}, out[1:]) is not None
    assert out.tolist() == [[7] * 8, [0, 0, 128, 63, 9, 9, 9, 7]]
    assert layout.pack({"size": [[1.0]], "image": np.full((1, 3, 1, 1), 9)}).tolist()[0][7] == 0


def test_arrays_of_any_memory_are_packed() -> None:
    layout = Layout((STATE, WRIST))
    state, wrist = np.arange(6.0).reshape(2, 3), np.arange(120).reshape(2, 5, 4, 3)
    expected = layout.pack({"state": state, "images.wrist": wrist})
    locked = np.array(wrist)
    locked.setflags(write=False)
    for one, other in (
        (np.flip(np.flip(state)), locked),
        (state.astype(">f8"), np.ascontiguousarray(wrist[:, ::-1])[:, ::-1]),
        (state.astype(np.float16), wrist.astype(np.uint16)),
    ):
        assert torch.equal(layout.pack({"state": one, "images.wrist": other}), expected)


def test_the_layout_of_arrays() -> None:
    layout = Layout.of(
        {"a": np.zeros((7, 8, 8, 3), np.uint8), "b": np.zeros((7, 2), np.uint8), "c": torch.zeros(7, 1)}
    )
    expected = (Part("b", (2,), "float32"), Part("c", (1,), "float32"), Part("a", (8, 8, 3), "uint8"))
    assert layout.parts == expected
    assert [layout.statistics_of(name) for name in "bca"] == [slice(0, 2), slice(2, 3), slice(3, 6)]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"state": np.zeros((2, 3))}, "lack images.wrist"),
        ({"state": 0, "images.wrist": 0, "gripper": 0}, "have gripper too many"),
        ({"state": np.zeros((2, 4)), "images.wrist": np.zeros((2, 5, 4, 3))}, r"'state' has shape \(2, 4\)"),
        ({"state": np.zeros((2, 3)), "images.wrist": np.zeros((1, 5, 4, 3))}, r"has \(1,\) rows, but 'state' \(2,\)"),
        ({"state": np.zeros(3), "images.wrist": np.full((5, 4, 3), 0.5)}, "whole numbers from 0 to 255"),
        ({"state": np.zeros(3), "images.wrist": np.full((5, 4, 3), 256)}, "whole numbers from 0 to 255"),
        ({"state": np.array(["a"] * 3), "images.wrist": np.zeros((5, 4, 3))}, "not numbers"),
    ],
)  # fmt: skip
def test_other_values_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Layout((STATE, WRIST)).pack(values)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Layout(()), "no parts"),
        (lambda: Layout((STATE, STATE)), "two parts are called 'state'"),
        (lambda: Part("", (3,), "float32"), "give a text"),
        (lambda: Part("x", (3, 3), "float32"), "a part is a vector"),
        (lambda: Layout.of({"x": np.zeros((9, 2, 2))}), "a part is a vector"),
        (lambda: Layout.of({"x": np.zeros(9)}), "a part is a vector"),
        (lambda: Layout((STATE,)).part(torch.zeros(12, dtype=torch.uint8), "stat"), "did you mean state"),
    ],
)
def test_other_layouts_are_refused(make: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()


@given(LAYOUTS, ROWS)
def test_rows_of_numbers_have_the_same_parts(layout: Layout, rows: tuple[int, ...]) -> None:
    first, second = random_parts(layout, rows), random_parts(layout, rows, seed=1)
    numbers = layout.numbers(first)
    assert numbers.shape[:-1] == rows
    for name, part in layout.unpack(numbers).items():
        assert torch.equal(part, first[name].float())
    pairs = layout.beside(numbers, layout.numbers(second))
    for name, part in layout.twice.unpack(pairs).items():
        assert torch.equal(part, torch.cat([first[name], second[name]], dim=-1).float())
    assert torch.equal(layout.first_of(pairs), numbers)
