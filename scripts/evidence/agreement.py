"""Which selectors agree with a strong judge's labels?

Draws equally many labelled and other rows (``--label``, a boolean column), scores them by every
selector, and prints the AUC of labelled over other rows, by how much it exceeds that of the level
that SelectIT ranks by, and the share of labelled rows among the best 20 %, next to the base rate,
with 95 % bootstrap intervals over rows. A model's own selectors are compared with its sentence
level, the others with the model level, on the same resamples. The last line is JSON.

    python scripts/evidence/agreement.py --rows labelled.json --model A --model B --n 600
"""

import numpy as np
from common import (
    auc,
    interval,
    last_line,
    parser,
    precision,
    rated,
    read,
    said,
    selectors,
    table,
)
from datasets import Dataset
from numpy.typing import NDArray


def stratified(path: str, label: str, n: int, seed: int) -> tuple[Dataset, NDArray[np.bool_]]:
    """Half labelled and half other rows, in random order, limited by the labelled rows."""
    rows = [row for row in read(path) if row["instruction"].strip() and row["output"].strip()]
    labels = np.array([bool(row[label]) for row in rows])
    rng = np.random.default_rng(seed)
    yes, no = (rng.permutation(np.flatnonzero(labels == one)) for one in (True, False))
    half = min(n // 2, len(yes))
    chosen = rng.permutation(np.concatenate([yes[:half], no[: n - half]])).tolist()
    columns = ("instruction", "input", "output")
    made = Dataset.from_list([{key: rows[i][key] for key in columns} for i in chosen])
    return made, labels[chosen]


def main() -> None:
    arguments = parser(__doc__ or "", 600)
    arguments.add_argument("--label", default="claude_accurate")
    given = arguments.parse_args()
    rows, labels = stratified(given.rows, given.label, given.n, given.seed)
    run = rated(rows, f"agreement-{given.label}-{given.n}-{given.seed}", given)
    facts = {}
    found = selectors(run, rows, given)
    for name, scores in found.items():
        slug = name.partition(":")[2] or run.slugs[0]
        several = ":" not in name and len(run.slugs) > 1
        level = found["model" if several else f"sentence:{slug}"]

        def area(i: NDArray[np.int64], scores: NDArray[np.float64] = scores) -> float:
            return auc(scores[i][labels[i]], scores[i][~labels[i]])

        def best(i: NDArray[np.int64], scores: NDArray[np.float64] = scores) -> float:
            return precision(scores[i], labels[i])

        def more(
            i: NDArray[np.int64],
            scores: NDArray[np.float64] = scores,
            level: NDArray[np.float64] = level,
        ) -> float:
            return area(i, scores) - area(i, level)

        every = np.arange(len(rows))
        facts[name] = {
            "auc": area(every),
            "auc_interval": interval(area, len(rows), given.seed),
            "more": more(every),
            "more_interval": interval(more, len(rows), given.seed),
            "precision": best(every),
            "precision_interval": interval(best, len(rows), given.seed),
        }
    base = float(labels.mean())
    table(
        f"{len(rows)} rows, {int(labels.sum())} labelled {given.label!r}, seed {given.seed}; 95 % "
        "bootstrap interval over rows",
        [
            "selector",
            "AUC",
            "more than the level",
            f"labelled in the best 20 % (base rate {base:.2f})",
        ],
        (
            [
                name,
                said(one["auc"], one["auc_interval"]),
                said(one["more"], one["more_interval"]),
                said(one["precision"], one["precision_interval"]),
            ]
            for name, one in facts.items()
        ),
    )
    last_line(rows=len(rows), base=base, seed=given.seed, models=run.slugs, selectors=facts)


if __name__ == "__main__":
    main()
