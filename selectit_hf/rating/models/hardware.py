"""What a rating was computed with: the libraries, and what the processor or GPU can do."""

from importlib.metadata import version

import torch

__all__ = ["made_with"]

LIBRARIES = ("numpy", "tokenizers", "torch", "transformers")


def made_with(device: str) -> dict[str, str]:
    """The versions and the capability of a device; two that are equal rate to the same bits.

    Example:
        >>> made_with("cpu")["device"]  # doctest: +SKIP
        'cpu AVX2'
    """
    return {"device": _capability(device), **{name: version(name) for name in LIBRARIES}}


def _capability(device: str) -> str:
    if torch.device(device).type != "cuda":
        return f"{torch.device(device).type} {torch.backends.cpu.get_cpu_capability()}"
    major, minor = torch.cuda.get_device_capability(device)
    return f"cuda {major}.{minor} {torch.cuda.get_device_name(device)}"
