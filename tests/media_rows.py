"""Rows with pictures, also nested ones."""

import io
from typing import Any

import pyarrow as pa
from datasets import Dataset, Features, Image, List, Value
from finished_runs import make_rows
from PIL import Image as Picture


def png(shade: int) -> bytes:
    file = io.BytesIO()
    Picture.new("L", (2, 2), shade).save(file, "png")
    return file.getvalue()


def typed(kinds: dict[str, Any], values: dict[str, list[Any]], count: int = 30) -> Dataset:
    rows = make_rows(count)
    schema = Features({**rows.features, **kinds}).arrow_schema
    return Dataset(pa.table({**rows.to_dict(), **values}, schema=schema))


NESTED = {"turns": List({"picture": Image(), "note": Value("string")})}
