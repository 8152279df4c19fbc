"""Write the bundled sample dataset, on which `selectit demo` shows what SelectIT does.

Why: a demo needs rows that are known to be good or bad. These come from the generator that
tiny-rater was trained on, with instructions that its training never used. `family` and `defect`
("none" for a good row) are for the reader; no scorer looks at them. No instruction occurs twice.

    python scripts/tiny_rater/make_sample_dataset.py  # 600 rows to selectit_hf/data/sample.jsonl

The last line of stdout is a JSON object that counts the rows by defect.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path

from tiny_rater_data import PACKAGE_DATA, SEEN_FAMILIES, length_auc, rows


def sample(seed: int, count: int) -> list[dict[str, str]]:
    """`count` rows with different instructions, equally many of every family."""
    most = -(-count // len(SEEN_FAMILIES))
    taken: Counter[str] = Counter()
    seen: set[tuple[str, str]] = set()
    chosen = []
    for row in rows(seed, 100 * count):
        prompt = (row["instruction"], row["input"])
        if taken[row["family"]] < most and prompt not in seen:
            taken[row["family"]] += 1
            seen.add(prompt)
            chosen.append(row)
        if len(chosen) == count:
            return chosen
    raise SystemExit(f"The families have too few instructions for {count} different ones.")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--out", type=Path, default=PACKAGE_DATA / "sample.jsonl", help="the file to write")
    add("--seed", type=int, default=2024, help="the same seed gives the same rows (default: 2024)")
    add("--rows", type=int, default=600, help="default: 600")
    args = parser.parse_args()
    data = sample(args.seed, args.rows)
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in data)
    args.out.write_text(text, encoding="utf-8")
    defects = dict(sorted(Counter(row["defect"] for row in data).items()))
    print(
        json.dumps(
            {"rows": len(data), "defects": defects, "length_auc": round(length_auc(data), 4)}
        )
    )


if __name__ == "__main__":
    main()
