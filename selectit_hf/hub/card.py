"""The dataset card of a published selection: facts in, Markdown out.

The front matter is written by `DatasetCardData` alone. The text between two marker lines is ours;
what people write around it survives an update.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from huggingface_hub import DatasetCard, DatasetCardData
from yaml import YAMLError  # type: ignore[import-untyped]

from selectit_hf.errors import HubError, SettingError
from selectit_hf.hub.card_code import (
    RECIPE,
    is_local_source,
    load_source,
    local_models,
    run_command,
    text_files,
)
from selectit_hf.hub.markdown import HUB_NAME, environment, one_line
from selectit_hf.rating import model_weights
from selectit_hf.selection import LOW_RATING_MASS

__all__ = [
    "BEGIN",
    "DERIVED",
    "END",
    "NOT_COMPARED",
    "SAME",
    "Card",
    "CardSettings",
    "Licence",
    "as_dict",
    "inherited",
    "make_card",
    "merged",
]

SAME = "same"
DERIVED = "derived"
NOT_COMPARED = "not compared"
"""What published rows are to their source: ``relation`` in the facts about the input."""
BEGIN = "<!-- selectit: the text from here to the next such line is generated; write around it -->"
END = "<!-- selectit: end of the generated text -->"
LICENCE = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
LANGUAGE = re.compile(r"[a-z]{2,8}(-[A-Za-z0-9]{1,8})*")
SIZES = ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"),
         (10**7, "1M<n<10M"), (10**8, "10M<n<100M"))  # fmt: skip


@dataclass(frozen=True)
class Licence:
    """The licence that the selection is published under, and who chose it.

    Attributes:
        ids: identifiers of the Hub, such as ``cc-by-nc-4.0``; ``other`` where it is unknown.
        said_by: ``source``: inherited from its card; ``publisher``: given by hand; ``nobody``.
        of_source: what the source's card says, if anything.
        more: ``license_name`` and ``license_link`` of the source's card.
    """

    ids: tuple[str, ...] = ("other",)
    said_by: Literal["source", "publisher", "nobody"] = "nobody"
    of_source: tuple[str, ...] = ()
    more: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class CardSettings:
    """What a person adds to a card.

    Attributes:
        license: a licence instead of the source's; the card says so.
        language: codes of the languages in the rows; by default those of the source's card.
        pretty_name: the card's title; by default made from the repository's name.
        examples: show the best and worst rows, shortened.
        derived: the rows were made from the source (filtered, reordered, changed), and are not its
            own; without it, rows that differ from the source are refused.

    Raises:
        SettingError: an invalid licence or language.
    """

    license: str | None = None
    language: tuple[str, ...] = ()
    pretty_name: str | None = None
    examples: bool = False
    derived: bool = False

    def __post_init__(self) -> None:
        if self.license is not None and not LICENCE.fullmatch(self.license):
            raise SettingError(
                f"license={self.license!r} is not a licence identifier; write it as the Hub does, "
                "as in cc-by-nc-4.0 or apache-2.0."
            )
        for code in self.language:
            if not LANGUAGE.fullmatch(code):
                raise SettingError(f"language={code!r} is not a language code such as en or zh.")


@dataclass(frozen=True)
class Card:
    """A card in two parts: the front matter as data, and the generated text."""

    data: dict[str, Any]
    body: str

    def text(self, before: str = "", after: str = "") -> str:
        """The whole README.md, with hand-written text around the generated one."""
        head = f"---\n{DatasetCardData(**self.data).to_yaml()}\n---\n"
        parts = [before.strip(), f"{BEGIN}\n\n{self.body.strip()}\n\n{END}", after.strip()]
        return head + "\n" + "\n\n".join(part for part in parts if part) + "\n"


def make_card(
    facts: Mapping[str, Any],
    repo: str,
    *,
    licence: Licence,
    settings: CardSettings,
    source_card: Mapping[str, Any],
    datasets_data: Mapping[str, Any],
    plots: Sequence[str] = (),
    examples: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
    version: str = "",
) -> Card:
    """The card of a finished selection.

    Args:
        facts: see `selectit_hf.analysis.finished.Finished.facts`.
        repo: the repository's name.
        licence: see `inherited`.
        settings: what a person adds.
        source_card: the front matter of the source's card, or nothing.
        datasets_data: ``configs`` and ``dataset_info``, as `datasets` writes them.
        plots: names of the plots that lie in ``images/``.
        examples: best and worst rows; shown if the settings say so.
        version: the version of this package.
    """
    name = one_line(settings.pretty_name or _pretty(repo))
    shown = examples if settings.examples else None
    files = text_files(facts) or {}
    relation = facts["input"].get("relation", NOT_COMPARED)
    body = environment().get_template("card.md.jinja").render(
        repo=repo,
        name=name,
        licence=licence,
        plots=plots,
        examples=shown,
        version=version,
        low_rating_mass=LOW_RATING_MASS,
        relation=relation,
        is_local_source=is_local_source(facts["input"]),
        local_models=local_models(facts),
        recipe=files.get(RECIPE, b"").decode().strip(),
        run_command=run_command(files, repo),
        load_source=load_source(facts["input"]) if relation == SAME else "",
        weights=_weights(facts),
        level=facts["selection"]["by"].partition("_")[0],
        **{key: facts.get(key) for key in FACTS},
    )  # fmt: skip
    return Card(_front_matter(facts, name, licence, settings, source_card, datasets_data), body)


FACTS = (
    "input",
    "rating",
    "models",
    "selection",
    "score_quantiles",
    "contrast",
    "check",
    "versions",
    "form",
)


def merged(card: Card, old: str) -> str:
    """``card`` in place of the generated text of ``old``, with the hand-written text around it.

    Keys that people added to the front matter are kept, too.

    Raises:
        HubError: the old card's markers or front matter are damaged.
    """
    try:
        parsed = DatasetCard(old, ignore_metadata_errors=True)
        theirs = as_dict(parsed.data)
    except (YAMLError, ValueError, TypeError, AttributeError) as error:
        raise _damaged("its front matter is not valid YAML") from error
    before, begin, rest = parsed.text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end) or any(mark in before + after for mark in (BEGIN, END)):
        raise _damaged("the two lines around its generated text must occur once each")
    extra = {key: value for key, value in theirs.items() if key not in card.data}
    return Card({**card.data, **extra}, card.body).text(before, after)


def as_dict(data: Any) -> dict[str, Any]:
    """The front matter of a card as plain values."""
    return dict(data.to_dict())


def _damaged(problem: str) -> HubError:
    return HubError(
        f"The card on the Hub cannot be updated: {problem}. Repair it there, or replace the "
        "whole repository with --overwrite."
    )


def inherited(source_card: Mapping[str, Any], settings: CardSettings) -> Licence:
    """The licence of a selection: given by hand, else the source's, else ``other``."""
    said = source_card.get("license")
    values = said if isinstance(said, list) else [said]
    known = bool(values) and all(isinstance(v, str) and LICENCE.fullmatch(v) for v in values)
    of_source = tuple(values) if known else ()
    if settings.license is not None and of_source != (settings.license,):
        return Licence((settings.license,), "publisher", of_source)
    if not of_source:
        return Licence()
    keys = ("license_name", "license_link")
    said_more = {key: source_card.get(key) for key in keys}
    more = {key: v for key, v in said_more.items() if isinstance(v, str) and v == one_line(v)}
    return Licence(of_source, "source", of_source, more)


# Front matter


def _front_matter(
    facts: Mapping[str, Any],
    name: str,
    licence: Licence,
    settings: CardSettings,
    source_card: Mapping[str, Any],
    datasets_data: Mapping[str, Any],
) -> dict[str, Any]:
    source = facts["input"]
    languages = list(settings.language) or _codes(source_card.get("language"))
    tasks = ["translation"] if facts["rating"]["translation"] else ["text-generation"]
    data = {
        "pretty_name": name,
        "license": licence.ids[0] if len(licence.ids) == 1 else list(licence.ids),
        **licence.more,
        "language": languages or None,
        "task_categories": tasks,
        "size_categories": [_size(facts["selection"]["selected"])],
        "source_datasets": [source["name"]] if _is_on_hub(source) else None,
        "tags": ["selectit", "instruction-tuning", "data-selection", "data-quality"],
        **datasets_data,
    }
    return {key: value for key, value in data.items() if value is not None}


def _codes(said: object) -> list[str]:
    values = said if isinstance(said, list) else [said]
    return [v for v in values if isinstance(v, str) and LANGUAGE.fullmatch(v)]


def _size(rows: int) -> str:
    return next((name for limit, name in SIZES if rows < limit), "100M<n<1B")


def _pretty(repo: str) -> str:
    words = re.split(r"[-_]+", repo.rpartition("/")[2])
    return " ".join(word[:1].upper() + word[1:] for word in words if word)


def _is_on_hub(source: Mapping[str, Any]) -> bool:
    return not is_local_source(source) and HUB_NAME.fullmatch(source["name"]) is not None


def _weights(facts: Mapping[str, Any]) -> list[float]:
    how = facts["selection"]["reflection"]
    counts = [model["parameters"] for model in facts["models"]]
    if facts["selection"]["by"] != "model_score":
        return []
    return [float(weight) for weight in model_weights(counts, how["variant"], how["weights"])]
