"""Rows of every layout to pairs, and what cannot be a pair to a status."""

from typing import Any

import numpy as np
import pytest
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st

from selectit_hf.errors import InputError, SettingError
from selectit_hf.formats.layouts import LAYOUTS
from selectit_hf.formats.rows import STATUSES, Pair, RowReader, worst

OK = Pair("Add 1 and 2.", "3")


def one(row: dict[str, Any], **settings: Any) -> Pair | str:
    """What one row becomes between two good neighbours of another batch position."""
    (read,) = RowReader(**settings).pairs({column: [value] for column, value in row.items()})
    return read


def said(*turns: tuple[str, Any]) -> list[dict[str, Any]]:
    return [{"role": role, "content": content} for role, content in turns]


# Layouts


@pytest.mark.parametrize(
    ("row", "name"),
    [
        ({"instruction": "Add 1 and 2.", "output": "3"}, "Alpaca"),
        ({"instruction": "Add 1 and 2.", "input": "", "output": "3"}, "Alpaca"),
        ({"instruction": "Add 1 and 2.", "input": None, "output": "3"}, "Alpaca"),
        ({"instruction": "Add 1 and 2.", "input": " \n", "output": "3"}, "Alpaca"),
        ({"instruction": "Add 1 and 2.", "context": "", "response": "3"}, "Alpaca"),
        ({"prompt": "Add 1 and 2.", "completion": "3"}, "prompt/completion"),
        (
            {"prompt": said(("user", "Add 1 and 2.")), "completion": said(("assistant", "3"))},
            "prompt/completion",
        ),
        ({"system_prompt": "", "question": "Add 1 and 2.", "response": "3"}, "Orca"),
        ({"question": "Add 1 and 2.", "response": "3"}, "Orca"),
        ({"messages": said(("user", "Add 1 and 2."), ("assistant", "3"))}, "messages"),
        (
            {
                "conversations": [
                    {"from": "human", "value": "Add 1 and 2."},
                    {"from": "gpt", "value": "3"},
                ]
            },
            "ShareGPT",
        ),
        (
            {"conversations": {"from": ["human", "gpt"], "value": ["Add 1 and 2.", "3"]}},
            "ShareGPT",
        ),
        (
            {
                "messages": said(
                    ("User", [{"type": "text", "text": "Add 1 and 2."}]),
                    ("ASSISTANT", [{"type": "text", "text": "3"}]),
                )
            },
            "messages",
        ),
    ],
)
def test_layouts_are_detected(row, name):
    assert one({**row, "id": 7}) == OK
    assert RowReader().layout_name([*row, "id"]) == name


def test_the_alpaca_input_joins_after_one_newline():
    row = {"instruction": "Add.", "input": "1, 2", "output": "3"}
    assert one(row) == Pair("Add.\n1, 2", "3")
    assert RowReader().columns([*row, "id"]) == ("instruction", "output", "input")


def test_texts_are_kept_as_they_are():
    row = {"instruction": "  Add {1}\n", "input": "\t", "output": " </s>\r\n "}
    assert one(row) == Pair("  Add {1}\n", " </s>\r\n ")


def test_named_columns_go_before_a_detected_layout():
    row = {"instruction": "no", "output": "no", "q": "Add 1 and 2.", "a": "3"}
    named = RowReader(instruction_column="q", response_column="a")
    assert named.pairs({c: [v] for c, v in row.items()}) == [OK]
    assert named.columns(list(row)) == ("q", "a")
    with pytest.raises(InputError, match="'a' is not in the dataset"):
        named.columns(["q"])


def test_unknown_columns_are_named_with_the_remedy():
    with pytest.raises(InputError, match=r"\['text', 'label'\].*instruction_column"):
        RowReader().columns(["text", "label"])


@pytest.mark.parametrize(
    "settings",
    [
        {"instruction_column": "a"},
        {"response_column": "a"},
        {"turns": "last"},
        {"translation": "de"},
        {"translation": "de:"},
        {"translation": ":en"},
        {"translation": "de:de"},
    ],
)
def test_settings_that_contradict_are_refused(settings):
    with pytest.raises(SettingError):
        RowReader(**settings)


# Conversations

LONG = said(
    ("system", "Be brief."),
    ("user", "Add 1 and 2."),
    ("assistant", "3"),
    ("user", "And 1 more?"),
    ("assistant", "4"),
)


def test_a_system_turn_joins_the_instruction():
    assert one({"messages": LONG[:3]}) == Pair("Be brief.\nAdd 1 and 2.", "3")
    row = {"system_prompt": "Be brief.", "question": "Add 1 and 2.", "response": "3"}
    assert one(row) == Pair("Be brief.\nAdd 1 and 2.", "3")


def test_several_turns_need_a_policy():
    assert one({"messages": LONG}) == "multi_turn"
    assert one({"messages": LONG}, turns="first") == Pair("Be brief.\nAdd 1 and 2.", "3")
    assert one({"messages": LONG}, turns="all") == Pair(
        "Be brief.\nUser: Add 1 and 2.\nAssistant: 3\nUser: And 1 more?", "4"
    )


def test_policies_leave_a_single_exchange_alone():
    for turns in (None, "first", "all"):
        assert one({"messages": LONG[:3]}, turns=turns) == one({"messages": LONG[:3]})


def test_a_question_behind_the_last_answer_is_not_rated():
    open_ended = [*LONG, *said(("user", "Thanks."))]
    assert one({"messages": open_ended}, turns="all") == "unanswered"
    assert one({"messages": open_ended}, turns="first") == one({"messages": LONG}, turns="first")
    assert one({"messages": open_ended}) == "multi_turn"


def test_the_first_exchange_is_a_question_and_its_answer():
    turns = said(("assistant", "Hello."), ("user", "Add 1 and 2."), ("assistant", "3"))
    assert one({"messages": turns}, turns="first") == OK
    tools = said(("user", "Time?"), ("tool", "12:00"), ("assistant", "Noon."))
    assert one({"messages": tools}, turns="first") == Pair("User: Time?\nTool: 12:00", "Noon.")
    assert one({"messages": tools}, turns="all") == Pair("User: Time?\nTool: 12:00", "Noon.")


# Translation

GERMAN = {"translation": {"de": "Guten Tag", "en": "Good day", "xx": "Dag"}}


def test_translations_need_their_languages():
    pair = one(GERMAN, translation="de:en")
    assert pair.response == "Good day"
    first, _, text = pair.instruction.partition("\n")
    assert "German" in first
    assert "English" in first
    assert text == "Guten Tag"
    assert one(GERMAN, translation="en:xx").instruction.partition("\n")[0].count("xx") == 1
    with pytest.raises(InputError, match="de:en"):
        one(GERMAN)


def test_a_translated_text_is_not_a_template():
    tricky = {"translation": {"de": "{target_language} {text} {source_language}", "en": "x"}}
    assert one(tricky, translation="de:en").instruction.endswith(
        "\n{target_language} {text} {source_language}"
    )


@pytest.mark.parametrize(
    ("value", "status"),
    [
        (None, "empty"),
        ("Guten Tag", "type"),
        ({"de": "Guten Tag"}, "empty"),
        ({"de": "Guten Tag", "en": None}, "empty"),
        ({"de": " ", "en": "Good day"}, "empty"),
        ({"de": 1, "en": "Good day"}, "type"),
    ],
)
def test_translations_that_are_not_there(value, status):
    assert one({"translation": value}, translation="de:en") == status


# What cannot be a pair


@pytest.mark.parametrize(
    ("row", "status"),
    [
        ({"instruction": "Add.", "output": ""}, "empty"),
        ({"instruction": "Add.", "output": " \n\t"}, "empty"),
        ({"instruction": "", "output": "3"}, "empty"),
        ({"instruction": None, "output": "3"}, "empty"),
        ({"instruction": "Add.", "output": None}, "empty"),
        ({"instruction": "Add.", "output": 3}, "type"),
        ({"instruction": "Add.", "output": b"3"}, "type"),
        ({"instruction": ["Add."], "output": "3"}, "type"),
        ({"instruction": "Add.", "input": 7, "output": "3"}, "type"),
        ({"instruction": "Add.", "output": "3\ud800"}, "encoding"),
        ({"instruction": "\udfffAdd.", "output": "3"}, "encoding"),
        ({"prompt": None, "completion": "3"}, "empty"),
        ({"prompt": said(("user", "Add.")), "completion": 3}, "type"),
        ({"messages": None}, "empty"),
        ({"messages": []}, "empty"),
        ({"messages": said(("user", "Add."))}, "empty"),
        ({"messages": said(("user", "Add."), ("assistant", None))}, "empty"),
        ({"messages": said(("assistant", "3"))}, "empty"),
        ({"messages": "Add."}, "type"),
        ({"messages": ""}, "type"),
        ({"messages": 5}, "type"),
        ({"prompt": 5, "completion": said(("assistant", "3"))}, "type"),
        ({"messages": [1, 2]}, "type"),
        ({"messages": said(("user", "Add."), ("narrator", "3"))}, "type"),
        ({"messages": said(("user", "Add."), (None, "3"))}, "type"),
        ({"messages": said(("user", "Add."), ("assistant", 3))}, "type"),
        ({"messages": said(("user", [{"type": "image"}]), ("assistant", "3"))}, "type"),
        ({"conversations": {"from": 1, "value": 2}}, "type"),
    ],
)
def test_statuses(row, status):
    assert one(row) == status


def test_bad_rows_leave_their_neighbours_untouched():
    outputs = ["3", None, 4, "\ud800", "", "3"]
    batch = {"instruction": ["Add 1 and 2."] * 6, "output": outputs}
    assert RowReader().pairs(batch) == [OK, "empty", "type", "encoding", "empty", OK]


@pytest.mark.parametrize("format_type", ["numpy", "torch"])
def test_a_formatted_dataset_has_the_same_pairs(format_type):
    for row in ({"messages": LONG[:3]}, {"instruction": "Add.", "output": "3"}):
        dataset = Dataset.from_list([row, row])
        batch = dataset.with_format(format_type)[:]
        assert RowReader().pairs(batch) == RowReader().pairs(dataset[:]) == [one(row)] * 2


def test_an_empty_batch_has_no_pairs():
    assert RowReader().pairs({"instruction": [], "output": []}) == []


def test_columns_of_unequal_length_are_no_batch():
    with pytest.raises(ValueError, match="zip"):
        RowReader().pairs({"instruction": ["a", "b"], "output": ["c"]})


def test_the_worst_status_is_the_last_of_the_list():
    assert worst(["ok", "truncated", "ok"]) == "truncated"
    assert worst(["nonfinite", "empty"]) == "nonfinite"
    for i, status in enumerate(STATUSES):
        assert worst([*STATUSES[: i + 1]][::-1]) == status


# Anything at all

TEXT = st.text(st.characters(exclude_categories=()), max_size=6) | st.sampled_from(
    ["user", "assistant", "system", "text", "\ud800", " ", "human", "gpt"]
)
KEYS = st.sampled_from(["role", "content", "from", "value", "type", "text", "de", "en"]) | TEXT
LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.binary(max_size=4)
    | TEXT
    | TEXT.map(np.str_)
    | st.sampled_from([np.float32(1), np.array([1, 2]), np.array(["user", "gpt"]), np.array([])])
)
JUNK = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(KEYS, inner, max_size=4)
        | st.fixed_dictionaries({"role": TEXT, "content": inner})
        | st.fixed_dictionaries({"type": inner, "text": inner})
    ),
    max_leaves=12,
)
COLUMNS = [[*layout.columns[0], *layout.optional] for layout in LAYOUTS]


@given(
    st.sampled_from(COLUMNS).flatmap(
        lambda columns: st.lists(
            st.fixed_dictionaries(dict.fromkeys(columns, JUNK)), min_size=1, max_size=3
        )
    ),
    st.sampled_from([None, "first", "all"]),
)
def test_any_junk_is_a_pair_or_a_status(rows, turns):
    batch = {column: [row[column] for row in rows] for column in rows[0]}
    read = RowReader(turns=turns, translation="de:en").pairs(batch)
    assert len(read) == len(rows)
    for one_read in read:
        if isinstance(one_read, Pair):
            for text in one_read:
                assert isinstance(text, str)
                assert text.strip()
                text.encode("utf-8")
        else:
            assert one_read in {"empty", "type", "encoding", "multi_turn", "unanswered"}
