"""Other ends for the template, for a tokenizer that merges the rating with the present end."""

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from selectit_hf.errors import TokenizerError
from selectit_hf.rating.prompts.prompt_encoder import PLAIN_PAIR, PromptEncoder
from selectit_hf.rating.prompts.rating_prompts import Template

__all__ = ["advice", "encoders_by_end"]

ENDS = (": ", ":\n", ":", ": \n", " ", "\n", "")
T = TypeVar("T")
Masses = Callable[[PromptEncoder, Sequence[list[int]]], float | None]


def encoders_by_end(template: Template, make: Callable[[Template], T]) -> dict[Template, T]:
    """The templates with other ends after which ratings stay separate tokens, and their encoders.

    ``make`` raises TokenizerError if they do not.
    """
    head, suffix = template.text.removesuffix(template.suffix), template.suffix.rstrip(" \n:")
    found = {}
    for end in ENDS:
        if suffix + end and suffix + end != template.suffix:
            other = Template(head + suffix + end)
            try:
                found[other] = make(other)
            except TokenizerError:
                continue
    return found


def advice(encoders: Mapping[Template, PromptEncoder], mass: Masses) -> str:
    """The flags for the end that gives the ratings the largest probability.

    ``mass`` gives the mean probability of all ratings together after prompts, or ``None``.
    """
    if not encoders:
        return "Use another model."
    masses = {
        template: mass(encoder, encoder.encode([PLAIN_PAIR])[0].ids)
        for template, encoder in encoders.items()
    }
    best = max(masses, key=lambda template: masses[template] or 0)
    escaped = best.text.replace("\\", "\\\\").replace("\n", "\\n").replace("'", "'\\''")
    share = f", with {masses[best]:.2g} of the probability on the ratings" if masses[best] else ""
    return (
        f"A template that ends in {best.suffix!r} works here{share}. Write it to a file: "
        f"printf '%b' '{escaped}' > template.txt, and add --template template.txt."
    )
