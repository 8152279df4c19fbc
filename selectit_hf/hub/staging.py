"""The files of a push, in a folder. The same selection makes the same bytes.

data/train-00000-of-00001.parquet    the kept rows (configuration "default")
scores/train-00000-of-00001.parquet  every row's ratings and scores (configuration "scores")
images/*.png                         the plots of the card
recipe.yaml                          what makes the selection again, with 'selectit run'
rating_prompts.txt, template.txt     what the recipe names, where not the defaults
README.md                            the card
selectit.json                        the manifest: every fact, and the SHA-256 of every file
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import DatasetInfo, SplitDict, SplitInfo
from datasets.info import DatasetInfosDict
from datasets.utils.metadata import MetadataConfigs
from huggingface_hub import DatasetCardData

from selectit_hf.analysis import Finished, Rows
from selectit_hf.formats import with_contents
from selectit_hf.hub.card import as_dict
from selectit_hf.hub.card_code import text_files
from selectit_hf.report import card_plots

__all__ = ["CARD", "MANIFEST", "File", "Staged", "describe_file", "stage"]

CARD = "README.md"
MANIFEST = "selectit.json"
CONFIGS = {"default": "data", "scores": "scores"}
GROUP_ROWS = 2000
SHARD_BYTES = 500 * 10**6


@dataclass(frozen=True)
class File:
    """A file as it will be on the Hub.

    Attributes:
        size, sha256: the size and hash of its bytes.
        git: its git object id, by which the Hub identifies small files.
        rows: the number of rows of a parquet file.
    """

    size: int
    sha256: str
    git: str
    rows: int | None = None


@dataclass(frozen=True)
class Staged:
    """A folder with the data and plots of a push; planning adds card and manifest.

    Attributes:
        folder: where they are.
        finished: the selection that they show.
        files: each file by its path in the repository.
        datasets_data: ``configs`` and ``dataset_info`` for the card's front matter.
    """

    folder: Path
    finished: Finished
    files: dict[str, File]
    datasets_data: dict[str, Any]

    @property
    def plots(self) -> list[str]:
        """The names of the plots."""
        return [Path(path).stem for path in self.files if path.startswith("images/")]

    def with_card(self, card: str, version: str) -> dict[str, File]:
        """Write card and manifest, and return all files."""
        (self.folder / CARD).write_text(card, encoding="utf-8", newline="\n")
        files = self.files | {CARD: describe_file(self.folder / CARD)}
        manifest = {
            "format": "selectit 1",
            "version": version,
            **self.finished.facts,
            "files": {path: _without_nulls(asdict(files[path])) for path in sorted(files)},
        }
        text = json.dumps(manifest, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        (self.folder / MANIFEST).write_text(text, encoding="utf-8", newline="\n")
        return files | {MANIFEST: describe_file(self.folder / MANIFEST)}


def stage(finished: Finished, folder: Path, shard_bytes: int = SHARD_BYTES) -> Staged:
    """Write data and plots of a finished selection into an empty folder, in bounded memory."""
    files: dict[str, File] = {}
    infos, configs = DatasetInfosDict(), MetadataConfigs()
    for config, rows in (("default", finished.selected), ("scores", finished.scores)):
        paths, loaded_bytes = _write_shards(folder, CONFIGS[config], rows, shard_bytes)
        written = {path: describe_file(folder / path) for path in paths}
        files |= written
        configs[config] = {"data_files": [{"split": "train", "path": paths}]}
        infos[config] = _info(rows, list(written.values()), loaded_bytes)
    for name, draw in card_plots(finished):
        path = folder / "images" / f"{name}.png"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(draw("png"))
        files[f"images/{name}.png"] = describe_file(path)
    for name, text in (text_files(finished.facts) or {}).items():
        (folder / name).write_bytes(text)
        files[name] = describe_file(folder / name)
    data = DatasetCardData()
    configs.to_dataset_card_data(data)
    infos.to_dataset_card_data(data)
    return Staged(folder, finished, files, as_dict(data))


def describe_file(path: Path) -> File:
    """Size and hashes of a file, read in pieces."""
    size = path.stat().st_size
    sha256, git = hashlib.sha256(), hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            sha256.update(piece)
            git.update(piece)
    rows = pq.read_metadata(path).num_rows if path.suffix == ".parquet" else None
    return File(size, sha256.hexdigest(), git.hexdigest(), rows)


def _info(rows: Rows, files: list[File], loaded_bytes: int) -> DatasetInfo:
    count = sum(file.rows or 0 for file in files)
    splits = SplitDict({"train": SplitInfo("train", num_bytes=loaded_bytes, num_examples=count)})
    return DatasetInfo(
        features=rows.features,
        splits=splits,
        download_size=sum(file.size for file in files),
        dataset_size=loaded_bytes,
    )


# Parquet


def _write_shards(folder: Path, name: str, rows: Rows, shard_bytes: int) -> tuple[list[str], int]:
    """Write rows to shards of about one size; return their paths and the rows' size in memory."""
    schema = rows.features.arrow_schema
    whole = (with_contents(table, rows.features) for table in rows.tables(None))
    groups = _groups(whole, schema)
    (folder / name).mkdir()
    partial: list[Path] = []
    total = 0
    group = next(groups, None)
    while group is not None:
        path = folder / name / f"{len(partial)}.partial"
        with path.open("wb") as sink, pq.ParquetWriter(sink, schema, compression="zstd") as writer:
            while group is not None and sink.tell() < shard_bytes:
                writer.write_table(group, row_group_size=GROUP_ROWS)
                total += group.nbytes
                group = next(groups, None)
        partial.append(path)
    paths = [f"{name}/train-{i:05d}-of-{len(partial):05d}.parquet" for i in range(len(partial))]
    for old, new in zip(partial, paths, strict=True):
        old.rename(folder / new)
    return paths, total


def _groups(tables: Iterator[pa.Table], schema: pa.Schema) -> Iterator[pa.Table]:
    """The same rows in row groups of one size, so that the same rows give the same bytes."""
    held: list[pa.Table] = []
    count = 0
    for table in tables:
        held.append(table.cast(schema))
        count += len(table)
        if count < GROUP_ROWS:
            continue
        whole = pa.concat_tables(held)
        full = count - count % GROUP_ROWS
        for start in range(0, full, GROUP_ROWS):
            yield whole.slice(start, GROUP_ROWS).combine_chunks()
        held, count = [whole.slice(full)], count - full
    if count:
        yield pa.concat_tables(held).combine_chunks()


# Plots


def _without_nulls(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}
