"""An exception as an exit code and a paragraph that says what went wrong and what helps."""

from pathlib import Path

from selectit_hf.errors import SelectItError

__all__ = ["explained"]

PACKAGE = Path(__file__).parent.name
DATA = "Check the rows and columns that are read; 'docs/formats.md' says what is accepted."
FILES = "Check that the file is complete and of the type that its ending says."
MODEL = "Check the model's folder or name, and its tokenizer and chat template."
HUB = "Check the network, the name and the login, and run the command again."
REMEDIES = {
    "accelerate": MODEL,
    "datasets": DATA,
    "fsspec": FILES,
    "gcsfs": HUB,
    "httpx": HUB,
    "httpx2": HUB,
    "huggingface_hub": HUB,
    "jinja2": "Check the template: the tokenizer's chat template (--chat) or the card's.",
    "multiprocess": "A worker process ended; run the command again, with fewer --workers.",
    "pandas": DATA,
    "peft": MODEL,
    "pyarrow": DATA,
    "s3fs": HUB,
    "safetensors": MODEL,
    "sklearn": DATA,
    "tokenizers": MODEL,
    "torch": "Check the device, its driver and its memory; --device cpu or a smaller "
    "--token-budget may help.",
    "transformers": MODEL,
    "zstandard": FILES,
}
"""What to check when a library of this name raises."""


def explained(error: Exception) -> tuple[str, int]:
    """The paragraph and the exit code: 1 for an error with a remedy, 70 for a bug in selectit."""
    notes = "".join(f" {note}" for note in getattr(error, "__notes__", ()))
    if isinstance(error, SelectItError):
        return f"Error: {error}{notes}", 1
    library = None if _is_of_a_path(error) else _library(error)
    if isinstance(error, OSError) and library is None:
        words = "Check the path, its permissions, and the free space on the disk."
        return f"Error: {error}. {words}{notes}", 1
    if library is not None:
        said = " ".join(str(error).split()) or type(error).__name__
        said = said if len(said) <= 500 else f"{said[:497]}..."
        return (
            f"Error: {library} says: {said.rstrip('.')}. {REMEDIES[library]}{notes} The same "
            "command with --debug shows where it happened."
        ), 1
    return (
        f"Unexpected {type(error).__name__}: {error}{notes}\nThis is a bug in selectit; run the "
        "command again with --debug and report what it shows."
    ), 70


def _is_of_a_path(error: Exception) -> bool:
    """Whether the system refused a file, whichever library asked for it."""
    of_network = isinstance(error, (ConnectionError, TimeoutError))
    return isinstance(error, OSError) and bool(error.filename) and not of_network


def _library(error: BaseException) -> str | None:
    """The library that raised: by the exception's type, else by the innermost frame of one."""
    if type(error) is Exception:  # raised by Rust extensions, without a Python frame
        return "tokenizers"
    home = type(error).__module__.partition(".")[0]
    if home in REMEDIES:
        return home
    names = []
    trace = error.__traceback__
    while trace is not None:
        names.append(str(trace.tb_frame.f_globals.get("__name__", "")).partition(".")[0])
        trace = trace.tb_next
    known = [name for name in names if name in REMEDIES or name == PACKAGE]
    return known[-1] if known and known[-1] != PACKAGE else None
