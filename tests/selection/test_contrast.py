"""What is measured of rows, quickly where it can be, is what a loop over the pairs measures."""

import re

import numpy as np
import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from selectit_hf.formats.rows import Pair, RowReader
from selectit_hf.selection import contrast

TEXT = st.one_of(
    st.none(),
    st.sampled_from(["", " ", "\n\t", " a", "٣ Arabic", "x ٣", "²", "\x1c", "é", "e\u0301", "a 7"]),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=6),
)


def literal(rows: Dataset, reader: RowReader) -> list[tuple[int, int, bool]]:
    found = []
    for pair in reader.pairs(rows[:]):
        is_pair = isinstance(pair, Pair)
        lengths = (len(pair.instruction), len(pair.response)) if is_pair else (-1, -1)
        found.append((*lengths, is_pair and re.search(r"\d", pair.response) is not None))
    return found


@settings(max_examples=100)
@given(st.lists(st.tuples(TEXT, TEXT, TEXT), min_size=1, max_size=9), st.booleans(), st.booleans())
def test_the_quick_way_is_the_loop(rows, has_input, named):
    names = ("instruction", "output", "input")[: 3 if has_input else 2]
    dataset = Dataset.from_list([dict(zip(names, row, strict=False)) for row in rows])
    dataset = dataset.cast_column("instruction", dataset.features["instruction"])
    reader = RowReader("instruction", "output") if named else RowReader()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(contrast, "ROWS", 4)
        found = contrast.measure(dataset, reader)
    measured = zip(found.instruction, found.response, found.numeric, strict=True)
    assert [(int(a), int(b), bool(c)) for a, b, c in measured] == literal(dataset, reader)
    assert (found.turns == -1).all()
    assert found.response.dtype == np.int32
