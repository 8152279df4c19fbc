"""Access tokens of any form never leave."""

import pytest

from selectit_hf.redaction import holds_token, redacted

SECRET = "s3cretS3CRET" + "x" * 20
KNOWN = [
    f"hf_{SECRET}",
    f"api_org_{SECRET}",
    f"ghp_{SECRET}",
    f"github_pat_{SECRET}",
    f"sk-{SECRET}",
]
FORMS = [
    *KNOWN,
    f"Authorization: Bearer {SECRET}",
    f"authorization: basic {SECRET}==",
    f"https://user:{SECRET}@host/a",
    f"https://{SECRET}@host/a",
    f"https://host/a?token={SECRET}&b=1",
    f"https://host/a?b=1&X-Amz-Signature={SECRET}",
    f"https://host/a?access_token={SECRET}",
    f"https://host/a%3Ftoken%3D{SECRET}",
    f'{{"api_key": "{SECRET}"}}',
    f"{{'refresh-token': '{SECRET}'}}",
    f"password={SECRET}",
    f"export AWS_SECRET_ACCESS_KEY={SECRET}; export PASSWD={SECRET}",
    f"DB_PASSWORD='a b {SECRET}' after it",
    f"of your-own-kind-{SECRET} in a variable",
]
PLAIN = [
    "The answer has 12 tokens: 1, 2 and 3; token_budget 4096, tokens=123456",
    "Mail me@host.example about https://host/a@b?c=d",
    "a basic understanding of the bearer",
    "hf_hub, sk-learn and api_org are words",
    "f1d2d2f924e986ac86fdf7b36c94bcdf32beec15",
]


@pytest.mark.parametrize("form", FORMS)
def test_a_token_of_any_form_is_left_out(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", f"your-own-kind-{SECRET}")
    found = redacted(f"before {form} after")
    assert SECRET not in found
    assert found.startswith("before ")
    assert found.endswith(" after")
    assert redacted(found) == found


@pytest.mark.parametrize("words", PLAIN)
def test_other_words_stay(words: str) -> None:
    assert redacted(words) == words
    assert not holds_token(words)


@pytest.mark.parametrize("token", KNOWN)
def test_what_is_beyond_doubt_a_token(token: str) -> None:
    assert holds_token(f"({token})")


@pytest.mark.timeout(20)
@pytest.mark.parametrize("unit", ["a", "a_", "a-", "https:/", "Bearer", "token"])
def test_a_long_text_is_no_hindrance(unit: str) -> None:
    text = unit * (300_000 // len(unit))
    assert redacted(f"{text} https://me:pass@host") == f"{text} https://***@host"
