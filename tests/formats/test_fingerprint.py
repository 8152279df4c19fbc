"""The fingerprint of rows, against equality of the rows themselves."""

import json
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from datasets import Dataset, concatenate_datasets
from hypothesis import given, settings
from hypothesis import strategies as st

from selectit_hf.errors import InputError
from selectit_hf.formats.fingerprints import fingerprint, survey
from selectit_hf.formats.rows import RowReader

TEXTS = st.sampled_from(["", "a", "b", "ab", "é", "\0"]) | st.none()
LISTS = st.none() | st.lists(TEXTS, max_size=2)
ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "text": TEXTS,
            "other": TEXTS,
            "list": LISTS,
            "deep": st.none() | st.lists(LISTS, max_size=2),
            "struct": st.none() | st.fixed_dictionaries({"x": TEXTS, "y": LISTS}),
            "number": st.sampled_from([0, 1, -1, 2**40, None]),
            "share": st.sampled_from([0.0, 0.5, None]),
            "truth": st.sampled_from([True, False, None]),
        }
    ),
    min_size=1,
    max_size=3,
)
SCHEMA = pa.schema(
    {
        "text": pa.string(),
        "other": pa.string(),
        "list": pa.list_(pa.string()),
        "deep": pa.list_(pa.list_(pa.string())),
        "struct": pa.struct({"x": pa.string(), "y": pa.list_(pa.string())}),
        "number": pa.int64(),
        "share": pa.float64(),
        "truth": pa.bool_(),
    }
)

WIDE = pa.schema(
    {
        "text": pa.large_string(),
        "other": pa.large_string(),
        "list": pa.large_list(pa.large_string()),
        "deep": pa.list_(pa.large_list(pa.string())),
        "struct": pa.struct({"x": pa.large_string(), "y": pa.list_(pa.string())}),
        "number": pa.int64(),
        "share": pa.float32(),
        "truth": pa.bool_(),
    }
)


def of(rows: list[dict[str, Any]], schema: pa.Schema = SCHEMA) -> Dataset:
    return Dataset(pa.Table.from_pylist(rows, schema))


@given(ROWS, ROWS)
def test_it_is_equal_where_the_rows_are(one, two):
    assert (fingerprint(of(one)) == fingerprint(of(two))) == (json.dumps(one) == json.dumps(two))


@settings(max_examples=50)
@given(ROWS, st.data())
def test_it_follows_every_value(rows, data):
    """One value of one row changes, so the rows are never equal by chance or far apart."""
    i = data.draw(st.integers(0, len(rows) - 1))
    name = data.draw(st.sampled_from(SCHEMA.names))
    other = data.draw(ROWS)[0][name]
    changed = [*rows[:i], {**rows[i], name: other}, *rows[i + 1 :]]
    same = json.dumps(rows) == json.dumps(changed)
    assert (fingerprint(of(rows)) == fingerprint(of(changed))) == same


COLUMNS = st.sampled_from([TEXTS, LISTS, st.none() | st.lists(LISTS, max_size=2)]).flatmap(
    lambda values: st.lists(values, min_size=2, max_size=4)
)


@given(COLUMNS, st.randoms(use_true_random=False))
def test_the_same_values_in_other_places_are_other_rows(values, random):
    """Where a null stands, and where one list ends and the next begins."""
    other = random.sample(values, len(values))
    one, two = (Dataset.from_dict({"a": some}) for some in (values, other))
    assert (fingerprint(one) == fingerprint(two)) == (values == other)


@pytest.mark.parametrize(
    ("values", "others"),
    [
        (["a", None], [None, "a"]),
        (["ab", "c"], ["a", "bc"]),
        ([["a"], ["b"]], [["a", "b"], []]),
        ([["a"], [], None], [["a"], None, []]),
        ([["a", None]], [[None, "a"]]),
        ([{"x": "a", "y": None}], [{"x": None, "y": "a"}]),
        ([1, None], [None, 1]),
        ([True, None, False], [True, False, None]),
        ([1], [1.0]),
        (["1"], [1]),
    ],
)
def test_values_that_are_easily_taken_for_each_other(values, others):
    one, two = (Dataset.from_dict({"a": some}) for some in (values, others))
    assert fingerprint(one) != fingerprint(two)


@settings(max_examples=50)
@given(ROWS, st.integers(0, 3))
def test_how_the_rows_are_stored_does_not_count(rows, cut):
    expected = fingerprint(of(rows))
    parts = [of(part) for part in (rows[:cut], rows[cut:]) if part]
    assert fingerprint(concatenate_datasets(parts)) == expected
    backward = list(range(len(rows)))[::-1]
    assert fingerprint(of(rows).select(backward).select(backward)) == expected
    assert fingerprint(of(rows).select_columns(SCHEMA.names[::-1])) == expected
    assert fingerprint(of(rows).with_format("numpy", ["text"])) == expected
    assert fingerprint(Dataset(of(rows).data.table.cast(WIDE))) == expected


@pytest.mark.parametrize(
    ("values", "others"),
    [
        ([b"a", None, b"\xff"], [b"a", None, b"\xfe"]),
        ([np.datetime64("2020-01-01", "s"), None], [np.datetime64("2021-01-01", "s"), None]),
        (np.array([2**64 - 1, 1], np.uint64), np.array([2**64 - 2, 1], np.uint64)),
        ([float("nan"), 1.0], [1.0, float("nan")]),
    ],
)
def test_other_kinds_of_values(values, others):
    one, same, two = (Dataset(pa.table({"a": pa.array(v)})) for v in (values, values, others))
    assert fingerprint(one) == fingerprint(same) != fingerprint(two)


def test_rows_beyond_a_thousand_and_their_order_count():
    rows = Dataset.from_dict({"a": list(range(2500))})
    for changed in ([*range(2499)], [*range(2498), 2499, 2498], [*range(2499), 7]):
        assert fingerprint(rows) != fingerprint(Dataset.from_dict({"a": changed}))
    assert fingerprint(rows) != fingerprint(rows.rename_column("a", "b"))


def test_where_rows_beyond_a_thousand_are_cut_does_not_count():
    texts = [f"text {i}" for i in range(2500)]
    whole = Dataset.from_dict({"a": texts, "b": [[text, None] for text in texts]})
    parts = [Dataset.from_list(whole.to_list()[i:j]) for i, j in ((0, 700), (700, 2500))]
    assert fingerprint(whole) == fingerprint(concatenate_datasets(parts))


@pytest.mark.parametrize("turns", [None, "first", "all"])
def test_several_turns_need_a_policy(turns):
    turn = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    talk = Dataset.from_dict({"messages": [turn, turn * 2, turn * 3]})
    if turns is None:
        with pytest.raises(InputError, match=r"2 of 3 rows.*--turns first.*--turns all"):
            survey(talk, RowReader())
    else:
        assert survey(talk, RowReader(turns=turns)) == fingerprint(talk)
    nested = Dataset.from_dict({"prompt": [turn * 2], "completion": [turn[1:]]})
    with pytest.raises(InputError, match="1 of 1 rows"):
        survey(nested, RowReader())


def test_columns_that_do_not_fit_are_refused():
    with pytest.raises(InputError, match="No known layout"):
        survey(Dataset.from_dict({"a": ["b"]}), RowReader())
