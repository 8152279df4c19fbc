"""Rows of a translation dataset as instructions: the languages, and the instruction's wording."""

from importlib.resources import files

from selectit_hf.errors import SettingError

__all__ = ["LANGUAGES", "instruction", "languages"]

LANGUAGES = {
    "ar": "Arabic",
    "cs": "Czech",
    "de": "German",
    "en": "English",
    "es": "Spanish",
    "fi": "Finnish",
    "fr": "French",
    "ha": "Hausa",
    "hi": "Hindi",
    "is": "Icelandic",
    "it": "Italian",
    "ja": "Japanese",
    "ko": "Korean",
    "nl": "Dutch",
    "pl": "Polish",
    "pt": "Portuguese",
    "ru": "Russian",
    "tr": "Turkish",
    "uk": "Ukrainian",
    "zh": "Chinese",
}
"""Names put into the translation instruction; another code stands for itself."""


def languages(pair: str) -> tuple[str, str]:
    """The two languages in ``"de:en"``.

    Raises:
        SettingError: it does not name two languages.
    """
    source, _, target = pair.partition(":")
    if not source or not target or source == target:
        raise SettingError(
            f"translation={pair!r} must name two languages, source first, as in 'de:en'."
        )
    return source, target


def instruction(source: str, target: str, text: str) -> str:
    """The instruction to translate ``text``."""
    asked = _template()
    for name, code in (("source_language", source), ("target_language", target)):
        asked = asked.replace(f"{{{name}}}", LANGUAGES.get(code, code))
    return asked.replace("{text}", text)


def _template() -> str:
    text = files("selectit_hf").joinpath("data/translation_instruction.txt").read_text("utf-8")
    return text.rstrip("\n")
