"""The commands of a card, and the text files of the repository that they need."""

import json
import shlex
from collections.abc import Mapping
from typing import Any

from selectit_hf.hashes import is_content_hash
from selectit_hf.rating import RELEASED_TEMPLATE, load_rating_prompts, was_folder

__all__ = ["is_local_source", "load_source", "local_models", "run_command", "text_files"]

PROMPTS, TEMPLATE = "rating_prompts.txt", "template.txt"
DERIVED_FILE = "derived.parquet"
OPTIONAL = ("instruction_column", "response_column", "turns", "translation", "max_length")


def is_local_source(source: Mapping[str, Any]) -> bool:
    """Whether the rows, or a model's weights, were on the publisher's machine."""
    return is_content_hash(str(source["revision"]))


def local_models(facts: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The models that were folders or files of the publisher's machine."""
    return [m for m in facts["models"] if was_folder(m["model"], m["revision"])]


def text_files(rating: Mapping[str, Any]) -> dict[str, bytes] | None:
    """The files that ``--rating-prompts`` and ``--template`` read, by name; none for the defaults.

    ``None`` if no file can hold them: a rating prompt of several lines, a lone carriage return.
    """
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
    return files


def run_command(facts: Mapping[str, Any], repo: str) -> str:
    """The shell commands that make the selection again; empty if no command line can say it."""
    files = text_files(facts["rating"])
    if files is None:
        return ""
    words = ["hf", "download", repo, *files, "--repo-type", "dataset", "--local-dir", "."]
    before = f"{shlex.join(words)}\n" if files else ""
    return before + _selectit_run(facts, files)


def _selectit_run(facts: Mapping[str, Any], files: Mapping[str, bytes]) -> str:
    rating, selection = facts["rating"], facts["selection"]
    source = facts["input"]
    name = source["name"] + (f":{source['config']}" if source["config"] else "")
    parts = [["selectit", "run", f"{name}@{source['revision']}"], ["--split", source["split"]]]
    if source.get("relation") == "derived":
        parts = [["selectit", "run", DERIVED_FILE]]
    elif is_local_source(source):
        parts = [["selectit", "run", name], *([parts[1]] if "[" in source["split"] else [])]
    for model in facts["models"]:
        pinned = "" if is_local_source(model) else f"@{model['revision']}"
        parts.append(["--model", f"{model['model']}{pinned}"])
    bases = {model.get("base") for model in facts["models"]}
    flags = {
        "--base-model": bases.pop() if len(bases) == 1 else None,  # else as each adapter says
        "--dtype": facts["models"][0]["dtype"],
        "--quantization": facts["models"][0].get("quantization"),
        "--attn-implementation": facts["models"][0].get("attn_implementation"),
        "--k": rating["k"],
        "--rating-prompts": PROMPTS if PROMPTS in files else None,
        "--template": TEMPLATE if TEMPLATE in files else None,
        **{f"--{key.replace('_', '-')}": rating[key] for key in OPTIONAL},
        "--alpha": selection["reflection"]["alpha"],
        "--variant": selection["reflection"]["variant"],
        "--weights": ",".join(map(str, selection["reflection"]["weights"] or ())) or None,
        "--by": selection["by"],
        **{f"--{key}": selection["cut"][key] for key in ("proportion", "n", "threshold")},
    }
    parts += [["--chat"]] if rating["chat"] else []
    for name, value in json.loads(rating.get("chat_template_kwargs") or "{}").items():
        parts.append(["--chat-kwarg", f"{name}={json.dumps(value)}"])
    parts += [["--role", mapping] for mapping in rating.get("roles") or ()]
    parts += [[flag, str(value)] for flag, value in flags.items() if value is not None]
    parts.append(["--out", "RUN"])
    return " \\\n  ".join(shlex.join(part) for part in parts)


def load_source(source: Mapping[str, Any]) -> str:
    """The Python that loads the source at its commit; empty for local rows."""
    if is_local_source(source):
        return ""
    named = [source["name"], *([source["config"]] if source["config"] else [])]
    where = ", ".join(map(json.dumps, named))
    options = f'revision="{source["revision"]}", split={json.dumps(source["split"])}'
    return f"load_dataset({where}, {options})"
