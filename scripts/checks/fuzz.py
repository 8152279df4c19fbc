"""Arbitrary input: for how many examples do the properties hold?

Runs the properties of ``tests/test_fuzz.py``: the parsers of plans and shards, reading rows,
building and cutting prompts, and selecting, each against a naive oracle. The last line of stdout is
JSON with the number of examples of each; a failure prints a minimal example and the seed that
repeats it, and exits with 1.

    python scripts/checks/fuzz.py                 # 100 of each, as the tests do
    python scripts/checks/fuzz.py --long          # 10,000 of each, in six minutes
"""

import argparse
import json
import os
import random
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[2] / "tests" / "test_fuzz.py"


def main() -> int:
    flags = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    flags.add_argument("--long", action="store_true", help="10,000 examples of each property")
    flags.add_argument("--seed", type=int, default=random.randrange(2**32))
    flags.add_argument("--only", default="", help="properties whose name holds this")
    given = flags.parse_args()
    os.environ["HYPOTHESIS_PROFILE"] = "long" if given.long else "short"
    seed = [f"--hypothesis-seed={given.seed}"] if given.long else []
    failed = pytest.main([str(TESTS), "-q", "-k", given.only, "--timeout=0", *seed])
    examples = sys.modules["test_fuzz"].EXAMPLES
    print(json.dumps({"seed": given.seed, "failed": bool(failed), "examples": dict(examples)}))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
