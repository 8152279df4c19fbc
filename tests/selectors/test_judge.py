"""The judge against a local endpoint that answers well, badly, slowly, with errors, or dies."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from datasets import Dataset

from selectit_hf.errors import ModelError, RatingsError, RunError, SettingError
from selectit_hf.formats.rows import RowReader
from selectit_hf.selection.selection import select
from selectit_hf.selectors.endpoint import Endpoint
from selectit_hf.selectors.journal import Answer, Journal
from selectit_hf.selectors.judge import JUDGE_THRESHOLD, Judge, read_score

ROWS = [{"instruction": f"Say {i}.", "output": f"It is {i}."} for i in range(8)]


class Served:
    """What the endpoint was asked and what it answers: ``replies[prompt]``, else a score of 4.

    A reply is a text, or ``(status, headers, body)``; a list is worked through, its last one stays.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.asked: list[tuple[float, str]] = []
        self.answered: Counter[str] = Counter()
        self.tokens: list[str | None] = []
        self.replies: dict[str, object] = {}
        self.hold: dict[str, threading.Event] = {}
        self.under_way = self.most_under_way = 0

    def reply_to(self, instruction: str) -> object:
        reply = self.replies.get(instruction, "4\nFine.")
        if isinstance(reply, list):
            reply = reply.pop(0) if len(reply) > 1 else reply[0]
        return reply


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: object) -> None:
        pass

    def do_POST(self) -> None:
        served: Served = self.server.served  # type: ignore[attr-defined]
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        text = body["messages"][0]["content"]
        instruction = text.split("[Instruction]\n")[1].split("\n")[0]
        with served.lock:
            served.asked.append((time.monotonic(), instruction))
            served.tokens.append(self.headers.get("Authorization"))
            served.under_way += 1
            served.most_under_way = max(served.most_under_way, served.under_way)
            reply = served.reply_to(instruction)
        if instruction in served.hold:
            served.hold[instruction].wait(20)
        with served.lock:
            served.under_way -= 1
        if isinstance(reply, str):
            choice = {"index": 0, "message": {"role": "assistant", "content": reply}}
            usage = {"prompt_tokens": 10, "completion_tokens": 2, "total_tokens": 12}
            answer = {"choices": [choice], "usage": usage, "model": body["model"]}
            reply = (200, {}, json.dumps(answer))
        status, headers, content = reply
        data = content.encode()
        try:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)
            self.wfile.flush()
        except OSError:
            return
        with served.lock:
            served.answered[instruction] += status == 200


@contextmanager
def serving():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.served = Served()  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield server.served, f"http://127.0.0.1:{server.server_port}/v1"  # type: ignore[attr-defined]
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def endpoint():
    with serving() as both:
        yield both


def judge_at(url: str, folder, **settings: object) -> Judge:
    settings = {"wait": 0.01, "attempts": 4, **settings}
    return Judge(Endpoint("some/judge", url, **settings), folder / "answers.jsonl", slug="j")


def batch(rows=ROWS):
    return Dataset.from_list(rows).to_dict()


def test_good_answers_become_scores(endpoint, tmp_path):
    served, url = endpoint
    served.replies = {"Say 0.": "Score: 4.5\nIt is right.", "Say 1.": "0", "Say 2.": "5/5"}
    data = Dataset.from_list([*ROWS, {"instruction": "Say x.", "output": ""}])
    judge = judge_at(url, tmp_path)
    judged = data.map(judge, batched=True, batch_size=4, features=judge.features(data))
    assert judged["score__judge_j"][:] == [4.5, 0, 5, 4, 4, 4, 4, 4, None]
    assert judged["status__judge_j"][:] == ["ok"] * 8 + ["empty"]
    assert judged["judgement__j"][0]["answer"] == "Score: 4.5\nIt is right."
    selection = select(judged, by="score__judge_j", threshold=JUDGE_THRESHOLD)
    assert selection.selected["instruction"][:] == ["Say 0.", "Say 2."]
    assert served.answered == Counter({f"Say {i}.": 1 for i in range(8)})


@pytest.mark.parametrize(
    ("answer", "score"),
    [
        ("4.5", 4.5),
        ("\n  **Score:** 3.5/5 \nbecause of 2 things", 3.5),
        ("4 out of 5", 4.0),
        ("0", 0.0),
        ("5.0", 5.0),
        ("I would say 5, no: 5.", 5.0),
        ("", None),
        ("good", None),
        ("6", None),
        ("-1", None),
        ("4.5.1 or so 3", None),
        ("between 3 and 4", None),
        ("no number here\n4", None),
        ("GPT4 says so", None),
    ],
)
def test_a_score_is_read_only_where_it_is_clear(answer, score):
    assert read_score(answer) == score


def test_bad_answers_are_statuses_and_are_paid_once(endpoint, tmp_path):
    served, url = endpoint
    served.replies = {
        "Say 1.": "It depends.",
        "Say 2.": (400, {}, '{"error": "the prompt is too long"}'),
        "Say 3.": [(200, {}, "<html>busy</html>"), (200, {}, '{"choices": []}'), "3"],
        "Say 4.": (200, {}, '{"choices": [{"message": {"content": null}}]}'),
    }
    judge = judge_at(url, tmp_path)
    judged = judge(batch())
    assert judged["status__judge_j"] == [
        "ok", "unparsable", "refused", "ok", "unparsable", "ok", "ok", "ok",
    ]  # fmt: skip
    assert judged["score__judge_j"][3] == 3
    asked = len(served.asked)
    again = judge(batch())
    assert again["score__judge_j"] == judged["score__judge_j"]
    assert [name for _, name in served.asked[asked:]] == ["Say 2."]


@pytest.mark.parametrize("status", [429, 500, 503])
def test_what_passes_is_tried_again(endpoint, tmp_path, status):
    served, url = endpoint
    served.replies = {"Say 1.": [(status, {}, "later")] * 3 + ["2"]}
    judged = judge_at(url, tmp_path)(batch())
    assert judged["score__judge_j"] == [4, 2, 4, 4, 4, 4, 4, 4]
    assert Counter(name for _, name in served.asked)["Say 1."] == 4


@pytest.mark.parametrize("as_date", [False, True])
def test_retry_after_holds_everyone(endpoint, tmp_path, as_date):
    served, url = endpoint
    wait = format_datetime(datetime.now(UTC) + timedelta(seconds=3), usegmt=True) if as_date else 1
    served.replies = {"Say 0.": [(429, {"Retry-After": str(wait)}, ""), "1"]}
    judged = judge_at(url, tmp_path, concurrency=1)(batch(ROWS[:3]))
    assert judged["score__judge_j"] == [1, 4, 4]
    (first, _), *later = served.asked
    assert [name for _, name in later] == ["Say 0.", "Say 1.", "Say 2."]
    assert later[0][0] - first >= 1


def test_the_rate_and_the_requests_at_once_are_bounded(endpoint, tmp_path):
    served, url = endpoint
    judge_at(url, tmp_path, concurrency=3, per_minute=1200)(batch())
    times = sorted(at for at, _ in served.asked)
    assert times[-1] - times[0] >= 7 * 0.05 * 0.8
    assert served.most_under_way <= 3


def test_a_slow_answer_is_given_up_and_asked_again(endpoint, tmp_path):
    served, url = endpoint
    served.hold = {"Say 1.": threading.Event()}
    threading.Timer(0.9, served.hold["Say 1."].set).start()
    judged = judge_at(url, tmp_path, timeout=0.4, attempts=6)(batch())
    assert judged["status__judge_j"] == ["ok"] * 8
    assert Counter(name for _, name in served.asked)["Say 1."] >= 2


def test_a_prompt_without_answer_is_a_status_and_is_asked_again(endpoint, tmp_path):
    served, url = endpoint
    served.replies = {"Say 5.": (500, {}, "broken")}
    judge = judge_at(url, tmp_path, attempts=2)
    judged = judge(batch())
    assert judged["status__judge_j"][5] == "unanswered"
    assert judged["score__judge_j"][5] is None
    served.replies = {}
    again = judge({**batch(), "judgement__j": judged["judgement__j"]})
    assert again["score__judge_j"] == [4] * 8
    assert served.answered == Counter({f"Say {i}.": 1 for i in range(8)})


def test_a_dead_endpoint_stops_the_judge_and_keeps_what_is_paid(endpoint, tmp_path):
    served, url = endpoint
    for i in range(3, 8):
        served.replies[f"Say {i}."] = (500, {}, "broken")
    judge = judge_at(url, tmp_path, attempts=2, concurrency=1)
    with pytest.raises(ModelError, match="did not answer 5 prompts in a row"):
        judge(batch())
    served.replies = {}
    assert judge(batch())["score__judge_j"] == [4] * 8
    assert served.answered == Counter({f"Say {i}.": 1 for i in range(8)})


@pytest.mark.parametrize("status", [401, 402, 403, 404])
def test_an_endpoint_that_turns_everything_away_stops_at_once(endpoint, tmp_path, status):
    served, url = endpoint
    served.replies = {f"Say {i}.": (status, {}, '{"error": "no"}') for i in range(8)}
    with pytest.raises(ModelError, match=f"answered {status}"):
        judge_at(url, tmp_path, concurrency=1)(batch())
    assert len(served.asked) == 1


def test_the_cause_is_told_whoever_was_waiting_when_it_came(endpoint, tmp_path):
    served, url = endpoint
    served.replies = {"Say 0.": (500, {}, "broken"), "Say 1.": (401, {}, '{"error": "no"}')}
    with pytest.raises(ModelError, match="answered 401"):
        judge_at(url, tmp_path, concurrency=2, wait=30)(batch())


def test_nobody_there(tmp_path):
    judge = judge_at("http://127.0.0.1:9/v1", tmp_path, attempts=2, wait=0.001)
    with pytest.raises(ModelError, match="did not answer 5 prompts in a row: ConnectError"):
        judge(batch())


CHILD = """
import sys
from datasets import Dataset
from selectit_hf.selectors.endpoint import Endpoint
from selectit_hf.selectors.judge import Judge
rows = [{"instruction": f"Say {i}.", "output": f"It is {i}."} for i in range(8)]
judge = Judge(Endpoint("some/judge", sys.argv[1], concurrency=2), sys.argv[2], slug="j")
judge(Dataset.from_list(rows).to_dict())
"""


def test_a_killed_judge_goes_on_without_paying_twice(endpoint, tmp_path):
    served, url = endpoint
    journal = tmp_path / "answers.jsonl"
    served.hold = {"Say 4.": threading.Event(), "Say 5.": threading.Event()}
    child = subprocess.Popen([sys.executable, "-c", CHILD, url, str(journal)])
    deadline = time.monotonic() + 60
    while not journal.exists() or journal.read_bytes().count(b"\n") < 4 or served.under_way < 2:
        assert time.monotonic() < deadline
        assert child.poll() is None
        time.sleep(0.05)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    assert sum(served.answered.values()) == 4
    with journal.open("ab") as file:
        file.write(b'{"key": "torn')
    for event in served.hold.values():
        event.set()
    while served.under_way:
        time.sleep(0.01)
    time.sleep(0.05)
    served.answered.clear()
    judged = judge_at(url, tmp_path)(batch())
    assert judged["score__judge_j"] == [4] * 8
    assert served.answered == Counter({f"Say {i}.": 1 for i in range(4, 8)})
    assert len([line for line in journal.read_bytes().splitlines() if b'"text"' in line]) == 8
    asked = len(served.asked)
    assert judge_at(url, tmp_path)(batch()) == judged
    assert len(served.asked) == asked


def test_the_same_text_is_paid_once(endpoint, tmp_path):
    served, url = endpoint
    judged = judge_at(url, tmp_path)(batch([ROWS[0]] * 5))
    assert judged["score__judge_j"] == [4] * 5
    assert len(served.asked) == 1


def test_the_login_is_not_sent_to_a_foreign_endpoint(endpoint, tmp_path, monkeypatch):
    served, url = endpoint
    monkeypatch.setenv("HF_TOKEN", "hf_login")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_IMPLICIT_TOKEN", False)
    judge_at(url, tmp_path)(batch(ROWS[:1]))
    assert served.tokens == [None]
    monkeypatch.setenv("SELECTIT_JUDGE_TOKEN", "theirs")
    judge_at(url, tmp_path)(batch(ROWS[1:2]))
    assert served.tokens == [None, "Bearer theirs"]
    assert "theirs" not in (tmp_path / "answers.jsonl").read_text()


@pytest.mark.parametrize(
    ("url", "sent"),
    [
        ("https://abc.us-east-1.aws.endpoints.huggingface.cloud", "hf_login"),
        ("https://router.huggingface.co/v1", "hf_login"),
        ("http://router.huggingface.co/v1", None),
        ("https://huggingface.co.example.org/v1", None),
        ("https://nothuggingface.co/v1", None),
    ],
)
def test_the_login_is_for_hugging_faces_own_hosts(monkeypatch, url, sent):
    monkeypatch.setenv("HF_TOKEN", "hf_login")
    assert Endpoint("m", url).client().token == sent


def test_the_hubs_providers_need_a_login(tmp_path):
    with pytest.raises(ModelError, match="need a login"):
        Judge(Endpoint("some/judge"), tmp_path / "answers.jsonl")(batch())


def test_the_cost_is_told_before_anyone_is_asked(endpoint, tmp_path):
    served, url = endpoint
    judge = judge_at(url, tmp_path, max_tokens=100)
    prompts = [judge.render(pair) for pair in RowReader().pairs(batch())]
    tokens = [math_ceil(len(prompt) / 4) for prompt in prompts]
    told = judge.estimate([batch(), batch(ROWS[:2])], prompt_price=2.0, answer_price=10.0)
    assert (told.requests, told.stored) == (8, 2)
    assert (told.prompt_tokens, told.answer_tokens) == (sum(tokens), 800)
    assert told.cost == pytest.approx((sum(tokens) * 2 + 800 * 10) / 1e6)
    assert not served.asked
    judge(batch(ROWS[:3]))
    assert judge.estimate([batch()]) == (5, 3, sum(tokens[3:]), 500, None)
    with pytest.raises(SettingError, match="both prices"):
        judge.estimate([], prompt_price=1.0)


def math_ceil(value: float) -> int:
    return int(value) + (value > int(value))


def test_a_prompts_fields_are_replaced_and_never_formatted(tmp_path):
    endpoint = Endpoint("m", "http://localhost")
    judge = Judge(
        endpoint, tmp_path / "a", prompt="{dimension}|{instruction}|{response}|{other}|{}"
    )
    (pair,) = RowReader().pairs(batch([{"instruction": "{response} {0}", "output": "%s {"}]))
    assert judge.render(pair) == "accuracy|{response} {0}|%s {|{other}|{}"
    with pytest.raises(SettingError, match=r"must hold \{response\}"):
        Judge(endpoint, tmp_path / "a", prompt="{instruction}")


def test_other_settings_are_other_judgements(tmp_path):
    def key(**settings):
        return Judge(Endpoint("m", "http://a"), tmp_path / "a", **settings).key()

    keys = {key(), key(dimension="helpfulness"), key(prompt="{instruction}{response}")}
    keys.add(key(reader=RowReader(turns="first")))
    assert len(keys) == 4
    moved = Judge(Endpoint("m", "https://b", concurrency=9), tmp_path / "b", slug="x")
    assert moved.key() == key()


def test_judgements_of_another_judge_are_refused(endpoint, tmp_path):
    _, url = endpoint
    judged = judge_at(url, tmp_path)(batch())
    other = Judge(Endpoint("other", url), tmp_path / "other.jsonl", slug="j")
    with pytest.raises(RatingsError, match="'judgement__j' was measured with other settings"):
        other({**batch(), **judged})


def test_a_journal_that_is_none_is_refused(tmp_path, caplog):
    path = tmp_path / "notes.txt"
    path.write_text("my notes\n")
    with pytest.raises(RunError, match=r"'notes\.txt' is not a journal"):
        Journal(path)
    good = Journal(tmp_path / "a")
    good.append("k", Answer("é\n\u2028x", 1, 2))
    assert Journal(tmp_path / "a").get("k") == ("é\n\u2028x", 1, 2)


def test_an_answer_is_on_the_disk_before_it_is_used(tmp_path, monkeypatch):
    journal, durable = Journal(tmp_path / "a"), []
    fsync = os.fsync

    def watched(descriptor):
        fsync(descriptor)
        durable.append(((tmp_path / "a").read_bytes().count(b"\n"), journal.get("k2")))

    monkeypatch.setattr(os, "fsync", watched)
    journal.append("k1", Answer("1"))
    journal.append("k2", Answer("2"))
    assert durable == [(1, None), (2, None)]
    assert journal.get("k2") == Answer("2")


@pytest.mark.parametrize(
    "settings",
    [
        {"url": "ftp://a"},
        {"url": "http://a", "provider": "together"},
        {"concurrency": 0},
        {"per_minute": 0},
        {"attempts": 0},
        {"timeout": -1},
    ],
)
def test_settings_out_of_range(settings):
    with pytest.raises(SettingError):
        Endpoint("m", **settings)
