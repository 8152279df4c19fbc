"""The kept rows as trainers read them: each form in literal words, and TRL for real."""

import json
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import datasets
import pytest
from command import Outcome
from datasets import Dataset, load_dataset, load_from_disk
from finished_runs import make_rows, make_run
from media_rows import png, typed

from selectit_hf import export
from selectit_hf.errors import InputError, RunError, SettingError
from selectit_hf.formats.sources import load

TINY = str(files("selectit_hf") / "data" / "tiny-rater")
FORMS = ("messages", "prompt-completion", "alpaca", "sharegpt", "text")
CHAT = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run over instructions and responses, with a column that is not read."""
    rows = make_rows(30, source=["someone"] * 30)
    return make_run(tmp_path_factory.mktemp("plain") / "RUN", rows=rows)


@pytest.fixture(autouse=True)
def uncounted(monkeypatch: pytest.MonkeyPatch) -> None:
    """`load_dataset` tells a server that it was called."""
    monkeypatch.setattr(datasets.config, "HF_UPDATE_DOWNLOAD_COUNTS", False)


def kept(run: Path) -> list[dict[str, Any]]:
    return list(Dataset.from_parquet(str(run / "selected.parquet")))


def talks(turns: list[Any], **extra: Any) -> Dataset:
    """Ten rows of one conversation each, as a file of JSON would give them."""
    return Dataset.from_list([{"id": i, "messages": turns, **extra} for i in range(10)])


def jsonl(path: Path, rows: list[dict[str, Any]]) -> Dataset:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return load(str(path))[0]


def exported(run: Path, form: str, out: Path, **how: Any) -> list[dict[str, Any]]:
    export(run, form, out, **how)
    return [json.loads(line) for line in out.read_text().splitlines()]


def expected(form: str, row: dict[str, Any]) -> dict[str, Any]:
    """One row in the field names that the trainers document."""
    asked, answered = row["instruction"], row["output"]
    return {
        "messages": {
            "messages": [
                {"role": "user", "content": asked},
                {"role": "assistant", "content": answered},
            ]
        },
        "sharegpt": {
            "conversations": [
                {"from": "human", "value": asked},
                {"from": "gpt", "value": answered},
            ]
        },
        "alpaca": {"instruction": asked, "input": "", "output": answered},
        "prompt-completion": {"prompt": f"{asked}\n", "completion": answered},
        "text": {"text": f"{asked}\n{answered}"},
    }[form]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("ending", [".jsonl", ".json", ".parquet", ""])
def test_each_form_is_loaded_as_trainers_load_it(
    form: str, ending: str, plain: Path, tmp_path: Path
) -> None:
    out = tmp_path / f"kept{ending}"
    made = export(plain, form, out)
    kind = "parquet" if ending == ".parquet" else "json"
    if ending:
        found = load_dataset(kind, data_files=str(out), split="train", cache_dir=str(tmp_path))
    else:
        found = load_from_disk(str(out))
    wanted = [expected(form, row) for row in kept(plain)]
    assert list(found) == wanted
    assert (made.rows, list(made.columns)) == (6, list(wanted[0]))
    assert made.notes == ("columns that are left out: source",)


def test_a_json_file_is_one_list(plain: Path, tmp_path: Path) -> None:
    export(plain, "alpaca", tmp_path / "a.json")
    wanted = [expected("alpaca", row) for row in kept(plain)]
    assert json.loads((tmp_path / "a.json").read_text()) == wanted


def test_scores_stay_only_when_asked_for(plain: Path, tmp_path: Path) -> None:
    made = exported(plain, "text", tmp_path / "a.jsonl", with_scores=True)
    rows = kept(plain)
    ours = [name for name in rows[0] if name not in ("instruction", "output", "source")]
    assert len(ours) == 12
    assert [{name: row[name] for name in ours} for row in made] == json.loads(
        json.dumps([{name: row[name] for name in ours} for row in rows])
    )
    assert list(made[0]) == ["text", *ours]


@pytest.mark.parametrize("form", ["messages", "prompt-completion", "text"])
def test_trl_takes_a_step(form: str, plain: Path, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    out = tmp_path / "kept.jsonl"
    export(plain, form, out)
    rows = load_dataset("json", data_files=str(out), split="train", cache_dir=str(tmp_path))
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    tokenizer.chat_template = CHAT
    trainer = SFTTrainer(
        AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32),
        SFTConfig(
            output_dir=str(tmp_path / "trained"),
            max_steps=1,
            per_device_train_batch_size=2,
            report_to="none",
            use_cpu=True,
            bf16=False,
            activation_checkpointing=False,
            dataloader_pin_memory=False,
        ),
        train_dataset=rows,
        processing_class=tokenizer,
    )
    first = tokenizer.decode(trainer.train_dataset[0]["input_ids"])
    row = kept(plain)[0]
    assert row["instruction"] in first
    assert row["output"] in first
    assert trainer.train().global_step == 1


def test_the_prompt_is_tokenized_alike_alone_and_before_its_completion(
    bpe_merge: Any, plain: Path, tmp_path: Path
) -> None:
    """As TRL needs it; the tokenizer cuts words as GPT-2 does."""
    for row in exported(plain, "prompt-completion", tmp_path / "a.jsonl"):
        alone = bpe_merge(row["prompt"])["input_ids"]
        assert bpe_merge(row["prompt"] + row["completion"])["input_ids"][: len(alone)] == alone


# Conversations

TURNS = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "One?"},
    {"role": "assistant", "content": "1"},
    {"role": "user", "content": "Two?"},
    {"role": "assistant", "content": "2"},
]


@pytest.mark.parametrize("turns", ["first", "all"])
def test_conversations_stay_whole(turns: str, tmp_path: Path) -> None:
    run = make_run(tmp_path / "RUN", rows=talks(TURNS), rating={"turns": turns})
    assert exported(run, "messages", tmp_path / "m.jsonl") == [{"messages": TURNS}] * 2
    names = ["system", "human", "gpt", "human", "gpt"]
    wanted = [
        {"from": name, "value": turn["content"]} for name, turn in zip(names, TURNS, strict=True)
    ]
    assert exported(run, "sharegpt", tmp_path / "s.jsonl") == [{"conversations": wanted}] * 2


def test_pairs_are_those_that_were_rated_and_what_is_cut_is_said(tmp_path: Path) -> None:
    first = make_run(tmp_path / "first", rows=talks(TURNS), rating={"turns": "first"})
    made = export(first, "alpaca", tmp_path / "first.jsonl")
    assert "2 rows hold only the exchange that was rated" in made.notes[1]
    row = json.loads((tmp_path / "first.jsonl").read_text().splitlines()[0])
    assert row == {"instruction": "Be brief.\nOne?", "input": "", "output": "1"}
    whole = make_run(tmp_path / "all", rows=talks(TURNS), rating={"turns": "all"})
    made = export(whole, "alpaca", tmp_path / "all.jsonl")
    assert made.notes == ("columns that are left out: id",)
    row = json.loads((tmp_path / "all.jsonl").read_text().splitlines()[0])
    assert row["instruction"] == "Be brief.\nUser: One?\nAssistant: 1\nUser: Two?"


def test_what_lies_beside_a_row_becomes_turns(tmp_path: Path) -> None:
    rows = Dataset.from_list(
        [
            {
                "instruction": "Add.",
                "output": "3",
                "input": "1 and 2",
                "system": "Be brief.",
                "history": [["Hello", "Hi"]],
            }
        ]
        * 10
    )
    run = make_run(tmp_path / "RUN", rows=rows, rating={"turns": "all"})
    (row, _) = exported(run, "messages", tmp_path / "m.jsonl")
    assert [tuple(turn.values()) for turn in row["messages"]] == [
        ("system", "Be brief."),
        ("user", "Hello"),
        ("assistant", "Hi"),
        ("user", "Add.\n1 and 2"),
        ("assistant", "3"),
    ]


def test_a_conversation_that_llama_factory_would_skip_is_counted(tmp_path: Path) -> None:
    run = make_run(tmp_path / "RUN", rows=talks(TURNS[:4]), rating={"turns": "first"})
    made = export(run, "sharegpt", tmp_path / "s.jsonl")
    assert "2 conversations do not alternate" in made.notes[1]


# Tools

TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]
CALLS = [
    {"role": "user", "content": "1 + 2?"},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {"type": "function", "function": {"name": "add", "arguments": {"a": 1, "b": 2}}}
        ],
    },
    {"role": "tool", "content": "3", "tool_call_id": "x"},
    {"role": "assistant", "content": "It is 3."},
]
SHARED = [
    {"from": "human", "value": "1 + 2?"},
    {"from": "function_call", "value": '{"name": "add", "arguments": {"a": 1}}'},
    {"from": "observation", "value": "3"},
    {"from": "gpt", "value": "It is 3."},
]


def filled(value: Any) -> Any:
    """Without the nulls that a table adds."""
    if isinstance(value, dict):
        return {key: filled(one) for key, one in value.items() if one is not None}
    return [filled(one) for one in value] if isinstance(value, list) else value


def test_tool_calls_stay_as_they_are_in_the_form_of_their_rows(tmp_path: Path) -> None:
    rows = [{"id": i, "messages": CALLS, "tools": TOOLS} for i in range(10)]
    data = jsonl(tmp_path / "rows.jsonl", rows)
    run = make_run(tmp_path / "messages", rows=data, rating={"turns": "all"})
    (row, _) = exported(run, "messages", tmp_path / "m.jsonl")
    assert filled(row["messages"]) == filled(CALLS)
    assert json.loads(row["tools"]) == TOOLS

    rows = [{"id": i, "conversations": SHARED, "tools": json.dumps(TOOLS)} for i in range(10)]
    data = jsonl(tmp_path / "shared.jsonl", rows)
    run = make_run(tmp_path / "shared", rows=data, rating={"turns": "all"})
    (row, _) = exported(run, "sharegpt", tmp_path / "s.jsonl")
    assert (row["conversations"], json.loads(row["tools"])) == (SHARED, TOOLS)


@pytest.mark.parametrize(
    ("name", "turns", "form", "can"),
    [
        ("messages", CALLS, "sharegpt", "choose --format messages"),
        ("messages", CALLS, "alpaca", "choose --format messages"),
        ("conversations", SHARED, "messages", "choose --format sharegpt"),
        ("conversations", SHARED, "text", "choose --format sharegpt"),
    ],
)
def test_a_form_that_cannot_hold_tools_names_the_row_and_one_that_can(
    name: str, turns: list[Any], form: str, can: str, tmp_path: Path
) -> None:
    data = jsonl(tmp_path / "rows.jsonl", [{"id": i, name: turns} for i in range(10)])
    run = make_run(tmp_path / "RUN", rows=data, rating={"turns": "all"})
    numbers = Dataset.from_parquet(str(run / "selected.parquet"))["id"]
    (tmp_path / "out.jsonl").write_text("before")
    with pytest.raises(InputError, match=rf"^Row {numbers[0]} has tools.*{form}.*{can}"):
        export(run, form, tmp_path / "out.jsonl")
    assert (tmp_path / "out.jsonl").read_text() == "before"


def test_definitions_of_tools_go_with_any_conversation(tmp_path: Path) -> None:
    rows = [
        {"instruction": "A?", "output": "B", "tools": TOOLS if i % 2 else None} for i in range(10)
    ]
    data = jsonl(tmp_path / "rows.jsonl", rows)
    run = make_run(tmp_path / "RUN", rows=data, cut=None)
    for form in ("messages", "sharegpt"):
        found = [row["tools"] for row in exported(run, form, tmp_path / f"{form}.jsonl")]
        assert all(one is None or json.loads(one) == TOOLS for one in found)


def test_media_are_refused_with_the_row(tmp_path: Path) -> None:
    from datasets import Image

    rows = typed(
        {"picture": Image()}, {"picture": [{"bytes": png(i), "path": None} for i in range(30)]}
    )
    run = make_run(tmp_path / "RUN", rows=rows)
    with pytest.raises(InputError, match=r"Row \d+ has media in the column 'picture'"):
        export(run, "messages", tmp_path / "out.jsonl")
    assert not (tmp_path / "out.jsonl").exists()


# Files


def test_only_what_was_verified_is_exported(plain: Path, tmp_path: Path) -> None:
    run = make_run(tmp_path / "RUN")
    data = bytearray((run / "selected.parquet").read_bytes())
    data[100] ^= 1
    (run / "selected.parquet").write_bytes(data)
    with pytest.raises(RunError, match=r"selected\.parquet was changed"):
        export(run, "text", tmp_path / "out.jsonl")
    with pytest.raises(SettingError, match="never overwritten"):
        export(plain, "text", plain / "selected.parquet")
    with pytest.raises(SettingError, match="choose one of messages, prompt-completion"):
        export(plain, "chatml", tmp_path / "out.jsonl")
    assert not (tmp_path / "out.jsonl").exists()


def test_the_command_says_how_trainers_are_told(
    selectit: Callable[..., Outcome], plain: Path, tmp_path: Path
) -> None:
    done = selectit("export", plain, "--format", "sharegpt", "--out", "kept.json")
    assert done.code == 0, done.err
    assert "6 rows in the form sharegpt are in kept.json" in done.err
    assert "Note: columns that are left out: source." in done.err
    entry = json.loads(done.err.partition("in dataset_info.json: ")[2].partition("\n")[0])
    assert entry["selectit_kept"] == {
        "file_name": "kept.json",
        "formatting": "sharegpt",
        "columns": {"messages": "conversations"},
    }
    assert "type: chat_template, field_messages: conversations" in done.err
    said = selectit("export", plain, "--format", "text", "--out", "folder", "--json")
    assert json.loads(said.out)["columns"] == ["text"]
    refused = selectit("export", plain, "--format", "text", "--out", "a.jsonl", "--public")
    assert (refused.code, "apply only to --out hub:" in refused.err) == (1, True)
