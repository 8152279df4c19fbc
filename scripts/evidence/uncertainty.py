"""What does uncertainty add over the plain mean?

For each model, on the rows of agreement.py: the mean of the likeliest ratings (no uncertainty), the
mean of the token-level scores (uncertainty within a prompt) and the sentence level (and between
prompts), each as AUC of labelled over other rows, and what each step adds to the previous one, on
the same resamples, with 95 % bootstrap intervals over rows. The expected rating, which uses the
probabilities without the method's formula, is compared with the likeliest ratings as well. The last
line is JSON.

    python scripts/evidence/uncertainty.py --rows labelled.json --model A --model B --n 600
"""

import numpy as np
from agreement import stratified
from common import Floats, auc, interval, last_line, parser, rated, ratings, said, table
from numpy.typing import NDArray

from selectit_hf.rating import reflection
from selectit_hf.selectors.baselines import expected_rating


def steps(logprobs: NDArray[np.float32]) -> dict[str, tuple[Floats, Floats | None]]:
    """Scores, and what each is compared with."""
    tokens = reflection.token_score(logprobs)
    rated = ~np.isnan(logprobs).any(axis=(1, 2))
    plain = np.full(len(logprobs), np.nan)
    plain[rated] = 1.0 + logprobs[rated].argmax(axis=-1).mean(axis=-1)
    mean = reflection.sentence_score(tokens, 0.0)
    return {
        "likeliest rating, mean": (plain, None),
        "token-level scores, mean (alpha 0)": (mean, plain),
        "sentence level (alpha 0.2)": (reflection.sentence_score(tokens, 0.2), mean),
        "expected rating": (expected_rating(logprobs), plain),
    }


def main() -> None:
    arguments = parser(__doc__ or "", 600)
    arguments.add_argument("--label", default="claude_accurate")
    given = arguments.parse_args()
    rows, labels = stratified(given.rows, given.label, given.n, given.seed)
    run = rated(rows, f"agreement-{given.label}-{given.n}-{given.seed}", given)
    facts = {}
    for slug, rating in ratings(run).items():
        cells = []
        for name, (scores, before) in steps(rating.logprobs).items():

            def area(i: NDArray[np.int64], scores: Floats = scores) -> float:
                return auc(scores[i][labels[i]], scores[i][~labels[i]])

            def added(
                i: NDArray[np.int64], scores: Floats = scores, last: Floats | None = before
            ) -> float:
                return 0.0 if last is None else area(i, scores) - area(i, last)

            every = np.arange(len(rows))
            one = {
                "auc": area(every),
                "interval": interval(area, len(rows), given.seed),
                "added": added(every),
                "added_interval": interval(added, len(rows), given.seed),
            }
            facts[f"{name}:{slug}"] = one
            more = "" if before is None else said(one["added"], one["added_interval"])
            cells.append([name, said(one["auc"], one["interval"]), more])
        table(
            f"{slug}: {len(rows)} rows, {int(labels.sum())} labelled, seed {given.seed}; "
            f"rating mass {reflection.rating_mass(rating.logprobs).mean():.2g}",
            ["score", "AUC", "added to the line above; at the last, to the first"],
            cells,
        )
    last_line(rows=len(rows), seed=given.seed, steps=facts)


if __name__ == "__main__":
    main()
