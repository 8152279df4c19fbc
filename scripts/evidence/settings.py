"""What do K, alpha, the variant and the rating prompts change?

Scores the rows of agreement.py by the sentence level (of several models, the model level) and
prints the AUC of labelled over other rows for each setting, one varied at a time; 95 % bootstrap
intervals over rows. Every K and every file of prompts is rated on its own. The last line is JSON.

    python scripts/evidence/settings.py --rows labelled.json --model A --prompts theirs.txt --n 600
"""

from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
from agreement import stratified
from common import Floats, auc, interval, last_line, parser, precision, rated, ratings, said, table
from numpy.typing import NDArray

from selectit_hf.rating import reflection
from selectit_hf.runs import Run

ALPHAS = (0.0, 0.1, 0.2, 0.4, 0.6, 0.8)


def level(run: Run, alpha: float = 0.2, variant: Any = "paper") -> Floats:
    """The sentence level, or the model level of several."""
    found = ratings(run)
    tokens = [reflection.token_score(one.logprobs, variant) for one in found.values()]
    sentences = [reflection.sentence_score(one, alpha) for one in tokens]
    parameters = [int(one.rater["parameters"]) for one in found.values()]
    weights = reflection.model_weights(parameters)
    return reflection.model_score(np.stack(sentences, axis=-1), weights)


def variations(rows: Any, given: Namespace) -> dict[str, Floats]:
    name = f"agreement-{given.label}-{given.n}-{given.seed}"
    default = rated(rows, name, given)
    found = {f"alpha {alpha:g}": level(default, alpha) for alpha in ALPHAS}
    found["variant paper"] = level(default)
    found["variant released, its second softmax"] = level(default, variant="released")
    for k in given.k:
        run = default if k == 5 else rated(rows, f"{name}-k{k}", given, k=k)
        found[f"K {k}"] = level(run)
    for path in given.prompts or ():
        run = rated(rows, f"{name}-{Path(path).stem}", given, rating_prompts=path)
        found[f"rating prompts of {Path(path).name}"] = level(run)
    return found


def main() -> None:
    arguments = parser(__doc__ or "", 600)
    arguments.add_argument("--label", default="claude_accurate")
    arguments.add_argument("--prompts", action="append", help="Text file of rating prompts.")
    arguments.add_argument("--k", type=int, nargs="*", default=[3, 5, 7, 9])
    given = arguments.parse_args()
    rows, labels = stratified(given.rows, given.label, given.n, given.seed)
    facts = {}
    for name, scores in variations(rows, given).items():

        def area(i: NDArray[np.int64], scores: Floats = scores) -> float:
            return auc(scores[i][labels[i]], scores[i][~labels[i]])

        facts[name] = {
            "auc": area(np.arange(len(rows))),
            "interval": interval(area, len(rows), given.seed),
            "precision": precision(scores, labels),
        }
    base = float(labels.mean())
    table(
        f"{len(rows)} rows, {int(labels.sum())} labelled {given.label!r}, seed {given.seed}",
        ["setting", "AUC", f"labelled in the best 20 % (base rate {base:.2f})"],
        (
            [name, said(one["auc"], one["interval"]), f"{one['precision']:.2f}"]
            for name, one in facts.items()
        ),
    )
    last_line(rows=len(rows), base=base, seed=given.seed, settings=facts)


if __name__ == "__main__":
    main()
