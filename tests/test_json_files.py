"""JSON objects that anybody may have written: what they must hold, and where they do not."""

import re
from typing import Any

import pytest

from selectit_hf.json_files import as_json, json_object, misfit


@pytest.mark.parametrize(
    ("value", "schema", "place"),
    [
        (1, int, None),
        (True, int, ""),
        (1.0, int, ""),
        (1, float, None),
        (float("inf"), float, ""),
        ("1", float, ""),
        (None, None, None),
        (0, None, ""),
        (None, (int, None), None),
        ("x", (int, None), ""),
        ([1, 2], [int], None),
        ([1, "2"], [int], "[1]"),
        ("12", [str], ""),
        ({"a": 1, "b": 2}, {"a": int}, None),
        ({"b": 2}, {"a": int}, "a"),
        ({"b": 2}, {"a?": int}, None),
        ({"a": None}, {"a?": int}, "a"),
        ({"a": [{"b": "x"}]}, {"a": [{"b": int}]}, "a[0].b"),
        ({"x": 1, "y": None}, {str: int}, ".y"),
        ([], {str: int}, ""),
        ("abc", re.compile("[a-c]+"), None),
        ("abcd", re.compile("[a-c]+"), ""),
        (3, re.compile("3"), ""),
    ],
)
def test_where_a_value_is_not_as_it_should_be(value: Any, schema: Any, place: str | None) -> None:
    assert misfit(value, schema) == place


def test_what_is_no_json_object_is_none() -> None:
    assert json_object(as_json({"a": "\u00e9"})) == {"a": "\u00e9"}
    for data in (b"", b"[]", b"1", b"NaN", b'{"a": Infinity}', b"\xff", b"[" * 200_000):
        assert json_object(data) is None
