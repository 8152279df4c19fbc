"""What do kept rows look like?

Keeps the best 20 % of the rows of agreement.py by each selector and compares them with the other
rows: the mean length of the response, the share with a digit, and the mean cosine distance to the
centre of all rows (by their words), with a 95 % bootstrap interval over rows. The labelled rows are
compared with the others likewise. The last line is JSON.

    python scripts/evidence/contents.py --rows labelled.json --model A --model B --n 600
"""

from typing import Any

import numpy as np
from agreement import stratified
from common import Floats, interval, kept, last_line, parser, rated, said, selectors, table
from numpy.typing import NDArray

from selectit_hf.formats.rows import Pair, RowReader
from selectit_hf.selectors.diversity import embed


def measures(pairs: list[Pair]) -> dict[str, Floats]:
    """(n) of each row."""
    vectors = embed(["\n".join(pair) for pair in pairs]).astype(np.float64)
    centre = vectors.mean(axis=0)
    centre /= np.linalg.norm(centre)
    return {
        "characters": np.array([float(len(pair.response)) for pair in pairs]),
        "digits": np.array([float(any(map(str.isdigit, p.response))) for p in pairs]),
        "distance": 1 - vectors @ centre,
    }


def main() -> None:
    arguments = parser(__doc__ or "", 600)
    arguments.add_argument("--label", default="claude_accurate")
    given = arguments.parse_args()
    data, labels = stratified(given.rows, given.label, given.n, given.seed)
    run = rated(data, f"agreement-{given.label}-{given.n}-{given.seed}", given)
    pairs = [pair for pair in RowReader().pairs(data[:]) if isinstance(pair, Pair)]
    found = measures(pairs)
    chosen = {name: kept(scores) for name, scores in selectors(run, data, given).items()}
    facts: dict[str, dict[str, Any]] = {}
    for name, best in {f"labelled {given.label!r}": labels, **chosen}.items():
        facts[name] = {}
        for what, values in found.items():

            def difference(
                i: NDArray[np.int64],
                values: Floats = values,
                best: NDArray[np.bool_] = best,
            ) -> float:
                inside, outside = values[i][best[i]], values[i][~best[i]]
                both = len(inside) and len(outside)
                return float(inside.mean() - outside.mean()) if both else float("nan")

            facts[name][what] = {
                "kept": float(values[best].mean()),
                "others": float(values[~best].mean()),
                "difference": difference(np.arange(len(data))),
                "interval": interval(difference, len(data), given.seed),
            }
    table(
        f"The best 20 % of {len(data)} rows, and the {int(labels.sum())} labelled ones, less the "
        f"others, seed {given.seed}; 95 % bootstrap interval over rows",
        ["selector", *found],
        (
            [name, *(said(one["difference"], one["interval"]) for one in by.values())]
            for name, by in facts.items()
        ),
    )
    last_line(rows=len(data), seed=given.seed, selectors=facts)


if __name__ == "__main__":
    main()
