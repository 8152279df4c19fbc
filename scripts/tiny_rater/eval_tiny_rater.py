"""Measure how well tiny-rater tells good responses from defective ones.

Why: the bundled checkpoint is useful only if SelectIT's scores, computed from its ratings, separate
good rows from broken ones. This script measures that over several seeds, on rows whose instructions
were never trained on: the AUC (ties counted half) of the token score, of the mean of the k token
scores and of the sentence score; by defect and by family; with rating prompts that training used
and with others; on two task families that training never saw; and the share of the top 20 % that is
defective. A checkpoint with random weights and the response's length are given for comparison.

    python scripts/tiny_rater/eval_tiny_rater.py                     # five seeds, tables on stderr
    python scripts/tiny_rater/eval_tiny_rater.py --write-card  # and into the checkpoint's README.md
    python scripts/tiny_rater/eval_tiny_rater.py --seeds 101 --rows 180      # a first look

The last line of stdout is a JSON object with every figure.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from tiny_rater_data import (
    DEFECTS,
    PACKAGE_DATA,
    SEEN_FAMILIES,
    UNSEEN_FAMILIES,
    UNSEEN_RATING_PROMPTS,
    K,
    length_auc,
    rows,
    seen_rating_prompts,
)
from transformers import AutoConfig, AutoModelForCausalLM

from selectit_hf import SentenceScore
from selectit_hf.rating.reflection import sentence_score, token_score

ALPHA = 0.2
TOP = 0.2
CARD_MARKS = ("<!-- measured: begin -->", "<!-- measured: end -->")

Row = dict[str, str]


# --- ratings and scores ------------------------------------------------------------------------


def rate(checkpoint: Path, data: Sequence[Row], rating_prompts: Sequence[str]) -> np.ndarray:
    """The package's own ratings: log-probabilities of the digits 1..k, (rows, prompts, k)."""
    scorer = SentenceScore(str(checkpoint), rating_prompts=rating_prompts)
    columns = ("instruction", "input", "output")
    ratings = scorer.rate({name: [row[name] for row in data] for name in columns})
    if set(ratings.statuses) != {"ok"}:
        raise SystemExit(f"not every row was rated: {sorted(set(ratings.statuses))}")
    return ratings.logprobs


def scores(logprobs: np.ndarray) -> dict[str, np.ndarray]:
    """The three levels that are compared: the first prompt, the plain mean, the sentence level."""
    tokens = token_score(logprobs)
    return {
        "token": tokens[:, 0],
        "mean": sentence_score(tokens, alpha=0.0),
        "sentence": sentence_score(tokens, alpha=ALPHA),
    }


def auc(good: np.ndarray, bad: np.ndarray) -> float:
    """The chance that a good row outscores a defective one, ties counted half."""
    ranks = np.sort(bad)
    below = np.searchsorted(ranks, good, "left")
    not_above = np.searchsorted(ranks, good, "right")
    return float((below + not_above).mean() / (2 * len(bad)))


# --- one seed ----------------------------------------------------------------------------------


def split_auc(data: Sequence[Row], score: np.ndarray, keep: Iterable[bool] | None = None) -> float:
    bad = np.array([row["defect"] != "none" for row in data])
    keep = np.ones(len(data), bool) if keep is None else np.array(list(keep))
    return auc(score[keep & ~bad], score[keep & bad])


def top_share(data: Sequence[Row], score: np.ndarray) -> dict[str, float]:
    bad = np.array([row["defect"] != "none" for row in data])
    kept = np.argsort(-score, kind="stable")[: int(len(data) * TOP)]
    return {
        "defective_whole": float(bad.mean()),
        "defective_top": float(bad[kept].mean()),
        "ratio": float(bad[kept].mean() / bad.mean()),
    }


def measure(checkpoint: Path, seed: int, count: int) -> dict:
    data = list(rows(seed, count))
    strange = list(rows(seed, count // 4, tuple(UNSEEN_FAMILIES)))
    prompts = {"seen": seen_rating_prompts()[:K], "unseen": UNSEEN_RATING_PROMPTS[:K]}
    by_phrasing = {name: scores(rate(checkpoint, data, texts)) for name, texts in prompts.items()}
    sentence = by_phrasing["seen"]["sentence"]
    odd = scores(rate(checkpoint, strange, prompts["seen"]))["sentence"]
    random_scores = scores(rate_at_random(checkpoint, data, prompts["seen"], seed))
    defects = [row["defect"] for row in data]
    return {
        "auc": {
            phrasing: {level: split_auc(data, score) for level, score in levels.items()}
            for phrasing, levels in by_phrasing.items()
        },
        "defect": {
            phrasing: {
                d: split_auc(data, levels["sentence"], (x in ("none", d) for x in defects))
                for d in DEFECTS
            }
            for phrasing, levels in by_phrasing.items()
        },
        "defect_share": {
            d: defects.count(d) / (len(data) - defects.count("none")) for d in DEFECTS
        },
        "family": {
            f: split_auc(data, sentence, (row["family"] == f for row in data))
            for f in SEEN_FAMILIES
        },
        "unseen_family": {"both": split_auc(strange, odd)}
        | {
            f: split_auc(strange, odd, (row["family"] == f for row in strange))
            for f in UNSEEN_FAMILIES
        },
        "top": {phrasing: top_share(data, s["sentence"]) for phrasing, s in by_phrasing.items()},
        "random": {level: split_auc(data, score) for level, score in random_scores.items()},
        "random_top": top_share(data, random_scores["sentence"]),
        "length": length_auc(data),
    }


def rate_at_random(
    checkpoint: Path, data: Sequence[Row], texts: Sequence[str], seed: int
) -> np.ndarray:
    """The ratings of the same architecture and tokenizer with random weights."""
    torch.manual_seed(seed)
    with tempfile.TemporaryDirectory() as folder:
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(checkpoint))
        model.save_pretrained(folder)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(checkpoint / name, folder)
        return rate(Path(folder), data, texts)


# --- all seeds ---------------------------------------------------------------------------------


def summarise(results: Sequence[dict | float]) -> dict:
    """Leaf by leaf, the mean, minimum and maximum over the seeds."""
    if isinstance(results[0], dict):
        return {key: summarise([r[key] for r in results]) for key in results[0]}
    low, high = min(results), max(results)
    return {"mean": round(float(np.mean(results)), 4), "min": round(low, 4), "max": round(high, 4)}


def table(head: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *body]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def cells(*leaves: dict) -> list[str]:
    return [f"{leaf['mean']:.3f} ({leaf['min']:.3f})" for leaf in leaves]


LEVELS = {
    "token": "token level, first rating prompt",
    "mean": "mean of 5 token scores (alpha = 0)",
    "sentence": "sentence level (alpha = 0.2)",
}


def level_table(summary: dict) -> str:
    seen, unseen, chance = summary["auc"]["seen"], summary["auc"]["unseen"], summary["random"]
    body = ([text, *cells(seen[x], unseen[x], chance[x])] for x, text in LEVELS.items())
    return table(["score", "seen phrasings", "unseen phrasings", "random weights"], body)


def level_sentence(summary: dict) -> str:
    """What averaging over the prompts adds, and what the deviation adds to that."""
    means = {p: {x: leaf["mean"] for x, leaf in a.items()} for p, a in summary["auc"].items()}
    averaged = [f"{m['mean'] - m['token']:+.4f}" for m in means.values()]
    deviated = [f"{m['sentence'] - m['mean']:+.4f}" for m in means.values()]
    return f"""Averaging over five rating prompts changes the mean AUC of the first prompt by
{averaged[0]} (seen) and {averaged[1]} (unseen phrasings). The deviation term of the sentence level
changes that of the average by {deviated[0]} and {deviated[1]}."""


def defect_table(summary: dict) -> str:
    share, seen, unseen = summary["defect_share"], *summary["defect"].values()
    body = ([d, f"{share[d]['mean']:.3f}", *cells(seen[d], unseen[d])] for d in DEFECTS)
    return table(["defect", "share of defects", "seen phrasings", "unseen phrasings"], body)


def family_table(leaves: dict) -> str:
    return table(["family", "AUC"], ([family, *cells(leaf)] for family, leaf in leaves.items()))


def top_table(summary: dict) -> str:
    kinds = {
        "seen phrasings": summary["top"]["seen"],
        "unseen phrasings": summary["top"]["unseen"],
        "random weights": summary["random_top"],
    }
    body = (
        [
            name,
            f"{top['defective_whole']['mean']:.3f}",
            f"{top['defective_top']['mean']:.3f}",
            f"{top['ratio']['mean']:.3f} ({top['ratio']['max']:.3f})",
        ]
        for name, top in kinds.items()
    )
    return table(["", "all rows", "top 20 %", "ratio"], body)


def tables(summary: dict, seeds: Sequence[int], count: int) -> str:
    """The card's tables; each cell is the mean over the seeds and, in brackets, the minimum."""
    length = summary["length"]
    parts = [
        f"""Seeds {seeds[0]} to {seeds[-1]}, {count} rows each, of instructions never trained on.
AUC of good against defective rows, ties counted half: the mean over the seeds and, in brackets, the
minimum.""",
        level_table(summary),
        level_sentence(summary),
        "By kind of defect (that kind against all good rows, sentence level):",
        defect_table(summary),
        "By task family (sentence level, seen phrasings):",
        family_table(summary["family"]),
        "Task families that training never saw (sentence level, seen phrasings):",
        family_table(summary["unseen_family"]),
        """The share of defective rows among all rows and in the top 20 % by sentence score, and
the ratio of the two (in brackets its maximum):""",
        top_table(summary),
        f"""The response's length alone: AUC {length["mean"]:.3f} (minimum {length["min"]:.3f},
maximum {length["max"]:.3f}).""",
    ]
    return "\n\n".join(parts)


def write_card(card: Path, text: str) -> None:
    before, rest = card.read_text(encoding="utf-8").split(CARD_MARKS[0])
    after = rest.split(CARD_MARKS[1])[1]
    card.write_text(f"{before}{CARD_MARKS[0]}\n{text}\n{CARD_MARKS[1]}{after}", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add(
        "--checkpoint", type=Path, default=PACKAGE_DATA / "tiny-rater", help="a checkpoint's folder"
    )
    add(
        "--seeds",
        type=int,
        nargs="+",
        default=[101, 102, 103, 104, 105],
        help="default: 101 to 105",
    )
    add(
        "--rows",
        type=int,
        default=900,
        help="rows a seed; a quarter more for unseen families (default: 900)",
    )
    add("--threads", type=int, default=2, help="CPU threads (default: 2)")
    add("--write-card", action="store_true", help="put the tables into the checkpoint's README.md")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    results = []
    for seed in args.seeds:
        results.append(measure(args.checkpoint, seed, args.rows))
        print(f"seed {seed}: AUC {results[-1]['auc']}", file=sys.stderr, flush=True)
    summary = summarise(results)
    text = tables(summary, args.seeds, args.rows)
    print(text, file=sys.stderr)
    if args.write_card:
        write_card(args.checkpoint / "README.md", text)
    print(json.dumps({"seeds": args.seeds, "rows": args.rows} | summary))


if __name__ == "__main__":
    main()
