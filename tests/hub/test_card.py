"""The card: a whole one pinned, nobody's value taken at its word, hand-written text kept."""

import copy
import hashlib
import io
import itertools
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pyarrow.parquet as pq
import pytest
from datasets import Dataset
from finished_runs import make_rows, make_run
from hub_server import card_data
from huggingface_hub import DatasetCard
from markdown_it import MarkdownIt
from PIL import Image

from selectit_hf.analysis.finished import Finished
from selectit_hf.analysis.finished_run import from_run
from selectit_hf.errors import HubError, InputError, RunError, SettingError
from selectit_hf.hub import card as cards
from selectit_hf.hub import markdown
from selectit_hf.hub.card import Card, CardSettings, inherited, make_card, merged
from selectit_hf.hub.markdown import escaped
from selectit_hf.hub.staging import Staged, stage
from selectit_hf.json_files import facts_hash
from selectit_hf.rating.reflection import Reflection
from selectit_hf.report.plots import (
    agreement_plot,
    lengths_plot,
    rank_correlations,
    score_edges,
    scores_plot,
)
from selectit_hf.runs.plans import encoded
from selectit_hf.selection.selection import Cut

GOLDEN = Path(__file__).parent.parent / "golden_card.txt"
MARKDOWN = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
PAYLOADS = [
    "x\nlicense: mit\n---\n<script>alert(1)</script>",
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "](javascript:alert(1)) [click](javascript:alert(1))",
    "```\n</code></pre><script>alert(1)</script>\n```",
    "{{ 7 * 7 }}{% for x in y %}{{ config }}",
    "| a | b |\n|---|---|\n| c | d |",
    "\n\n# Buy now\n\n[free](http://evil.example)",
    "<!-- selectit: end of the generated text -->",
    "license: mit # &license *license !!python/object:os.system",
    "'; DROP TABLE rows; -- \u202egnp.exe\u2028\x00\x1b[31m",
    "$$\\href{javascript:alert(1)}{x}$$ @everyone https://evil.example www.evil.example",
]


def staged(tmp_path: Path, **options: Any) -> tuple[Finished, Staged]:
    finished = from_run(make_run(tmp_path / "run", **options))
    (tmp_path / "staged").mkdir()
    return finished, stage(finished, tmp_path / "staged")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Finished, Staged]:
    return staged(tmp_path_factory.mktemp("prepared"))


def card_of(
    tmp_path: Path,
    settings: CardSettings | None = None,
    source_card: dict[str, Any] | None = None,
    **options: Any,
) -> Card:
    finished, files = staged(tmp_path, **options)
    compared = {**finished.facts["input"], "relation": "same"}
    settings, source_card = settings or CardSettings(), source_card or {}
    return make_card(
        finished.facts | {"input": compared},
        "user/selective-test",
        licence=inherited(source_card, settings),
        settings=settings,
        source_card=source_card,
        datasets_data=files.datasets_data,
        plots=files.plots,
        examples=finished.examples,
        version="0.1.0",
    )


def plain_card(finished: Finished, datasets_data: Mapping[str, Any] | None = None) -> Card:
    """The card of facts, with nothing set and a source without a card."""
    return make_card(
        finished.facts,
        "user/x",
        licence=inherited({}, CardSettings()),
        settings=CardSettings(),
        source_card={},
        datasets_data=datasets_data or {},
    )


def front_matter(text: str) -> dict[str, Any]:
    data = card_data(text)
    assert data == DatasetCard(text).data.to_dict()
    return data


def tags(text: str) -> set[str]:
    """The HTML elements that a browser would see in a card."""
    html = MARKDOWN.render(text.split("\n---\n", 1)[1])
    return {name.lower() for name in re.findall(r"<\s*/?\s*([A-Za-z][\w-]*)", html)}


KNOWN_TAGS = {"h1", "h2", "p", "a", "code", "pre", "ul", "ol", "li", "strong", "img", "br"}
KNOWN_TAGS |= {"table", "thead", "tbody", "tr", "th", "td"}


# A whole card


def test_a_whole_card_is_pinned(tmp_path: Path) -> None:
    text = card_of(tmp_path, source_card={"license": "cc-by-nc-4.0", "language": ["en"]}).text()
    # sizes of parquet files depend on the library that writes them
    steady = re.sub(r"(download_size): \d+", r"\1: 0", text)
    assert steady == GOLDEN.read_text("utf-8")


def test_the_front_matter_says_what_the_files_are(tmp_path: Path) -> None:
    finished, files = staged(tmp_path)
    data = files.datasets_data
    assert [(c["config_name"], c["data_files"][0]["path"]) for c in data["configs"]] == [
        ("default", ["data/train-00000-of-00001.parquet"]),
        ("scores", ["scores/train-00000-of-00001.parquet"]),
    ]
    counts = {i["config_name"]: i["splits"][0]["num_examples"] for i in data["dataset_info"]}
    assert counts == {"default": 6, "scores": 30}
    for info in data["dataset_info"]:
        path = files.folder / {"default": "data", "scores": "scores"}[info["config_name"]]
        written = pq.read_schema(path / "train-00000-of-00001.parquet").names
        assert [feature["name"] for feature in info["features"]] == written
    assert next(iter(finished.scores.features)) == "row"


@pytest.mark.parametrize(
    ("rows", "size"), [(999, "n<1K"), (1000, "1K<n<10K"), (10**6, "1M<n<10M"), (10**8, "100M<n<1B")]
)
def test_the_size_category_counts_the_kept_rows(
    prepared: tuple[Finished, Staged], rows: int, size: str
) -> None:
    finished, files = copy.deepcopy(prepared[0]), prepared[1]
    finished.facts["selection"]["selected"] = rows
    made = plain_card(finished, files.datasets_data)
    assert made.data["size_categories"] == [size]


def test_a_section_without_content_is_left_out(tmp_path: Path) -> None:
    rows = make_rows(10).map(lambda row: {"output": row["output"] or "full"})
    body = card_of(tmp_path, rows=rows, models=("org/one",), cut=Cut(proportion=1)).body
    assert "agreement.png" not in body  # one model
    assert "How kept and other rows differ" not in body  # nothing was rejected
    assert "Not rated" not in body
    assert "A row without a rating" not in body
    assert "## Examples" not in body
    assert "None" not in body


def test_examples_are_shown_only_when_asked_for(tmp_path: Path) -> None:
    rows = make_rows(20, note=["secret"] * 20)
    assert "Question 1" not in card_of(tmp_path / "a", rows=rows).text()
    assert "Question" in card_of(tmp_path / "b", CardSettings(examples=True), rows=rows).body


def test_a_released_card_says_so(tmp_path: Path) -> None:
    models = ("org/a", "org/b", "org/c")
    how, cut = Reflection(variant="released"), Cut(n=4, variant="released")
    body = card_of(tmp_path, models=models, how=how, cut=cut).body
    assert "its second softmax" in body
    assert "weight at model level: 0.7778" in body  # 70/90
    assert "(the best 4)" in body
    assert "variant: released" in body
    assert "\n  n: 4\n" in body


def test_what_the_rows_were_read_as_is_told(tmp_path: Path) -> None:
    columns = {"instruction_column": "output", "response_column": "output"}
    rating = {"template": "{rating_prompt} {instruction} {response} =", **columns}
    rating |= {"rating_prompts": [f"Mine {i}" for i in range(5)], "chat": True, "max_length": 2048}
    how = Reflection(by="token_score__small")
    body = card_of(tmp_path, rating=rating, how=how, cut=Cut(threshold=0.5)).body
    for said in (
        "**Columns rated:** output and output",
        "instruction-column: output",
        "rating-prompts: rating_prompts.txt",
        "template: template.txt",
        "chat: true",
        "2,048 tokens",
        "of which the token level uses the first",
        "all rows at or above the threshold",
    ):
        assert said in body


def test_what_the_weights_were_is_told(prepared: tuple[Finished, Staged]) -> None:
    finished, files = copy.deepcopy(prepared[0]), prepared[1]
    weights = {"base": "org/base", "quantization": "4bit", "attn_implementation": "eager"}
    own, of_base = "1" * 40, "2" * 40
    finished.facts["models"] = [
        {**finished.facts["models"][0], "model": "org/lora", "revision": f"{own}~{of_base}"}
        | weights
    ]
    kwargs = '{"date": "26 Jul", "enable_thinking": false}'
    finished.facts["rating"] |= {"chat": True, "chat_template_kwargs": kwargs}
    body = plain_card(finished, files.datasets_data).body
    for said in (
        f"[org/lora](https://huggingface.co/org/lora/tree/{own})",
        f"revision: {own}, of its base {of_base}",
        "an adapter for: org/base",
        "quantized on loading: 4bit (bitsandbytes)",
        "attention: eager",
        f"- org/lora@{own}~{of_base}",
        "base-model: org/base",
        "quantization: 4bit",
        "attn-implementation: eager",
        '- date="26 Jul"',
        "- enable_thinking=false",
    ):
        assert said in body, said


def test_a_low_rating_mass_is_a_warning(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    summary = json.loads((run / "summary.json").read_text())
    summary["models"]["small"]["rating_mass"] = 0.01
    (run / "summary.json").write_text(json.dumps(summary))
    selection = json.loads((run / "selection.json").read_text())
    digest = hashlib.sha256((run / "summary.json").read_bytes()).hexdigest()
    selection["sha256"]["summary.json"] = digest
    del selection["manifest_sha256"]
    selection["manifest_sha256"] = facts_hash(selection)
    (run / "selection.json").write_text(json.dumps(selection))
    finished = from_run(run)
    made = plain_card(finished)
    assert made.body.count("these scores mean little") == 1


def test_an_unknown_name_in_a_template_is_an_error() -> None:
    with pytest.raises(jinja2.UndefinedError):
        markdown.environment().from_string("{{ nothing_of_the_kind }}").render()


# The licence


@pytest.mark.parametrize(
    ("said", "given", "ids", "said_by"),
    [
        ("cc-by-nc-4.0", None, ("cc-by-nc-4.0",), "source"),
        (["mit", "apache-2.0"], None, ("mit", "apache-2.0"), "source"),
        (None, None, ("other",), "nobody"),
        ("", None, ("other",), "nobody"),
        ([], None, ("other",), "nobody"),
        (7, None, ("other",), "nobody"),
        ("cc-by-nc-4.0\nlicense: mit", None, ("other",), "nobody"),
        (None, "apache-2.0", ("apache-2.0",), "publisher"),
        ("cc-by-nc-4.0", "mit", ("mit",), "publisher"),
        ("mit", "mit", ("mit",), "source"),
    ],
)
def test_the_licence_is_the_sources_unless_told(
    said: Any, given: str | None, ids: tuple[str, ...], said_by: str
) -> None:
    licence = inherited({"license": said}, CardSettings(license=given))
    assert (licence.ids, licence.said_by) == (ids, said_by)


def test_another_licence_than_the_sources_is_told(tmp_path: Path) -> None:
    source = {"license": "cc-by-nc-4.0"}
    made = card_of(tmp_path, CardSettings(license="mit"), source)
    assert made.data["license"] == "mit"
    assert "as stated by the publisher" in made.body
    assert "the source says cc-by-nc-4.0" in made.body


def test_the_name_of_an_unlisted_licence_is_inherited_too(tmp_path: Path) -> None:
    said = {"license": "other", "license_name": "x: mine", "license_link": "x\nlicense: mit"}
    data = front_matter(card_of(tmp_path, source_card=said).text())
    assert (data["license"], data["license_name"]) == ("other", "x: mine")
    assert "license_link" not in data


@pytest.mark.parametrize("wrong", ["mit\nx: y", "<b>", "", "MIT License", "a" * 65])
def test_a_licence_that_can_be_none_is_refused(wrong: str) -> None:
    with pytest.raises(SettingError, match="not a licence identifier"):
        CardSettings(license=wrong)


def test_a_language_that_can_be_none_is_refused() -> None:
    CardSettings(language=("en", "zh-Hant"))
    with pytest.raises(SettingError, match="not a language code"):
        CardSettings(language=("english!",))


@pytest.mark.parametrize("revision", ["sha256:" + "0" * 64, "0" * 40])
def test_a_part_of_a_split_is_never_called_the_whole(tmp_path: Path, revision: str) -> None:
    source = {"name": "rows.json", "config": None, "split": "train[:30]", "revision": revision}
    text = card_of(tmp_path, source=source).text()
    shown = re.sub("<[^>]*>", "", MARKDOWN.render(text.split("\n---\n", 1)[1]))
    assert "of 30 rows of the part train[:30] of rows.json" in " ".join(shown.split())
    assert "Every row of that part" in shown
    assert "  split: train[:30]\n" in text


# Payloads


@pytest.mark.parametrize("payload", PAYLOADS)
def test_no_value_breaks_out_of_the_card(tmp_path: Path, payload: str) -> None:
    column = payload.replace("\x00", "")  # which no parquet file can hold in a name
    rows = make_rows(20, **{column: ["text"] * 20})
    rows = rows.map(lambda row: {"instruction": payload + row["instruction"]})
    made = card_of(
        tmp_path,
        CardSettings(pretty_name=payload, examples=True),
        {"license": "cc-by-nc-4.0", "license_name": payload, "language": [payload]},
        rows=rows,
        source={"name": payload, "config": payload, "split": payload},
        rating={
            "rating_prompts": [payload] * 5,
            "template": "{rating_prompt}{instruction}{response}" + payload,
            "instruction_column": "instruction",
            "response_column": "output",
        },
        models=("org/small",),
    )
    text = made.text()
    data = front_matter(text)
    assert data["license"] == "cc-by-nc-4.0"
    assert data["pretty_name"].split() == re.sub(markdown.UNSEEN, markdown.UNKNOWN, payload).split()
    assert "source_datasets" not in data
    assert column in [feature["name"] for feature in data["dataset_info"][0]["features"]]
    assert tags(text) <= KNOWN_TAGS
    html = MARKDOWN.render(made.body)
    links = re.findall(r'href="([^"]*)"', html)
    known = ("https://arxiv.org/", "https://huggingface.co/", "recipe.yaml")
    assert all(link.startswith(known) for link in links)
    assert re.findall(r'src="([^"]*)"', html) == ["images/scores.png", "images/lengths.png"]
    assert len(re.findall("<h1>", html)) == 1
    assert "49" not in html.split("How to load it")[0]
    assert merged(made, text) == text  # the markers are there once each


@pytest.mark.parametrize("payload", PAYLOADS)
def test_no_model_name_breaks_out_of_the_card(
    prepared: tuple[Finished, Staged], payload: str
) -> None:
    finished, files = copy.deepcopy(prepared[0]), prepared[1]
    told = ("model", "revision", "dtype", "base", "quantization", "attn_implementation")
    finished.facts["models"][0] |= dict.fromkeys(told, payload)
    finished.facts["rating"] |= {
        "chat": True,
        "chat_template_kwargs": json.dumps({payload: payload}),
    }
    finished.facts["versions"] = {payload: payload}
    made = make_card(
        finished.facts,
        "user/x",
        licence=inherited({}, CardSettings()),
        settings=CardSettings(),
        source_card={},
        datasets_data=files.datasets_data,
        plots=files.plots,
        version=payload,
    )
    assert tags(made.text()) <= KNOWN_TAGS
    assert front_matter(made.text())["license"] == "other"


@pytest.mark.parametrize(
    "text", ["_a_ *b* `c`", "a|b", "# head", "1. one", "- two", "<b>&amp;", "~~x~~", "a\\b", "$x$"]
)
def test_escaped_text_shows_its_own_characters(text: str) -> None:
    html = MARKDOWN.render(f"- before {escaped(text)}\n- {escaped(text)}")
    shown = re.sub(r"<[^>]+>", "", html).replace("&lt;", "<").replace("&gt;", ">")
    assert shown.replace("&amp;", "&").split("\n")[1:3] == [f"before {text}", text]
    assert tags("\n---\n" + html) == {"ul", "li"}


# Updates


def test_hand_written_text_and_keys_survive(tmp_path: Path) -> None:
    made = card_of(tmp_path)
    mine = made.text("# Before\n\nMine.", "## After\n\nAlso mine.")
    mine = mine.replace("license: other", "license: other\nannotations_creators:\n- me", 1)
    changed = Card(made.data | {"license": "mit"}, "Anew.")
    text = merged(changed, mine)
    assert text.count("Mine.") == text.count("Also mine.") == text.count("Anew.") == 1
    assert text.index("Mine.") < text.index("Anew.") < text.index("Also mine.")
    assert front_matter(text)["annotations_creators"] == ["me"]
    assert front_matter(text)["license"] == "mit"
    assert merged(changed, text) == text


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text.replace(cards.BEGIN, ""),
        lambda text: text.replace(cards.END, ""),
        lambda text: text + cards.END,
        lambda text: cards.BEGIN.join([text, ""]),
        lambda text: text.replace("license: other", "license: [", 1),
    ],
)
def test_a_damaged_card_is_not_guessed_at(tmp_path: Path, damage: Any) -> None:
    made = card_of(tmp_path)
    with pytest.raises(HubError, match="cannot be updated"):
        merged(made, damage(made.text()))


# Runs that do not add up


def edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def other_raters(run: Path) -> None:
    plan = json.loads((run / "plan.json").read_text())
    plan["models"][0]["rating_key"] = "another"
    del plan["plan_sha256"]
    (run / "plan.json").write_bytes(encoded(plan))


def other_rows(run: Path) -> None:
    table = pq.read_table(run / "selected.parquet")
    pq.write_table(table.take(list(range(len(table)))[::-1]), run / "selected.parquet")


@pytest.mark.parametrize(
    "break_it",
    [
        lambda run: (run / "summary.json").unlink(),
        lambda run: (run / "selection.json").write_text("[]"),
        lambda run: (run / "scores.parquet").write_bytes(b"PAR1"),
        lambda run: edit_json(run / "selection.json", selected=5),
        lambda run: edit_json(run / "selection.json", cut={"n": 5}),
        other_raters,
        other_rows,
    ],
)
def test_a_run_whose_files_do_not_belong_together_is_refused(tmp_path: Path, break_it: Any) -> None:
    run = make_run(tmp_path / "run")
    from_run(run)
    break_it(run)
    with pytest.raises(RunError, match=r"no results yet|files do not belong together"):
        from_run(run)


def test_a_run_that_kept_nothing_is_refused(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", cut=Cut(threshold=100))
    with pytest.raises(InputError, match="nothing to publish"):
        from_run(run)


def test_a_run_ranked_by_another_column_is_refused(tmp_path: Path) -> None:
    rows = make_rows(10, quality=[float(i) for i in range(10)])
    run = make_run(tmp_path / "run", rows=rows, how=Reflection(by="quality"))
    with pytest.raises(InputError, match="not a score of this package"):
        from_run(run)


# Files


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_the_same_selection_makes_the_same_bytes(tmp_path: Path) -> None:
    rows = make_rows(5000)
    first, second = (staged(tmp_path / name, rows=rows)[1] for name in "ab")
    assert contents(first.folder) == contents(second.folder)
    assert first.with_card("card", "1") == second.with_card("card", "1")
    assert contents(first.folder) == contents(second.folder)
    assert len(contents(first.folder)) == 8


def test_large_data_is_cut_into_shards(tmp_path: Path) -> None:
    rows = make_rows(9000)
    finished = from_run(make_run(tmp_path / "run", rows=rows, models=("org/one",)))
    (tmp_path / "staged").mkdir()
    files = stage(finished, tmp_path / "staged", shard_bytes=100_000)
    shards = [path for path in files.files if path.startswith("scores/")]
    assert len(shards) > 2
    assert shards[1] == f"scores/train-00001-of-{len(shards):05d}.parquet"
    numbers = [n for s in shards for n in pq.read_table(files.folder / s)["row"].to_pylist()]
    assert numbers == list(range(9000))
    paths = files.datasets_data["configs"][1]["data_files"][0]["path"]
    assert paths == shards
    groups = [pq.read_metadata(files.folder / s).row_group(0).num_rows for s in shards]
    assert set(groups[:-1]) == {2000}


def test_how_the_rows_were_chunked_leaves_no_trace(tmp_path: Path) -> None:
    finished = from_run(make_run(tmp_path / "run", rows=make_rows(5000)))
    in_sevens = from_run(tmp_path / "run")

    def rechunked(columns: list[str] | None) -> Any:
        for table in finished.selected.tables(columns):
            for start in range(0, len(table), 7):
                yield table.slice(start, 7)

    object.__setattr__(in_sevens.selected, "tables", rechunked)
    for name, one in (("a", finished), ("b", in_sevens)):
        (tmp_path / name).mkdir()
        stage(one, tmp_path / name)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


@pytest.mark.parametrize("kept", [1, 7, 299, 300])
def test_no_bin_of_the_histogram_holds_kept_and_other_rows(kept: int) -> None:
    scores = np.sort(np.random.default_rng(kept).normal(2, 0.3, 300).astype(np.float32))[::-1]
    threshold = float(scores[kept - 1])
    edges = score_edges(scores.astype(np.float64), threshold)
    assert 55 <= len(edges) <= 65
    counts = [
        (sum(low <= s < high for s in scores[:kept]), sum(low <= s < high for s in scores[kept:]))
        for low, high in itertools.pairwise(edges)
    ]
    assert sum(map(sum, counts)) == 300 - (edges[-1] == scores[0])
    assert not any(best and others for best, others in counts)


def test_the_plots_are_pictures_without_a_date_or_a_program() -> None:
    random = np.random.default_rng(0)
    scores = np.append(random.gamma(3, size=500), [np.nan])
    pictures = [
        scores_plot(scores, scores > 3, 3.0),
        scores_plot(np.full(5, 2.0), np.ones(5, dtype=bool), None),
        lengths_plot({"edges": [0.5, 1.5, 9.5], "selected": [1, 2], "rejected": [0, 0]}),
        agreement_plot(["a" * 50, "$b_{"], np.eye(2)),
    ]
    for data in pictures:
        picture = Image.open(io.BytesIO(data))
        picture.load()
        assert picture.width >= 400
        assert set(picture.info) <= {"dpi"}
        assert len({picture.getpixel((0, 0)), (255, 255, 255, 255)}) == 1  # light


def test_rank_correlation_looks_at_ranks_only() -> None:
    values = np.array([3.0, 1.0, 2.0, np.nan, 2.0])
    found = rank_correlations([values, np.exp(values), -values, np.ones(5)])
    assert found[0, :3] == pytest.approx([1, 1, -1])
    assert found[3, 0] == 0  # a model that always says the same
    assert rank_correlations([np.array([np.nan])] * 2).tolist() == [[1, 0], [0, 1]]


def test_turns_are_counted_where_there_are_any(tmp_path: Path) -> None:
    def talk(turns: int) -> list[dict[str, str]]:
        return [{"role": ["user", "assistant"][i % 2], "content": "hello"} for i in range(turns)]

    rows = Dataset.from_dict(
        {"messages": [talk(2 + 2 * (i % 2)) for i in range(10)], "id": ["x"] * 10}
    )
    run = make_run(tmp_path / "run", rows=rows, rating={"turns": "all"})
    contrast = json.loads((run / "summary.json").read_text())["contrast"]
    total = sum(contrast[g]["rows"] * contrast[g]["mean_turns"] for g in ("selected", "rejected"))
    assert total == pytest.approx(30, abs=0.1)
    assert "| turns, mean |" in card_of(tmp_path / "b", rows=rows, rating={"turns": "all"}).body
