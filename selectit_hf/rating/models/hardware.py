"""What a rating was computed with: the libraries, and the kind of processor or GPU."""

from importlib.metadata import version

import torch

__all__ = ["made_with"]

LIBRARIES = ("numpy", "tokenizers", "torch", "transformers")


def made_with(device: str) -> dict[str, str]:
    """The library versions and the device's capability; if both are equal, so is every bit.

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
