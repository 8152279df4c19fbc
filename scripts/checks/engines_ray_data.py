"""Scorers in Ray Data's ``map_batches``, against ``Dataset.map``; a part of check_engines.py.

It checks the token level as a function, the sentence level in the actor form, which loads the model
once for each actor, and the model level as a function, each with every batch format. The last line
is JSON: for each, whether all values of all rows are the same. Both use the same batches, since the
other rows in a batch affect the last digit of a row's ratings.
"""

import json
from typing import Any

import numpy as np
import ray
from datasets import Dataset

import selectit_hf


def main() -> None:
    """Compare."""
    talk = [{"role": "user", "content": "x"}]
    rows: list[dict[str, Any]] = [
        {"i": i, "instruction": f"Say {i}.", "output": f"{i} " * (i % 5), "turns": talk}
        for i in range(12)
    ]
    rows.append({"i": 12, "instruction": None, "output": "x", "turns": None})
    dataset = Dataset.from_list(rows)
    token = selectit_hf.TokenScore("tiny-rater")
    sentence = selectit_hf.SentenceScore("tiny-rater")
    expected = dataset.map(token, batched=True, batch_size=5, features=token.features(dataset))
    features = sentence.features(expected)
    expected = expected.map(sentence, batched=True, batch_size=4, features=features)
    expected = expected.map(selectit_hf.model_score, batched=True)
    ray.init(address="auto", logging_level="ERROR", log_to_driver=False)
    source = ray.data.from_arrow(dataset.data.table)
    found = {}
    for name in ("numpy", "pandas", "pyarrow"):
        scored = source.map_batches(token, batch_size=5, batch_format=name)
        scored = scored.map_batches(
            selectit_hf.SentenceScore,
            fn_constructor_args=("tiny-rater",),
            compute=ray.data.ActorPoolStrategy(size=1),
            batch_size=4,
            batch_format=name,
        )
        scored = scored.map_batches(selectit_hf.model_score, batch_format=name)
        got = sorted(scored.take_all(), key=lambda row: row["i"])
        found[name] = [plain(row) for row in got] == expected.to_list()
    print(json.dumps(found))


def plain(value: Any) -> Any:
    """A value with lists for arrays and ``None`` for NaN."""
    if isinstance(value, dict):
        return {name: plain(one) for name, one in value.items()}
    if isinstance(value, (list, np.ndarray)):
        return [plain(one) for one in value]
    return None if isinstance(value, float) and value != value else value


if __name__ == "__main__":
    main()
