"""Buckets: every index once, the budget kept, the longest first."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selectit_hf.errors import SettingError
from selectit_hf.rating.engine.batching import buckets

LENGTHS = st.lists(st.integers(1, 60), max_size=40)
BUDGETS = st.integers(1, 300)


def naive_buckets(lengths: list[int], budget: int) -> list[list[int]]:
    """Take the longest row left (the first of equals) into the batch for as long as it fits.

    A batch that has a quarter of the budget already takes no row that makes 1 % of it padding.
    """
    left, batches, batch = list(range(len(lengths))), [], []
    while left:
        longest = max(left, key=lambda i: (lengths[i], -i))
        left.remove(longest)
        size = max(lengths[i] for i in [*batch, longest])
        padding = sum(size - lengths[i] for i in [*batch, longest])
        padded = size * (len(batch) + 1)
        wasteful = size * len(batch) >= budget / 4 and padding > 0.01 * padded
        if batch and (padded > budget or wasteful):
            batches.append(batch)
            batch = []
        batch = [*batch, longest]
    return [*batches, batch] if batch else batches


@given(LENGTHS, BUDGETS)
def test_same_as_the_naive_loop(lengths, budget):
    assert buckets(lengths, budget) == naive_buckets(lengths, budget)


@given(LENGTHS, BUDGETS)
def test_every_index_once_and_within_the_budget(lengths, budget):
    batches = buckets(lengths, budget)
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= budget
        assert lengths[batch[0]] == max(lengths[i] for i in batch)


@given(LENGTHS, BUDGETS)
def test_longest_first_and_equal_lengths_in_row_order(lengths, budget):
    flat = [i for batch in buckets(lengths, budget) for i in batch]
    assert flat == sorted(flat, key=lambda i: (-lengths[i], i))
    assert buckets(tuple(lengths), budget) == buckets(lengths, budget)


@pytest.mark.parametrize(("rows", "budget"), [(10_000, 32_768), (10_000, 1024), (1000, 1024)])
def test_padding_is_under_two_percent(rows, budget):
    numbers = random.Random(0)
    lengths = [20 + int(numbers.lognormvariate(4.8, 0.8)) for _ in range(rows)]
    batches = buckets(lengths, budget)
    padded = sum(len(batch) * lengths[batch[0]] for batch in batches)
    assert 1 - sum(lengths) / padded < 0.02


def test_a_row_over_the_budget_is_a_batch_of_its_own():
    assert buckets([3, 100, 3], 10) == [[1], [0, 2]]


def test_a_batch_is_not_filled_with_padding():
    assert buckets([100, 99, 50, 50], 1000) == [[0, 1, 2], [3]]
    assert buckets([100, 99, 50, 50], 700) == [[0, 1], [2, 3]]


def test_a_full_batch_fills_the_budget_exactly():
    assert buckets([5, 5, 5], 10) == [[0, 1], [2]]


def test_no_rows_no_batches():
    assert buckets([], 10) == []


@pytest.mark.parametrize("budget", [0, -1])
def test_a_budget_that_holds_nothing_is_refused(budget):
    with pytest.raises(SettingError, match="token_budget"):
        buckets([1], budget)
