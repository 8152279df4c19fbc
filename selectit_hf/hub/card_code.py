"""The commands of a card, and the text files of the repository that they need."""

import json
import shlex
from collections.abc import Iterable, Mapping
from typing import Any

import yaml  # type: ignore[import-untyped]

from selectit_hf.hashes import is_content_hash
from selectit_hf.rating import RELEASED_TEMPLATE, load_rating_prompts, was_folder

__all__ = [
    "RECIPE",
    "is_local_source",
    "load_source",
    "local_models",
    "run_command",
    "text_files",
]

RECIPE = "recipe.yaml"
PROMPTS, TEMPLATE = "rating_prompts.txt", "template.txt"
DERIVED_FILE = "derived.parquet"
OPTIONAL = ("instruction_column", "response_column", "turns", "translation", "max_length")


def is_local_source(source: Mapping[str, Any]) -> bool:
    """Whether the rows, or a model's weights, were on the publisher's machine."""
    return is_content_hash(str(source["revision"]))


def local_models(facts: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The models that were folders or files of the publisher's machine."""
    return [m for m in facts["models"] if was_folder(m["model"], m["revision"])]


def text_files(facts: Mapping[str, Any]) -> dict[str, bytes] | None:
    """The recipe that makes the selection again, and the files of prompts that it names, by name.

    There are none of these for default prompts. ``None`` if no file can hold the prompts: a rating
    prompt of several lines, a lone carriage return.
    """
    rating = facts["rating"]
    k, prompts, template = rating["k"], rating["rating_prompts"], rating["template"]
    files: dict[str, bytes] = {}
    if tuple(prompts) != load_rating_prompts(None, k):
        if any(len(text.splitlines()) != 1 or text[:1] == "\ufeff" for text in prompts):
            return None
        lines = prompts if k == 5 else [text.replace(str(k), "{k}") for text in prompts]
        files[PROMPTS] = "".join(f"{line}\n" for line in lines).encode()
    if template != RELEASED_TEMPLATE:
        if "\r" in template:
            return None
        files[TEMPLATE] = template.encode()
    recipe = {"run": _flags(facts, files)}
    return {
        RECIPE: yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True, width=10**6).encode(),
        **files,
    }


def run_command(names: Iterable[str], repo: str) -> str:
    """The shell commands that make the selection again, from the named files of ``repo``."""
    fetch = ["hf", "download", repo, *names, "--repo-type", "dataset", "--local-dir", "."]
    return f"{shlex.join(fetch)}\nselectit run {RECIPE}"


def _flags(facts: Mapping[str, Any], files: Mapping[str, bytes]) -> dict[str, Any]:
    """The dataset and flags of ``selectit run``, by their names."""
    rating, selection, source = facts["rating"], facts["selection"], facts["input"]
    models = facts["models"]
    bases = {model.get("base") for model in models}
    kwargs = json.loads(rating.get("chat_template_kwargs") or "{}")
    flags = {
        **_rows(source),
        "model": [
            m["model"] if is_local_source(m) else f"{m['model']}@{m['revision']}" for m in models
        ],
        "base-model": bases.pop() if len(bases) == 1 else None,  # else as each adapter says
        "dtype": models[0]["dtype"],
        "quantization": models[0].get("quantization"),
        "attn-implementation": models[0].get("attn_implementation"),
        "k": rating["k"],
        "rating-prompts": PROMPTS if PROMPTS in files else None,
        "template": TEMPLATE if TEMPLATE in files else None,
        "chat": rating["chat"] or None,
        "chat-kwarg": [f"{name}={json.dumps(value)}" for name, value in kwargs.items()] or None,
        "role": list(rating.get("roles") or ()) or None,
        **{key.replace("_", "-"): rating[key] for key in OPTIONAL},
        "alpha": selection["reflection"]["alpha"],
        "variant": selection["reflection"]["variant"],
        "weights": ",".join(map(str, selection["reflection"]["weights"] or ())) or None,
        "by": selection["by"],
        **{key: selection["cut"][key] for key in ("proportion", "n", "threshold")},
        "out": "RUN",
    }
    return {name: value for name, value in flags.items() if value is not None}


def _rows(source: Mapping[str, Any]) -> dict[str, str]:
    if source.get("relation") == "derived":
        return {"dataset": DERIVED_FILE}
    name = source["name"] + (f":{source['config']}" if source["config"] else "")
    if is_local_source(source):
        return {"dataset": name} | ({"split": source["split"]} if "[" in source["split"] else {})
    return {"dataset": f"{name}@{source['revision']}", "split": source["split"]}


def load_source(source: Mapping[str, Any]) -> str:
    """The Python that loads the source at its commit; empty for local rows."""
    if is_local_source(source):
        return ""
    named = [source["name"], *([source["config"]] if source["config"] else [])]
    where = ", ".join(map(json.dumps, named))
    options = f'revision="{source["revision"]}", split={json.dumps(source["split"])}'
    return f"load_dataset({where}, {options})"
