"""Chat templates: the same question every day, whole, and with the arguments that were given."""

import re
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

from selectit_hf import SentenceScore
from selectit_hf.cli.flag_groups import scorers
from selectit_hf.errors import SettingError, TokenizerError
from selectit_hf.formats.rows import Pair
from selectit_hf.rating.prompts import chat_probe, chat_templates
from selectit_hf.rating.prompts.chat_templates import (
    chat_kwargs_text,
    check_chat_template,
    render_chat,
)
from selectit_hf.rating.prompts.prompt_encoder import PromptEncoder
from selectit_hf.rating.prompts.rating_prompts import Template, load_rating_prompts

PLAIN = "{% for m in messages %}<{{ m.role }}>{{ m.content | trim }}\n{% endfor %}<assistant>"
DATED = (
    "{%- if not date_string is defined %}{%- set date_string = strftime_now('%d %b %Y') %}"
    "{%- endif %}Today is {{ date_string }}.\n" + PLAIN
)
THINKING = PLAIN + "{% if enable_thinking is defined and not enable_thinking %}<nothing>{% endif %}"


@pytest.fixture
def chatty(bpe_split: PreTrainedTokenizerBase) -> Any:
    def with_template(template: str | None) -> PreTrainedTokenizerBase:
        bpe_split.chat_template = template
        return bpe_split

    return with_template


@pytest.fixture(autouse=True)
def let_through(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only templates without end wait here for a process that tries them."""
    if "endless" not in request.fixturenames:
        monkeypatch.setattr(chat_templates, "check_ends", lambda *_: None)


def test_a_plain_template_is_rendered_and_let_through(chatty: Any) -> None:
    assert render_chat(chatty(PLAIN), "Hi.") == "<user>Hi.\n<assistant>"
    check_chat_template(chatty(PLAIN))


def test_arguments_reach_the_template(chatty: Any) -> None:
    tokenizer = chatty(THINKING)
    for kwargs in ({"enable_thinking": False}, '{"enable_thinking": false}'):
        check_chat_template(tokenizer, kwargs)
        assert render_chat(tokenizer, "Hi.", kwargs) == "<user>Hi.\n<assistant><nothing>"
    assert render_chat(tokenizer, "Hi.") == "<user>Hi.\n<assistant>"


@pytest.mark.parametrize("name", ["enable_thinkin", "tokenize", "add_generation_prompt"])
def test_an_argument_that_the_template_does_not_read_is_refused(chatty: Any, name: str) -> None:
    with pytest.raises(SettingError, match=f"argument '{name}'"):
        check_chat_template(chatty(THINKING), {name: False})


@pytest.mark.parametrize(
    "written", ["%Y", "%m", "%d", "%H", "%M", "%S", "%f", "%A", "%j", "%p", "%y-%m"]
)
def test_a_template_that_writes_the_time_is_refused(chatty: Any, written: str) -> None:
    template = "{{ strftime_now('" + written + "') }}" + PLAIN
    with pytest.raises(TokenizerError, match="writes the time into the prompt"):
        check_chat_template(chatty(template))


def test_a_date_that_can_be_given_is_asked_for(chatty: Any) -> None:
    with pytest.raises(TokenizerError, match=r'--chat-kwarg date_string="26 Jul 2024"') as caught:
        check_chat_template(chatty(DATED))
    assert "chat_template_kwargs={'date_string': '26 Jul 2024'}" in str(caught.value)
    check_chat_template(chatty(DATED), {"date_string": "26 Jul 2024"})
    assert "Today is 26 Jul 2024." in render_chat(
        chatty(DATED), "Hi.", {"date_string": "26 Jul 2024"}
    )


def test_the_clock_runs_on_afterwards(chatty: Any) -> None:
    tokenizer = chatty("{{ strftime_now('%Y') }}" + PLAIN)
    with pytest.raises(TokenizerError):
        check_chat_template(tokenizer)
    year = int(render_chat(tokenizer, "Hi.")[:4])
    assert year not in (2001, 2038)


@pytest.mark.parametrize(
    "seldom",
    [
        "{{ ['a', 'b'] | random }}",
        "{% if range(10**4) | random == 7 %}a{% endif %}",
        "{{ [['a']] | map('random') | list }}",
        "{% if 'q' in lipsum() and 'q' not in lipsum() %}a{% endif %}",
    ],
)
def test_chance_is_refused(chatty: Any, seldom: str) -> None:
    with pytest.raises(TokenizerError, match="writes other text each time"):
        check_chat_template(chatty(seldom + PLAIN))


def test_words_of_chance_in_what_a_template_says_are_no_chance(chatty: Any) -> None:
    check_chat_template(chatty("Be random. {# random #}" + PLAIN))


LOOPS = "{% for a in range(10**5) %}{% for b in range(10**5) %}{% endfor %}{% endfor %}"


@pytest.mark.parametrize(
    ("endless", "says"),
    [
        (LOOPS, "does not end"),
        ("{{ 9 ** (9 ** 9) % 7 }}", "does not end"),  # one computation, which no signal ends
        ("{% for a in range(99999) %}" + 20 * "a" + "{% endfor %}", "writes more than"),
    ],
)
def test_a_template_without_end_is_refused(
    chatty: Any, monkeypatch: pytest.MonkeyPatch, endless: str, says: str
) -> None:
    program = chat_probe.PROGRAM.replace("later(5", "later(1")
    monkeypatch.setattr(chat_probe, "PROGRAM", program)
    with pytest.raises(TokenizerError, match=says):
        check_chat_template(chatty(endless + PLAIN))


def test_a_template_cannot_tell_when_it_is_checked(chatty: Any) -> None:
    """Nothing that it sees is there in one rendering and not in another."""
    told = "{% if selectit_rating is defined %}<other>{% endif %}" + PLAIN
    ids = [
        PromptEncoder(
            chatty(template), Template(), load_rating_prompts(None, 5), 5, None, chat=True
        ).encode([Pair("Name a colour.", "Red.")])
        for template in (told, PLAIN)
    ]
    assert ids[0] == ids[1]


@pytest.mark.parametrize(
    "content",
    [
        "m.content[:10]",
        "m.content[:2000]",
        "m.content.split(' ') | reverse | join(' ')",
        "m.content | upper",
        "m.content | replace('\n', ' ')",
        "m.content | escape",
        "'Hello'",
    ],
)
def test_a_template_that_changes_what_is_said_is_refused(chatty: Any, content: str) -> None:
    template = PLAIN.replace("m.content | trim", content)
    with pytest.raises(TokenizerError, match="drops or changes what the user says"):
        check_chat_template(chatty(template))


def test_a_template_that_fails_or_is_not_there_is_refused(chatty: Any) -> None:
    with pytest.raises(TokenizerError, match=r"cannot be rendered \(a tool is needed\)"):
        check_chat_template(chatty("{{ raise_exception('a tool is needed') }}"))
    with pytest.raises(TokenizerError, match="Leave chat unset for a base model"):
        check_chat_template(chatty(None))


# Settings


def test_arguments_are_kept_as_their_json_text() -> None:
    scorer = SentenceScore(chat=True, chat_template_kwargs={"b": 1, "a": [None, "x"]})
    assert scorer.chat_template_kwargs == '{"a": [null, "x"], "b": 1}'
    assert scorer == SentenceScore(chat=True, chat_template_kwargs='{"b":1,"a":[null,"x"]}')
    assert hash(scorer)
    assert chat_kwargs_text({}) is chat_kwargs_text("{}") is chat_kwargs_text(None) is None


@pytest.mark.parametrize(
    "kwargs", ["[1]", "no json", {"a": {1, 2}}, {"a": float("nan")}, {1: "a"}, {"a": (1, 2)}]
)
def test_what_is_no_json_object_is_refused(kwargs: Any) -> None:
    with pytest.raises(SettingError, match="must be a dict of JSON values"):
        SentenceScore(chat=True, chat_template_kwargs=kwargs)


def test_they_need_chat_and_change_the_key() -> None:
    with pytest.raises(SettingError, match=re.escape("need chat=True (--chat)")):
        SentenceScore(chat_template_kwargs={"enable_thinking": False})
    asked = [None, {"enable_thinking": False}, {"enable_thinking": True}]
    scorers = [SentenceScore("tiny-rater", chat=True, chat_template_kwargs=one) for one in asked]
    assert len({scorer.rating_key() for scorer in scorers}) == 3


def test_flags_are_read_as_json_or_text() -> None:
    given = ["enable_thinking=false", "date_string=26 Jul 2024", 'quoted="5"', "of=a=b"]
    (scorer,) = scorers(chat=True, chat_kwarg=given)
    assert scorer.chat_template_kwargs == chat_kwargs_text(
        {"enable_thinking": False, "date_string": "26 Jul 2024", "quoted": "5", "of": "a=b"}
    )


@pytest.mark.parametrize("given", [["enable_thinking"], ["=1"], ["a=1", "a=2"]])
def test_a_flag_that_names_no_argument_is_refused(given: list[str]) -> None:
    with pytest.raises(SettingError, match="must be NAME=VALUE, each name once"):
        scorers(chat=True, chat_kwarg=given)
