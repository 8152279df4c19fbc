import base64
import hashlib
import json
import math
import re
import shlex
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import check_report
import numpy as np
import pyarrow.parquet as pq
import pytest
from bokeh.models import CategoricalAxis, LinearAxis
from check_report import background, draw_all, expected, move, opened, overflow, settle
from datasets import ClassLabel, Dataset, Features
from finished_runs import make_rows, make_run
from scipy.stats import spearmanr

from selectit_hf.analysis.finished_run import from_run
from selectit_hf.errors import InputError, RunError
from selectit_hf.rating.reflection import Reflection
from selectit_hf.report import data as page_data
from selectit_hf.report import rows as page_rows
from selectit_hf.report.charts import ablation_figures
from selectit_hf.report.data import Agreement, gather, packed
from selectit_hf.report.map import embedding_column, map_rows, word_embeddings
from selectit_hf.report.page import render, write_report
from selectit_hf.report.rows import Ranking
from selectit_hf.report.words import cautions, reason
from selectit_hf.selection.selection import Cut

HOSTILE = [
    "<script>document.title = 'taken'</script>",
    "</script><script>document.title = 'taken'</script>",
    "<!-- <script>",
    "<img src=x onerror=\"document.title = 'taken'\">",
    "a\u2028b\u2029c &lt; &amp; &#60;",
    "{{ 7 * 7 }} {% raw %} ]]> \\u003c \"quotes\" 'quotes' `ticks` ${1}",
    "$$x^2$$ \\(y\\)",
    "right \u202e to left \u0000 nul",
    "<img src=x onerror=\"document.title = 'taken'\"> " + "and so on " * 30,
]
ROWS = 240
ABLATION = {
    "prompts": [{"prompts": i + 1, "mean": (i + 1) / 5} for i in range(5)],
    "alphas": [{"alpha": 0.2, "overlap": 1.0}],
    "proportions": [],
    "variants": [{"variant": "paper", "overlap": 1.0}, {"variant": "released", "overlap": 0.5}],
}


def made_rows() -> Dataset:
    """Rows with hostile texts, code, digits, groups, and every tenth without a response."""
    plain = make_rows(ROWS)
    outputs = list(plain["output"])
    outputs[: len(HOSTILE)] = HOSTILE
    outputs[20] = "```python\nprint(1)\n```"
    outputs[21] = "a long response " * 60 + "and final words"
    return Dataset.from_dict(
        {
            "instruction": [*HOSTILE, *plain["instruction"][len(HOSTILE) :]],
            "output": outputs,
            "topic": [("maths", "poems", None, "<b>bold</b>")[i % 7 % 4] for i in range(ROWS)],
        }
    )


@pytest.fixture(scope="module")
def rows():
    return made_rows()


@pytest.fixture(scope="module")
def run(rows, tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("page") / "RUN", rows=rows)


@pytest.fixture(scope="module")
def data(run, rows):
    return gather(from_run(run), rows)


@pytest.fixture(scope="module")
def page(run, rows):
    return Path(write_report(run, rows, ablation=ABLATION))


def scores_of(run, column="model_score"):
    return pq.read_table(run / "scores.parquet", columns=[column])[column].to_pylist()


def unpacked(array):
    return np.frombuffer(base64.b64decode(array["base64"]), array["dtype"])


# Ranks, counts, thresholds


@pytest.mark.parametrize("variant", ["paper", "released"])
def test_the_slider_keeps_what_a_selection_of_each_proportion_keeps(variant):
    random = np.random.default_rng(1)
    scores = random.integers(0, 40, size=357) / 8
    scores[random.random(357) < 0.2] = np.nan
    ranking = Ranking.of(scores, variant)
    direction = -1 if variant == "released" else 1
    scored = [i for i in range(357) if not math.isnan(scores[i])]
    order = sorted(scored, key=lambda i: (-scores[i], direction * i))
    assert ranking.order.tolist() == order
    assert [int(ranking.ranks[i]) for i in order] == list(range(len(order)))
    assert all(ranking.ranks[i] == -1 for i in range(357) if i not in scored)
    thresholds = ranking.thresholds()
    for tenths in range(1001):
        exact = int(357 * (tenths / 1000)) if variant == "released" else 357 * tenths // 1000
        count = min(exact, len(order))
        assert ranking.counts[tenths] == count
        assert thresholds[tenths] == (scores[order[count - 1]] if count else None)


def test_a_run_by_number_starts_where_the_run_is(tmp_path, rows):
    run = make_run(tmp_path / "RUN", rows=rows, cut=Cut(n=7))
    numbers = gather(from_run(run), rows).numbers
    best = sorted((score for score in scores_of(run) if score is not None), reverse=True)
    assert numbers["selected"] == 7
    assert numbers["threshold"] == best[6]
    assert numbers["step"] == round(7 / ROWS * 1000)


def test_packed_arrays_come_back():
    values = np.array([0, 1.5, -2, np.nan])
    np.testing.assert_array_equal(unpacked(packed(values, "float32")), values.astype("<f4"))
    assert unpacked(packed(np.array([0, 2**32 - 1]), "uint32")).tolist() == [0, 2**32 - 1]


# What is measured


def literal_token_score(logprobs):
    p = [math.exp(value) for value in logprobs]
    p = [value / sum(p) for value in p]
    top = max(p)
    return (1 + p.index(top)) * sum(top - value for value in p) / (len(p) - 1)


def test_spread_and_agreement_follow_from_the_stored_ratings(run, data):
    tokens = {}
    for name in ("small", "large"):
        lists = scores_of(run, f"rating_logprobs__{name}")
        tokens[name] = [
            one and [literal_token_score(logprobs) for logprobs in one] for one in lists
        ]
    spreads = [  # the made-up models have 1 and 2 thousand million parameters
        None if a is None else (np.std(a) + 2 * np.std(b)) / 3
        for a, b in zip(tokens["small"], tokens["large"], strict=True)
    ]
    points = unpacked(data.numbers["points"]["row"])
    found = unpacked(data.numbers["points"]["spread"])
    assert points.tolist() == [i for i, spread in enumerate(spreads) if spread is not None]
    np.testing.assert_allclose(found, [spreads[i] for i in points], rtol=1e-5)
    for agreement in data.prompts:
        table = np.array([one for one in tokens[agreement.name] if one is not None])
        np.testing.assert_allclose(agreement.correlations, spearmanr(table)[0], atol=1e-6)
    sentences = [scores_of(run, f"sentence_score__{name}") for name in ("small", "large")]
    rated = [pair for pair in zip(*sentences, strict=True) if None not in pair]
    assert data.models.correlations[0, 1] == pytest.approx(spearmanr(*zip(*rated, strict=True))[0])


def test_of_one_model_the_spread_is_its_own(tmp_path, rows):
    run = make_run(tmp_path / "RUN", rows=rows, how=Reflection(by="sentence_score__small"))
    points = gather(from_run(run), rows).numbers["points"]
    lists = scores_of(run, "rating_logprobs__small")
    own = [np.std([literal_token_score(one) for one in lists[i]]) for i in unpacked(points["row"])]
    np.testing.assert_allclose(unpacked(points["spread"]), own, rtol=1e-5)


def test_columns_with_few_values_are_categories():
    rows = make_rows(60, a=[None, "x", "y"] * 20, b=[i % 2 for i in range(60)])
    rows = rows.add_column("unique", [f"{i}" for i in range(60)])
    rows = rows.add_column("constant", ["same"] * 60)
    rows = rows.add_column("real", [0.5, 1.5] * 30)
    rows = rows.add_column("sentence_score__other", ["good", "bad"] * 30)
    labelled = Features({"c": ClassLabel(names=["no", "yes"])})
    rows = rows.add_column("c", [0, 1] * 30).cast(Features({**rows.features, **labelled}))
    from selectit_hf.formats.rows import RowReader
    from selectit_hf.report.data import _categories

    drawn = np.arange(3, 60)
    found = {one["column"]: one for one in _categories(rows, RowReader(), drawn)}
    assert list(found) == ["a", "b", "c"]
    for name, show in (
        ("a", lambda v: v or "(none)"),
        ("b", str),
        ("c", ["no", "yes"].__getitem__),
    ):
        labels = [found[name]["names"][code] for code in unpacked(found[name]["code"])]
        assert labels == [show(rows[int(i)][name]) for i in drawn]


def test_categories_are_looked_for_in_a_hundred_columns():
    from selectit_hf.formats.rows import RowReader
    from selectit_hf.report.data import _categories

    columns = {f"c{i}": [i in (98, 99, 100) and n % 2 for n in range(60)] for i in range(130)}
    found = _categories(make_rows(60, **columns), RowReader(), np.arange(60))
    assert [one["column"] for one in found] == ["c98", "c99"]


# The map


def test_map_and_distances_are_those_of_a_literal_computation():
    embeddings = np.random.default_rng(0).normal(size=(50, 6)).astype(np.float32) * [
        5,
        1,
        3,
        1,
        1,
        1,
    ]
    found = map_rows(embeddings.astype(np.float32))
    centre = sum(embeddings) / 50
    distances = [math.sqrt(sum((row - centre) ** 2)) for row in embeddings]
    np.testing.assert_allclose(found.distance, distances, rtol=1e-5)
    _, singular, directions = np.linalg.svd(embeddings - centre)
    for axis in (0, 1):
        expected = (embeddings - centre) @ directions[axis]
        assert (
            min(abs(found.xy[:, axis] - expected).max(), abs(found.xy[:, axis] + expected).max())
            < 1e-4
        )
    assert found.explained == pytest.approx(singular[:2] ** 2 / (singular**2).sum(), rel=1e-4)


def test_texts_of_the_same_words_lie_together():
    animals = ["the cat and the dog", "the dog and the cat", "a cat, a dog"]
    sums = ["one plus two is three", "two plus one is three", "three is one plus two"]
    found = word_embeddings([*animals, *sums, "!"])
    near = found[:3] @ found[:3].T
    far = found[:3] @ found[3:6].T
    assert near.min() > 0.5 > far.max()
    np.testing.assert_allclose(np.linalg.norm(found[:6], axis=1), 1, rtol=1e-5)
    assert not found[6].any()
    np.testing.assert_array_equal(found, word_embeddings([*animals, *sums, "!"]))


def test_embeddings_of_a_column_are_used(tmp_path):
    vectors = np.random.default_rng(0).normal(size=(30, 4)).astype(np.float32)
    rows = make_rows(30, vector=list(vectors))
    data = gather(from_run(make_run(tmp_path / "RUN", rows=rows)), rows, "vector")
    points = unpacked(data.numbers["points"]["row"])
    rated = vectors[points]
    distances = np.linalg.norm(rated - rated.mean(axis=0), axis=1)
    np.testing.assert_allclose(
        unpacked(data.numbers["points"]["map"]["distance"]), distances, rtol=1e-5
    )
    assert "vector" in data.embeddings


@pytest.mark.parametrize(
    "column", [["text"] * 3, [1.0] * 3, [[1.0], [1.0, 2.0], [1.0]], [[1.0], None, [1.0]], [[]] * 3,
               [[1.0], [math.nan], [2.0]]]
)  # fmt: skip
def test_what_is_no_embedding_is_refused(column):
    with pytest.raises(InputError, match="'vector'"):
        embedding_column(Dataset.from_dict({"vector": column}), "vector")
    with pytest.raises(InputError, match="no column 'other'"):
        embedding_column(Dataset.from_dict({"vector": column}), "other")


# Which texts travel


def test_of_many_rows_the_telling_texts_travel(tmp_path, monkeypatch):
    monkeypatch.setattr(page_rows, "TEXTS", 1600)
    monkeypatch.setattr(page_rows, "UNRATED_TEXTS", 5)
    rows = make_rows(4000)
    numbers = gather(from_run(make_run(tmp_path / "RUN", rows=rows)), rows).numbers
    ranks = [text["rank"] for text in numbers["texts"]]
    rated = [rank for rank in ranks if rank >= 0]
    assert len(rated) == 1600
    assert ranks.count(-1) == 5
    assert rated == sorted(set(rated))
    last = numbers["rated"] - 1
    assert {0, 50, last, last - 50} <= set(rated)
    for percent in range(1, 90):
        assert {40 * percent - 1, 40 * percent} <= set(rated), percent
    assert set(range(numbers["selected"] - 150, numbers["selected"] + 150)) <= set(rated)
    scores = scores_of(tmp_path / "RUN")
    for text in numbers["texts"][:1600:50]:
        assert text["score"] == scores[text["row"]]
        assert text["instruction"] == f"Question {text['row']}?"


def test_of_more_rows_than_can_be_drawn_a_sample_stands_for_all(run, rows, monkeypatch):
    monkeypatch.setattr(page_data, "DRAWN_ROWS", 100)
    monkeypatch.setattr(page_data, "POINTS", 40)
    finished = from_run(run)
    numbers = gather(finished, rows).numbers
    points = {name: unpacked(numbers["points"][name]) for name in ("row", "at")}
    drawn = {name: unpacked(numbers[name]) for name in ("rank", "score", "length")}
    assert {len(values) for values in drawn.values()} == {100}
    assert len(set(points["row"])) == numbers["points"]["count"] == 40
    scores = scores_of(run)
    best = sorted((score for score in scores if score is not None), reverse=True)
    for row, at in zip(points["row"], points["at"], strict=True):
        assert drawn["score"][at] == pytest.approx(scores[row])
        assert best[drawn["rank"][at]] == scores[row]
        assert drawn["length"][at] == len(rows[int(row)]["output"])
    page = render(finished, rows)
    assert "charts and tables cover a random sample of 100" in page
    assert page.count("A random 40 of 216 rated rows.") == 2


def test_long_texts_are_cut_and_say_so(tmp_path):
    rows = Dataset.from_dict({"instruction": ["i" * 700, "j"] * 5, "output": ["r" * 5000, "s"] * 5})
    texts = gather(from_run(make_run(tmp_path / "RUN", rows=rows)), rows).numbers["texts"]
    long = next(text for text in texts if text["row"] == 0)
    assert (len(long["instruction"]), len(long["response"])) == (600, 1200)
    assert long["left"] == 100 + 3800
    assert next(text for text in texts if text["row"] == 1)["left"] == 0


# The file


class Scripts(HTMLParser):
    """The script elements of a page, and every attribute that could fetch something."""

    def __init__(self, text):
        super().__init__()
        self.scripts, self.links, self.policy, self.inside = [], [], "", False
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        named = dict(attributes)
        self.links += [named[one] for one in ("src", "href", "data", "action") if one in named]
        self.inside = tag == "script"
        if self.inside:
            self.scripts.append((named, ""))
        if named.get("http-equiv") == "Content-Security-Policy":
            self.policy = named["content"]

    def handle_data(self, data):
        if self.inside:
            named, text = self.scripts.pop()
            self.scripts.append((named, text + data))

    def handle_endtag(self, tag):
        self.inside = False


def test_the_policy_allows_the_scripts_of_the_page_and_nothing_else(page):
    parsed = Scripts(page.read_text("utf-8"))
    allowed = set(re.findall(r"'sha256-([^']+)'", parsed.policy))
    scripts = [text for named, text in parsed.scripts if "type" not in named]
    digests = [hashlib.sha256(text.encode()).digest() for text in scripts]
    assert {base64.b64encode(digest).decode() for digest in digests} == allowed
    assert len(scripts) == len(parsed.scripts) - 1 == 2
    assert "default-src 'none'" in parsed.policy
    assert not re.search(r"script-src[^;]*unsafe", parsed.policy)
    assert [link for link in parsed.links if not link.startswith("#")] == ["data:,"]


def test_rows_come_out_of_the_page_as_they_went_in(page, rows):
    (text,) = [t for named, t in Scripts(page.read_text("utf-8")).scripts if "type" in named]
    numbers = json.loads(text)
    shown = {one["row"]: one for one in numbers["texts"]}
    assert set(shown) == set(range(ROWS))
    for i, row in enumerate(rows):
        if "status" not in shown[i]:
            whole = (row["instruction"], row["output"][:1200])
            assert (shown[i]["instruction"], shown[i]["response"]) == whole
        else:
            assert (row["output"], shown[i]["status"]) == ("", "empty")


def test_the_images_of_the_card_lie_beside_the_page(page):
    names = {path.name for path in (page.parent / "images").iterdir()}
    plots = ("scores", "lengths", "agreement")
    assert names == {f"{plot}.{form}" for plot in plots for form in ("png", "svg")}
    for plot in plots:
        drawn = ElementTree.parse(page.parent / "images" / f"{plot}.svg").getroot()
        assert drawn.tag == "{http://www.w3.org/2000/svg}svg"
    assert {path.name for path in page.parent.iterdir()} == {"images", "report.html"}


@pytest.mark.parametrize("change", ["fewer", "another", "order"])
def test_other_rows_than_the_rated_ones_are_refused(run, rows, change):
    kept = int(np.flatnonzero(from_run(run).scores.column("selected").to_numpy())[3])
    order = list(range(ROWS))
    if change == "fewer":
        order.pop()
    elif change == "order":
        order[kept], order[kept + 1] = order[kept + 1], order[kept]
    other = rows.select(order)
    if change == "another":
        other = rows.map(
            lambda row, i: {"output": row["output"] + "!" * (i == kept)}, with_indices=True
        )
    with pytest.raises(InputError, match="the run was made from"):
        write_report(run, other)


def test_a_run_that_is_not_finished_is_refused(tmp_path, rows):
    run = make_run(tmp_path / "RUN", rows=rows)
    (run / "summary.json").unlink()
    with pytest.raises(RunError, match="not finished"):
        write_report(run, rows)


# What is warned of


def said_of(run, data, **changes):
    """The cautions of a run whose facts are changed at ``a__b__c`` each."""
    finished = from_run(run)
    for path, value in changes.items():
        *keys, last = path.split("__")
        place = finished.facts
        for key in keys:
            place = place[int(key) if key.isdigit() else key]
        place[last] = value
    return "\n".join(cautions(finished, data))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"models__0__rating_mass": 0.01}, "of only 0.0100 on average, so it hardly understood"),
        ({"models__0__rating_mass": 0.15}, "of only 0.1500 on average, so it often does not"),
        ({"models__1__statuses": {"ok": 10, "truncated": 5}}, "5 of 15 rows were cut to fit large"),
        ({"contrast__selected__median_response_characters": 900}, "kept responses are longer"),
        ({"contrast__selected__median_response_characters": 1}, "kept responses are shorter"),
        (
            {"selection__reasons": {"selected": 237, "oom": 3}},
            "3 of 240 rows have no score: 3 oom.",
        ),
    ],
)
def test_what_speaks_against_the_scores_is_said(run, data, changes, words):
    assert words in said_of(run, data, **changes)
    assert words not in said_of(run, data)


def test_models_and_prompts_that_disagree_are_named(run, data):
    table = np.array([[1, 0.1], [0.1, 1]])
    apart, alike = (Agreement("one", ["1", "2"], values) for values in (table, table + 0.3))
    said = said_of(run, replace(data, models=apart, prompts=[alike, apart]))
    assert "lowest rank correlation between two models is only 0.10" in said
    assert said.count("The rating prompts of one disagree") == 1
    assert "disagree" not in said_of(run, replace(data, models=alike, prompts=[alike]))


def test_prompts_that_hardly_agree_are_named(run, data):
    table = np.array([[1, 0.25], [0.25, 1]])
    prompts = [Agreement("one", ["1", "2"], table)]
    assert "The rating prompts of one disagree" in said_of(run, replace(data, prompts=prompts))
    models = replace(data, models=prompts[0], prompts=[])
    assert "disagree" not in said_of(run, models)


def test_a_model_that_nearly_always_gives_one_rating_is_named(run, data):
    for slug, (rating, share) in data.favourites.items():
        lists = [one for one in scores_of(run, f"rating_logprobs__{slug}") if one is not None]
        likeliest = Counter(1 + one.index(max(one)) for prompts in lists for one in prompts)
        assert share == likeliest[rating] / likeliest.total()
        assert share == max(likeliest.values()) / likeliest.total()
    often = replace(data, favourites={"small": (4, 0.81), "large": (1, 0.8)})
    assert "small gives the rating 4 in 81 % of its answers" in said_of(run, often)
    assert "large gives" not in said_of(run, often)


def test_settings_that_are_numbers_have_an_axis_of_numbers():
    alphas = [{"alpha": one, "overlap": 1 - one / 2} for one in (0, 0.1, 0.2, 0.8)]
    charts = ablation_figures({**ABLATION, "alphas": alphas})
    axis = charts["alpha"].xaxis[0]
    assert isinstance(axis, LinearAxis)
    assert axis.ticker.ticks == [0, 0.1, 0.2, 0.8]
    assert isinstance(charts["variant"].xaxis[0], CategoricalAxis)
    levels = [{"level": f"{level}:small", "overlap": 1.0} for level in ("token", "sentence")]
    assert ablation_figures({"levels": levels})["level"].x_range.factors == ["token", "sentence"]
    for drawn in charts["alpha"].renderers:
        assert drawn.data_source.data["x"] == [0, 0.1, 0.2, 0.8]
        assert drawn.data_source.data["y"] == [100, 95, 90, 60]


def test_ties_at_the_threshold_are_counted(run, data):
    scores = np.array([3.0, 2, 2, 2, 1, np.nan])
    tied = replace(data, ranking=Ranking.of(scores, "paper"))
    said = {"selection__threshold": 2.0, "selection__selected": 2}
    assert "2 rows that were not kept have the same score" in said_of(run, tied, **said)
    said["selection__selected"] = 4
    assert "the same score" not in said_of(run, tied, **said)


@pytest.mark.parametrize(
    ("cut", "words"),
    [
        (Cut(), "From org/source: the best 20 % by the model-level score of SelectIT, rated by"),
        (Cut(n=12), "the best 12 rows by"),
        (Cut(threshold=1.25), "all rows that score 1.25 or more by"),
    ],
)
def test_the_reason_is_said(tmp_path, rows, cut, words):
    finished = from_run(make_run(tmp_path / "RUN", rows=rows, cut=cut))
    assert words in reason(finished)
    assert "24 rows could not be rated" in reason(finished)


# In a browser


@pytest.fixture(scope="module")
def chromium():
    if check_report.chromium_path() is None:
        pytest.skip("there is no Chromium on the PATH")
    with check_report.browser() as started:
        yield started


@pytest.fixture
def tab(chromium, page):
    """The page in a tab; afterwards it must have asked for nothing and complained of nothing."""
    with opened(chromium, page) as (tab, seen):
        yield tab
        assert seen.requests == [page.absolute().as_uri()]
        assert seen.complaints == []


def listed(tab, side):
    """The rows that a list shows, as ``(row, rank)``, best first where ranked."""
    metas = tab.locator(f"#{side}-rows .meta").all_text_contents()
    found = [re.search(r"row ([\d,]+)(?:rank ([\d,]+))?", meta) for meta in metas]
    return [tuple(int(v.replace(",", "")) if v else None for v in one.groups()) for one in found]


def test_the_slider_counts_as_the_scores_do(tab, run):
    assert tab.locator("#said").text_content() == expected(run, 200)
    for tenths in (1, 5, 333, 899, 900, 901, 1000):
        assert move(tab, tenths) == expected(run, tenths)
    ranked = sorted(
        (i for i, score in enumerate(scores_of(run)) if score is not None),
        key=lambda i: (-scores_of(run)[i], i),
    )
    move(tab, 100)
    assert listed(tab, "kept") == [(ranked[23 - i], 24 - i) for i in range(8)]
    assert listed(tab, "other") == [(ranked[24 + i], 25 + i) for i in range(8)]
    tab.locator("#share").fill("12.5")
    tab.locator("#share").blur()
    assert tab.locator("#said").text_content() == expected(run, 125)
    tab.locator("#reset").click()
    assert tab.locator("#said").text_content() == expected(run, 200)


def test_the_printed_command_keeps_what_the_slider_shows(
    tab, run, rows, selectit, tmp_path, monkeypatch
):
    monkeypatch.setattr("selectit_hf.runs.rows_of", lambda *_: rows)  # the Hub is not there
    for move_to in (None, 345):
        shown = tab.locator("#said").text_content() if move_to is None else move(tab, move_to)
        words = shlex.split(tab.locator("#command").text_content())
        assert words[:3] == ["selectit", "select", "RUN"]
        at = {"RUN": run, "OTHER": tmp_path / f"other-{move_to}"}
        asked = [at.get(word, word) for word in words[1:]]
        done = selectit(*asked)
        assert done.code == 0, done.err
        kept = pq.read_metadata(at["OTHER"] / "selected.parquet").num_rows
        assert shown.startswith(f"{kept} of {ROWS} kept")


def test_a_chart_can_be_saved(tab):
    draw_all(tab)
    with tab.expect_download() as started:
        tab.locator("[data-chart=scores] .bk-tool-icon-save").click()
    data = Path(started.value.path()).read_bytes()
    assert started.value.suggested_filename == "selectit-scores.png"
    assert data.startswith(b"\x89PNG")


def test_everything_works_by_keyboard(tab, run):
    tab.keyboard.press("Tab")
    assert tab.evaluate("document.activeElement.className") == "skip"
    reached = set()
    for _ in range(40):
        tab.keyboard.press("Tab")
        reached.add(tab.evaluate("document.activeElement.id || document.activeElement.name"))
    assert {"theme", "share", "keep", "search", "order"} <= reached
    tab.locator("#keep").focus()
    tab.keyboard.press("ArrowRight")
    assert tab.locator("#said").text_content() == expected(run, 201)
    tab.keyboard.press("End")
    assert tab.locator("#said").text_content() == expected(run, 1000)
    tab.keyboard.press("Home")
    assert tab.locator("#said").text_content() == expected(run, 1)
    tab.locator("#reset").click()
    tab.locator("#order input").first.focus()
    tab.keyboard.press("ArrowRight")
    settle(tab)
    assert listed(tab, "kept")[0][1] == 1
    tab.locator("#search").fill("#21")
    tab.locator(".rows button").focus()
    tab.keyboard.press("Enter")
    assert tab.locator("button[aria-expanded=true]").count() == 1
    assert tab.locator(".rows .response:not(.short)").count() == 1


def test_search_finds_what_the_rows_hold(tab, rows):
    for wanted in ("QUESTION 11", "word word word", "<SCRIPT>", "no such text"):
        tab.locator("#search").fill(wanted)
        texts = [f"{row['instruction']}\n{row['output']}".lower() for row in rows if row["output"]]
        count = sum(wanted.lower() in text for text in texts)
        found = [tab.locator(f"#{side}-count").text_content() for side in ("kept", "other")]
        assert sum(int(one.split()[0]) for one in found) == count
        marks = tab.locator("mark").all_text_contents()
        assert {mark.lower() for mark in marks} == ({wanted.lower()} if count else set())
    tab.locator("#search").fill("final words")
    assert tab.locator(".response mark").bounding_box()["height"] > 0
    assert tab.locator(".response").text_content().startswith("…esponse a long")
    tab.locator(".rows button").click()
    assert tab.locator(".response").text_content() == rows[21]["output"]
    tab.locator("#search").fill("#9999")
    assert "does not contain the text" in tab.locator("#nothing").text_content()
    tab.locator("#search").fill("#17")
    assert tab.locator("#nothing").text_content() == ""
    assert [row for row, _ in listed(tab, "kept") + listed(tab, "other")] == [17]
    tab.locator("#search").fill("")
    tab.locator("#other-more").click()
    assert len(listed(tab, "other")) == 24


def test_texts_of_rows_stay_text(tab):
    tab.locator("#search").fill("taken")
    assert tab.locator(".rows li").count() == 4
    for button in tab.locator(".rows button").all():
        button.click()
    assert tab.locator(".rows li script, .rows li img").count() == 0
    for i in (0, 1, 3, 8):
        shown = tab.locator(".rows li", has_text=f"row {i}").locator(".response").text_content()
        assert shown == HOSTILE[i]
    assert "taken" not in tab.title()
    assert "<b>bold</b>" in tab.locator("[data-category='0'] th").all_text_contents()


def test_tables_count_what_the_slider_keeps(tab, run, rows):
    move(tab, 300)
    scores = scores_of(run)
    ranked = sorted(
        (i for i in range(ROWS) if scores[i] is not None), key=lambda i: (-scores[i], i)
    )
    kept = set(ranked[:72])
    groups, best = Counter(rows["topic"]), Counter(rows[i]["topic"] for i in kept)
    shown = {
        row.locator("th").text_content(): row.locator("td").all_text_contents()[:3]
        for row in tab.locator("[data-category='0'] tr").all()
    }
    assert shown == {
        name or "(none)": [
            str(groups[name]),
            str(best[name]),
            f"{100 * best[name] / groups[name]:.1f} %",
        ]
        for name in groups
    }
    texts = {i: row["output"] for i, row in enumerate(rows) if row["output"]}
    parts = [
        [t for i, t in texts.items() if i in kept],
        [t for i, t in texts.items() if i not in kept],
        [*texts.values()],
    ]
    cells = [row.locator("td").all_text_contents() for row in tab.locator("#contrast tr").all()]
    assert cells[0] == [
        f"{math.floor(np.median([len(t) for t in part]) + 0.5):,}" for part in parts
    ]
    assert cells[2] == [
        f"{100 * sum(any(c.isdigit() for c in t) for t in part) / len(part):.1f} %"
        for part in parts
    ]
    marked_up = [HOSTILE[0], HOSTILE[1], HOSTILE[3], HOSTILE[8], texts[20]]
    code = [sum(t in marked_up for t in part) for part in parts]
    assert cells[3] == [f"{100 * n / len(part):.1f} %" for n, part in zip(code, parts, strict=True)]


def test_charts_hold_the_rows_that_the_slider_keeps(tab, run):
    move(tab, 400)
    draw_all(tab)
    drawn = tab.evaluate(CHARTS)
    scores = [score for score in scores_of(run) if score is not None]
    best = sorted(scores, reverse=True)[:96]
    assert set(drawn) == {
        "scores",
        "lengths",
        "spread",
        "map",
        "distance",
        "ablation 0",
        "ablation 1",
    }
    assert sum(drawn["scores"]["other data"]["top"]) == len(scores)
    assert drawn["scores"]["cut data"]["x"] == [best[-1]]
    kept = drawn["scores"]["kept data"]
    wide = [x for x, right in zip(kept["left"], kept["right"], strict=True) if x < right]
    assert min(wide) == pytest.approx(best[-1])
    for name in ("spread", "map"):
        assert len(drawn[name]["kept data"]["x"]) == 96
        assert len(drawn[name]["other data"]["x"]) == len(scores) - 96
    np.testing.assert_allclose(sorted(drawn["spread"]["kept data"]["x"]), sorted(best), rtol=1e-6)
    row = tab.evaluate(CHOOSE)
    assert tab.locator("#search").input_value() == f"#{row}"
    assert [number for number, _ in listed(tab, "kept")] == [row]
    for name in ("lengths", "distance"):
        assert sum(drawn[name]["other data"]["top"]) == pytest.approx(100)
        assert sum(drawn[name]["kept data"]["y"]) == pytest.approx(100)


CHOOSE = """() => {
  const map = [...charts.values()].find((chart) => chart.element.dataset.chart === "map");
  const [source] = [...map.parts].find(([, name]) => name === "kept data");
  source.selected.indices = [3];
  return source.data.row[3];
}"""
CHARTS = """() => Object.fromEntries([...charts.values()].map((chart) => [
  chart.element.dataset.chart,
  Object.fromEntries([...chart.parts].filter(([, name]) => name.endsWith(" data")).map(
    ([model, name]) => [name, Object.fromEntries(
      Object.entries(model.data).map(([column, values]) => [column, [...values]]))])),
]))"""


def test_the_policy_holds_in_the_browser(chromium, page):
    with opened(chromium, page) as (tab, _):
        assert sorted(tab.evaluate(VIOLATE)) == ["connect-src", "img-src", "script-src-elem"]
        assert tab.title() != "taken"


VIOLATE = """async () => {
  const found = [];
  document.addEventListener("securitypolicyviolation", (e) => found.push(e.effectiveDirective));
  new Image().src = "http://127.0.0.1:9/image.png";
  await fetch("http://127.0.0.1:9/data.json").catch(() => null);
  const script = document.createElement("script");
  script.textContent = "document.title = 'taken'";
  document.body.append(script);
  for (let i = 0; i < 100 && found.length < 3; i++) {
    await new Promise((done) => setTimeout(done, 50));
  }
  return found;
}"""


def test_light_and_dark(chromium, tab, page):
    light = background(tab)
    colors = "[...charts.values()][0].model.below[0].axis_label_text_color"
    ink = tab.evaluate(colors)
    tab.locator("#theme").click()
    assert background(tab) != light
    assert tab.evaluate(colors) != ink
    assert tab.locator("#theme").text_content() == "Light"
    dark = background(tab)
    with opened(chromium, page, "dark") as (other, _):
        assert background(other) == dark
        other.locator("#theme").click()
        assert background(other) == light


def test_it_fits_a_phone(chromium, page):
    with opened(chromium, page, "phone") as (tab, seen):
        draw_all(tab)
        assert overflow(tab) <= 0
        assert seen.complaints == []
