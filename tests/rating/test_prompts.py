"""From a pair to its rating prompts, byte-exact."""

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selectit_hf.errors import InputError, SettingError
from selectit_hf.formats.rows import Pair
from selectit_hf.rating.prompts.rating_prompts import Template, check_scale, load_rating_prompts

FIELD = r"\{(rating_prompt|instruction|response)\}"
PARTS = ["{", "}", "{{", "}}", "{rating_prompt}", "{instruction}", "{response}", "{0}", "{k}"]
PARTS += ["\\1", "\\g<1>", "\\", "%s", "$instruction", "\n", "\r", "é", "数", "\0"]
SAMPLES = st.lists(st.sampled_from(PARTS) | st.text(max_size=5), max_size=8).map("".join)
LITERALS = SAMPLES.map(lambda text: re.sub(FIELD, "", text)).filter(
    lambda text: not re.search(FIELD, text)
)


@given(SAMPLES, SAMPLES, SAMPLES)
def test_the_released_layout_is_plain_concatenation(rating_prompt, instruction, response):
    text = Template().render(rating_prompt, Pair(instruction, response))
    assert text == (
        rating_prompt
        + "\n\nInstruction:"
        + instruction
        + "\nResponse:"
        + response
        + "\nThe answer is: \n"
    )


@given(LITERALS, LITERALS, LITERALS, LITERALS.filter(bool), SAMPLES, SAMPLES, SAMPLES)
def test_any_layout_is_plain_concatenation(before, a, b, suffix, rating_prompt, asked, answered):
    template = Template(
        before + "{rating_prompt}" + a + "{instruction}" + b + "{response}" + suffix
    )
    assert template.suffix == suffix
    expected = before + rating_prompt + a + asked + b + answered + suffix
    assert template.render(rating_prompt, Pair(asked, answered)) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Rate it.",
        "{rating_prompt} {instruction} Answer:",
        "{rating_prompt} {response} Answer:",
        "{instruction} {response} Answer:",
        "{rating_prompt} {instruction} {response} {response} Answer:",
        "{rating_prompt} {response} {instruction} Answer:",
        "{instruction} {response} {rating_prompt} Answer:",
        "{rating_prompt} {instruction} {response}",
        "{rating_prompt} {Instruction} {response} Answer:",
    ],
)
def test_a_layout_without_its_fields_in_order_is_refused(text):
    with pytest.raises(SettingError, match="template="):
        Template(text)


@pytest.mark.parametrize("k", range(2, 10))
def test_the_packages_prompts_say_the_right_scale(k):
    texts = load_rating_prompts(None, k)
    assert len(set(texts)) == k
    for text in texts:
        assert f"1 to {k}" in text
        assert "{" not in text
        assert set(re.findall(r"\d+", text)) == {"1", str(k)}


def test_the_package_has_nine_prompts_and_they_do_not_change_with_k():
    nine = [text.replace("9", "{k}") for text in load_rating_prompts(None, 9)]
    assert [text.replace("5", "{k}") for text in load_rating_prompts(None, 5)] == nine[:5]


@pytest.mark.parametrize("k", [None, True, 0, 1, 10, -5, 5.0, "5", [5]])
def test_a_scale_that_is_no_single_digit_is_refused(k):
    with pytest.raises(SettingError, match=r"k=.* must be a whole number from 2 to 9"):
        check_scale(k)
    with pytest.raises(SettingError):
        load_rating_prompts(None, k)


def file_of(folder: Path, content: bytes) -> Path:
    path = folder / "prompts.txt"
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    "content",
    [
        b"Rate 1 to {k}.\nGrade 1 to {k}: \xc3\xa9\n",
        b"Rate 1 to {k}.\r\nGrade 1 to {k}: \xc3\xa9\r\n",
        b"\n  \nRate 1 to {k}.\n\nGrade 1 to {k}: \xc3\xa9",
        b"Rate 1 to {k}.\nGrade 1 to {k}: \xc3\xa9\nThird, without a scale.\n",
        b"\xef\xbb\xbfRate 1 to {k}.\nGrade 1 to {k}: \xc3\xa9\n",
    ],
    ids=["plain", "crlf", "blank lines", "more than k", "byte order mark"],
)
@pytest.mark.parametrize("kind", [str, Path])
def test_a_file_replaces_them(tmp_path, content, kind):
    path = file_of(tmp_path, content)
    assert load_rating_prompts(kind(path), 2) == ("Rate 1 to 2.", "Grade 1 to 2: é")


def test_a_list_replaces_them_and_keeps_its_line_breaks():
    texts = ["Rate.\n1 to {k}", "  ", "Grade {k} {other} {{k}}", "more {k}"]
    assert load_rating_prompts(texts, 2) == ("Rate.\n1 to 2", "Grade 2 {other} {2}")


@pytest.mark.parametrize("source", [[], ["a {k}", "b {k}"], ["a {k}", "b {k}", "   "]])
def test_fewer_than_k_are_refused(source):
    with pytest.raises(SettingError, match=rf"{len(source) and 2} rating prompts given and k=3"):
        load_rating_prompts(source, 3)


def test_texts_with_a_scale_of_their_own_need_k_five():
    texts = [f"Rate {i} from 1 to 5." for i in range(9)]
    assert load_rating_prompts(texts, 5) == tuple(texts[:5])
    for k in (4, 6):
        with pytest.raises(SettingError, match=r"Rate 0 from 1 to 5\."):
            load_rating_prompts(texts, k)


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    for path in (tmp_path / "none.txt", tmp_path, file_of(tmp_path, b"\xff\xfe\x00")):
        with pytest.raises(InputError, match=re.escape(str(path))):
            load_rating_prompts(path, 5)


def test_the_released_prompts_are_for_five(shared_data):
    path = shared_data / "released_rating_prompts.txt"
    lines = path.read_text("utf-8").splitlines()
    assert load_rating_prompts(path, 5) == tuple(lines[:5])
    with pytest.raises(SettingError, match="k=4"):
        load_rating_prompts(path, 4)
