"""The data files of the trade, small and in our own words: what docs/formats.md says of each."""

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from datasets import Dataset

from selectit_hf.errors import InputError
from selectit_hf.formats.layouts import LAYOUTS
from selectit_hf.formats.rows import STATUSES, Pair, RowReader
from selectit_hf.formats.sources import load
from selectit_hf.formats.survey import REMEDIES, take_in
from selectit_hf.formats.turns import NAMES

DOC = ROOT / "docs" / "formats.md"


def turn(role: str, content: Any, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


def share(role: str, value: str) -> dict[str, Any]:
    return {"from": role, "value": value}


CALL = {
    "id": "c1",
    "type": "function",
    "function": {"name": "clock", "arguments": '{"city": "Oslo"}'},
}
ASKED, SAID = "Name a river.", "The Danube."

FILES: dict[str, tuple[dict[str, Any], str | None, tuple[str, str] | str]] = {
    "ShareGPT with tools and system (LLaMA-Factory)": (
        {
            "conversations": [
                share("human", "How late is it in Oslo?"),
                share("function_call", '{"name": "clock"}'),
                share("observation", "12:00"),
                share("gpt", "It is noon."),
            ],
            "system": "You can tell the time.",
            "tools": '[{"name": "clock"}]',
            "id": 4,
        },
        "all",
        (
            'You can tell the time.\nTools: [{"name": "clock"}]\nUser: How late is it in Oslo?\n'
            'Assistant: {"name": "clock"}\nTool: 12:00',
            "It is noon.",
        ),
    ),
    "OpenAI messages with tool calls": (
        {
            "messages": [
                turn("developer", "Be exact."),
                turn("user", [{"type": "text", "text": "How late is it in Oslo?"}]),
                turn("assistant", None, tool_calls=[CALL]),
                turn("tool", "12:00", tool_call_id="c1"),
                turn("assistant", "Noon.", weight=1),
            ],
            "parallel_tool_calls": False,
        },
        "all",
        (
            "Be exact.\nUser: How late is it in Oslo?\n"
            'Assistant: {"function": {"arguments": "{\\"city\\": \\"Oslo\\"}", "name": "clock"}, '
            '"id": "c1", "type": "function"}\nTool: 12:00',
            "Noon.",
        ),
    ),
    "LLaMA-Factory history": (
        {
            "instruction": "And the longest?",
            "input": "In Europe.",
            "output": "The Volga.",
            "system": "You know rivers.",
            "history": [[ASKED, SAID]],
        },
        "all",
        (
            "You know rivers.\nUser: Name a river.\nAssistant: The Danube.\n"
            "User: And the longest?\nIn Europe.",
            "The Volga.",
        ),
    ),
    "DPO": ({"prompt": ASKED, "chosen": SAID, "rejected": "A hill."}, None, (ASKED, SAID)),
    "DPO of conversations": (
        {
            "prompt": ASKED,
            "chosen": [turn("user", ASKED), turn("assistant", SAID)],
            "rejected": [turn("user", ASKED), turn("assistant", "A hill.")],
        },
        None,
        (ASKED, SAID),
    ),
    "WildChat": (
        {
            "conversation_hash": "ab",
            "model": "m",
            "conversation": [
                turn("user", ASKED, toxic=False, language="English"),
                turn("assistant", SAID, toxic=False, language="English"),
            ],
            "turn": 1,
        },
        None,
        (ASKED, SAID),
    ),
    "Dolly": (
        {"instruction": "Sum up.", "context": "It rains.", "response": "Rain.", "category": "s"},
        None,
        ("Sum up.\nIt rains.", "Rain."),
    ),
    "FLAN": ({"inputs": ASKED, "targets": SAID, "task": "qa"}, None, (ASKED, SAID)),
    "UltraChat": (
        {"id": "1", "data": [ASKED, SAID, "Another?", "The Rhine."]},
        "first",
        (ASKED, SAID),
    ),
    "UltraChat 200k": (
        {
            "prompt": ASKED,
            "prompt_id": "x",
            "messages": [turn("user", ASKED), turn("assistant", SAID)],
        },
        None,
        (ASKED, SAID),
    ),
    "Tulu 3": (
        {"id": "1", "messages": [turn("user", ASKED), turn("assistant", SAID)], "source": "s"},
        None,
        (ASKED, SAID),
    ),
    "GSM8K": ({"question": "1 + 2?", "answer": "3"}, None, ("1 + 2?", "3")),
    "ms-swift": (
        {"system": "Be brief.", "query": ASKED, "response": SAID, "history": []},
        None,
        (f"Be brief.\n{ASKED}", SAID),
    ),
}  # fmt: skip


def row_of_the_table(name: str, rows: Dataset) -> str:
    found = take_in(rows, RowReader())
    unread = ", ".join(f"`{column}`" for column in found.unread)
    keys = ", ".join(f"`{key}`" for key in found.unread_keys)
    left = "; ".join(text for text in (unread, f"in turns {keys}" if keys else "") if text)
    read = ", ".join(f"`{column}`" for column in found.read)
    several = "needs `--turns`" if found.statuses.get("multi_turn") else "rated"
    return f"| {name} | {found.layout} | {read} | {left or 'none'} | {several} |"


@pytest.mark.parametrize("name", FILES)
def test_files_of_the_trade(name, tmp_path):
    row, turns, pair = FILES[name]
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n", "utf-8")
    rows, _ = load(str(tmp_path / "rows.jsonl"))
    assert RowReader(turns=turns).pairs(rows[:]) == [Pair(*pair)]
    assert row_of_the_table(name, rows) in DOC.read_text("utf-8")


def test_the_documented_layouts_are_those_of_the_code():
    text = DOC.read_text("utf-8")
    for layout in LAYOUTS:
        columns = " or ".join(", ".join(f"`{c}`" for c in one) for one in layout.columns)
        beside = ", ".join(f"`{c}`" for c in layout.optional) or "none"
        assert f"| {layout.name} | {columns} | {beside} |" in text
    for kind, names in NAMES.items():
        listed = ", ".join(f"`{name}`" for name in names.split())
        assert f"| {kind} | {listed} |" in text


def test_the_documented_statuses_have_the_remedies_of_the_code():
    text = " ".join(DOC.read_text("utf-8").split())
    for status, remedy in REMEDIES.items():
        assert status in STATUSES
        assert f"| `{status}` | {' '.join(remedy.split())} |" in text


TREES = [
    {"message_id": "a", "parent_id": None, "text": "Hi.", "role": "prompter", "lang": "en"},
    {"message_tree_id": "a", "tree_state": "ready", "prompt": {"text": "Hi.", "replies": []}},
    {"id": 1, "text": "Hi.", "role": "user", "replies": []},
]


@pytest.mark.parametrize("row", TREES)
def test_trees_of_messages_are_refused_with_a_remedy(row):
    with pytest.raises(InputError, match=r"single messages of a tree.*'messages'"):
        take_in(Dataset.from_list([row]), RowReader())
    assert "single messages of a tree" in DOC.read_text("utf-8")


# Roles and keys


@pytest.mark.parametrize(
    ("user", "assistant"),
    [("USER", "Bot"), ("Human: ", "AI Assistant"), ("customer", "Agent"), ("prompter", "chat-bot")],
)
def test_roles_in_any_case_and_spacing(user, assistant):
    talk = [share(user, ASKED), share(assistant, SAID)]
    assert RowReader().pairs({"conversations": [talk]}) == [Pair(ASKED, SAID)]


@pytest.mark.parametrize(
    "turns",
    [
        [
            {"role": None, "from": "human", "content": None, "value": ASKED},
            {"role": "assistant", "from": None, "content": SAID, "value": None},
        ],
        [{"Role": "User", "Content": ASKED}, {"Role": "Assistant", "Content": SAID}],
        [{"speaker": "user", "text": ASKED}, {"speaker": "bot", "utterance": SAID}],
        [
            turn("user", [{"type": "text", "value": ASKED, "text": None}]),
            turn("assistant", [{"type": "output_text", "text": SAID}]),
        ],
    ],
)
def test_filled_keys_go_before_null_ones_and_have_many_names(turns):
    assert RowReader().pairs({"messages": [turns]}) == [Pair(ASKED, SAID)]


def test_unknown_roles_are_counted_once_for_each_row_and_can_be_mapped():
    stage = [share("narrator", "Night."), share("hero", ASKED), share("sage", SAID)]
    rows = Dataset.from_dict({"conversations": [stage, stage, stage[1:]]})
    found = take_in(rows, RowReader())
    assert found.roles == {"hero": 3, "sage": 3, "narrator": 2}
    assert "--role 'hero'=user|assistant|system|tool" in found.words("stage")
    mapped = RowReader(roles=("Narrator=system", "hero=user", "SAGE=assistant"))
    assert mapped.pairs(rows[:])[0] == Pair(f"Night.\n{ASKED}", SAID)
    assert take_in(rows, mapped).statuses == {}


def test_a_role_can_be_mapped_to_another_kind_than_usual():
    talk = [share("agent", ASKED), share("customer", SAID)]
    reader = RowReader(roles=("agent=user", "customer=assistant"))
    assert reader.pairs({"conversations": [talk]}) == [Pair(ASKED, SAID)]


# Several turns

USED = [
    turn("user", "How late?"),
    turn("assistant", "I look.", tool_calls=[CALL]),
    turn("tool", "12:00"),
    turn("assistant", "Noon."),
    turn("user", "Thanks."),
]


def test_a_tool_call_is_said_behind_the_text_of_its_turn():
    (pair,) = RowReader(turns="first").pairs({"messages": [USED]})
    assert pair.response == "Noon."
    assert pair.instruction.startswith('User: How late?\nAssistant: I look.\n{"function"')
    assert pair.instruction.endswith("\nTool: 12:00")


@pytest.mark.parametrize("last", [turn("user", "More?"), turn("tool", "9"), turn("system", "End.")])
def test_all_never_rates_an_earlier_turn(last):
    talk = [*USED[:4], last]
    assert RowReader(turns="all").pairs({"messages": [talk]}) == ["unanswered"]


def test_a_call_alone_is_the_response_of_the_assistant():
    talk = [turn("user", "How late?"), turn("assistant", None, tool_calls=[CALL])]
    (pair,) = RowReader().pairs({"messages": [talk]})
    assert json.loads(pair.response) == CALL


def test_what_is_read_does_not_depend_on_the_other_rows(tmp_path):
    """A table gives every row the keys of all, in the order of the first."""
    other = {"zone": 1, "type": "other", "function": {"name": "x"}}
    talks = [
        [turn("user", "a"), turn("assistant", None, tool_calls=[call])] for call in (other, CALL)
    ]
    lines = [json.dumps({"messages": talk}) for talk in talks]
    (tmp_path / "two.jsonl").write_text("\n".join(lines))
    (tmp_path / "one.jsonl").write_text(lines[1])
    two, one = (load(str(tmp_path / name))[0][:] for name in ("two.jsonl", "one.jsonl"))
    assert RowReader().pairs(two)[1:] == RowReader().pairs(one)


DEEP = "[" * 10**5


@pytest.mark.parametrize(
    "row",
    [
        {"messages": DEEP},
        {"conversations": f'[{{"from": "human", "value": {DEEP}'},
        {"instruction": ASKED, "output": SAID, "history": DEEP},
    ],
)
def test_deeply_nested_json_as_a_text_is_a_status(row):
    assert RowReader(turns="all").pairs({name: [value] for name, value in row.items()}) == ["type"]


@pytest.mark.parametrize(
    "history", [[["a", "b"]], '[["a", "b"]]', [turn("user", "a"), turn("assistant", "b")]]
)
def test_a_history_may_be_stored_as_a_text(history):
    row = {"instruction": [ASKED], "output": [SAID], "history": [history]}
    expected = Pair(f"User: a\nAssistant: b\nUser: {ASKED}", SAID)
    assert RowReader(turns="all").pairs(row) == [expected]


@pytest.mark.parametrize(
    ("row", "asked"),
    [
        ({"inputs": ASKED, "context": "C.", "targets": SAID}, f"{ASKED}\nC."),
        ({"context": "C.", "input": ASKED, "output": SAID}, f"{ASKED}\nC."),
        ({"system_message": "S.", "messages": [turn("user", ASKED), turn("bot", SAID)]}, None),
        ({"System_Message": "S.", "question": ASKED, "answer": SAID}, None),
    ],
)
def test_nothing_beside_the_question_is_dropped(row, asked):
    reader = RowReader()
    expected = [Pair(asked or f"S.\n{ASKED}", SAID)]
    assert reader.pairs({name: [value] for name, value in row.items()}) == expected


@pytest.mark.parametrize("name", ["gpt-4o", "GPT-3.5-turbo-0613", "claude-v1", "Gemini 1.5 Pro"])
def test_a_model_may_carry_its_version(name):
    assert RowReader().pairs({"conversations": [[share("human", ASKED), share(name, SAID)]]}) == [
        Pair(ASKED, SAID)
    ]
    numbered = [share("User 1", ASKED), share(name, SAID)]
    assert RowReader().unknown_roles({"conversations": [numbered]}) == {"User 1": 1}


def test_results_of_tools_in_the_name_of_the_user_are_turns_of_the_tool():
    result = {"type": "tool_result", "tool_use_id": "c1", "content": "12:00"}
    talk = [
        turn("user", "How late?"),
        turn("assistant", [{"type": "tool_use", "id": "c1", "name": "clock", "input": {}}]),
        turn("user", [result]),
        turn("assistant", "Noon."),
    ]
    (pair,) = RowReader(turns="first").pairs({"messages": [talk]})
    assert pair.response == "Noon."
    assert pair.instruction.endswith(f"\nTool: {json.dumps(result, sort_keys=True)}")


def test_turns_whose_text_is_elsewhere_are_not_called_blank():
    parts = [
        {"role": "user", "parts": [{"text": ASKED}]},
        {"role": "model", "parts": [{"text": SAID}]},
    ]
    unread = [{"role": "user", "said": ASKED}, {"role": "model", "said": SAID}]
    assert RowReader().pairs({"messages": [parts, unread]}) == [Pair(ASKED, SAID), "type"]


def test_the_cases_beside_the_repository():
    folder = ROOT.parent / "shared" / "cases"
    if not folder.is_dir():
        pytest.skip("../shared/cases is not beside the repository")
    for name in ("history", "toolcall", "msgs_tool", "both", "v1"):
        rows, _ = load(str(Path(folder) / f"{name}.jsonl"))
        assert all(isinstance(p, Pair) for p in RowReader(turns="all").pairs(rows[:])), name
