"""From ``bench.py``'s JSON to the table and the plot of docs/performance.md.

    python scripts/bench/bench.py ... --out ladder.json
    python scripts/bench/plot_bench.py docs/performance.png ladder.json short.json

Writes the plot and prints a Markdown table for each file; needs matplotlib.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

COLUMNS = {
    "prompts/s": lambda step: f"{step['prompts_per_second']:.2f}",
    "least to most": lambda step: "{:.2f} to {:.2f}".format(*step["spread"]),
    "samples/s": lambda step: f"{step['samples_per_second']:.2f}",
    "ratio": lambda step: f"{step['ratio']:.2f}",
    "to last position": lambda step: f"{step['ratio_to_last_position']:.2f}",
    "tokens": lambda step: f"{step['executed_over_released_tokens']:.3f}",
    "padding": lambda step: f"{step['padding']:.1%}",
    "peak MB": lambda step: f"{step['peak_megabytes']:.0f}",
    "max &#124;ΔP'&#124;": lambda step: f"{step['max_share_difference']:.0e}",
    "flips": lambda step: f"{step['argmax_flips']}",
    "Spearman": lambda step: f"{step['spearman']:.4f}",
    "top 20 %": lambda step: f"{step['top_fifth_overlap']:.0%}",
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("plot", type=Path, help="the PNG to write")
    parser.add_argument("results", type=Path, nargs="+", help="files of bench.py --out")
    arguments = parser.parse_args()
    found = [(path.stem, json.loads(path.read_text("utf-8"))) for path in arguments.results]
    for name, facts in found:
        for result in facts["results"]:
            print(f"\n### {name}: {heading(facts, result)}\n")
            print(table(result["steps"]))
    draw(arguments.plot, found)


def heading(facts: dict[str, Any], result: dict[str, Any]) -> str:
    return (
        f"{result['size']}, {result['parameters']:,} parameters, {result['dtype']}, "
        f"{result['prompts']:,} prompts of {result['mean_tokens']} tokens, {facts['machine']}, "
        f"{facts['threads']} threads, {facts['clock']} clock, {facts['repeats']} repeats"
    )


def table(steps: dict[str, dict[str, Any]]) -> str:
    lines = [
        "| step | " + " | ".join(COLUMNS) + " |",
        "|---|" + "---:|" * len(COLUMNS),
    ]
    for name, step in steps.items():
        lines.append(f"| {name} | " + " | ".join(of(step) for of in COLUMNS.values()) + " |")
    return "\n".join(lines)


def draw(path: Path, found: list[tuple[str, dict[str, Any]]]) -> None:
    """Bars of the ratio to the released loop, a group for each measurement."""
    figure, axes = plt.subplots(figsize=(8, 3.6), dpi=150)
    groups = [(name, result) for name, facts in found for result in facts["results"]]
    width = 0.8 / len(groups)
    for i, (name, result) in enumerate(groups):
        ratios = [step["ratio"] for step in result["steps"].values()]
        places = [j + i * width for j in range(len(ratios))]
        bars = axes.bar(places, ratios, width, label=f"{name} ({result['size']})")
        axes.bar_label(bars, fmt="%.2f", fontsize=7)
    axes.set_xticks([j + 0.4 - width / 2 for j in range(len(ratios))], list(result["steps"]))
    axes.set_ylabel("prompts a second,\nreleased loop = 1")
    axes.axhline(1, color="grey", linewidth=0.8)
    axes.legend(fontsize=8)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, metadata={"Software": None})


if __name__ == "__main__":
    main()
