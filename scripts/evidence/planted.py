"""Which selectors put good rows above broken copies of them?

Plants every defect of `defects` in copies of the rows, rates and measures all, and prints for each
selector and defect the AUC, and for each selector the share of good rows among the best 20 % of
rows and copies, with 95 % bootstrap intervals over source rows. The last line is JSON.

    python scripts/evidence/planted.py --rows rows.json --model A --model B --n 200
"""

import numpy as np
from common import interval, last_line, pairs, parser, precision, rated, said, selectors, table
from datasets import Dataset
from numpy.typing import NDArray

from selectit_hf.analysis.trust.auc import separation
from selectit_hf.analysis.trust.defects import DEFECTS, plant


def main() -> None:
    given = parser(__doc__ or "", 200).parse_args()
    chosen = pairs(given.rows, given.seed)[: given.n]
    planted = plant([pair for _, pair in chosen], [i for i, _ in chosen], DEFECTS, {}, given.seed)
    texts = Dataset.from_list(
        [{"instruction": pair.instruction, "output": pair.response} for pair in planted.pairs]
    )
    run = rated(texts, f"planted-{given.n}-{given.seed}", given)
    at, facts, best = planted.clean, {}, {}
    source, defect = planted.source[at:], planted.defect[at:]
    good = planted.defect < 0
    of_row = [np.flatnonzero(planted.source == i) for i in range(at)]
    for name, scores in selectors(run, texts, given).items():
        clean, copies = scores[:at], scores[at:]
        found = {
            one: separation(clean, copies[defect == i], source[defect == i], given.seed)
            for i, one in enumerate(planted.names)
        }
        found["all"] = separation(clean, copies, source, given.seed, matched=False)

        def kept_good(rows: NDArray[np.int64], scores: NDArray[np.float64] = scores) -> float:
            drawn = np.concatenate([of_row[i] for i in rows])
            return precision(scores[drawn], good[drawn])

        ends = interval(kept_good, at, given.seed)
        best[name] = {"share": kept_good(np.arange(at)), "interval": ends}
        facts[name] = {one: auc._asdict() for one, auc in found.items()}
    counts = {one: int((defect == i).sum()) for i, one in enumerate(planted.names)}
    columns = [*planted.names, "all"]
    head = ["selector", *(f"{one} ({counts.get(one, len(defect))})" for one in columns)]
    cells = (
        [name, *(said(by[one]["auc"], (by[one]["low"], by[one]["high"])) for one in columns)]
        for name, by in facts.items()
    )
    table(
        f"AUC of {at} good rows over broken copies, seed {given.seed}; 95 % bootstrap interval "
        "over source rows",
        head,
        cells,
    )
    base = float(good.mean())
    table(
        f"The best 20 % of {len(good)} rows and copies",
        ["selector", f"good rows among them (base rate {base:.2f})"],
        ([name, said(one["share"], one["interval"])] for name, one in best.items()),
    )
    last_line(rows=at, seed=given.seed, models=run.slugs, auc=facts, base=base, best=best)


if __name__ == "__main__":
    main()
