"""Columns of a run that are committed part by part: a table and a sidecar for each range of rows.

    NNNNN.parquet   the rows of shard N
    NNNNN.json      its sidecar, written last: the commit. It holds the shard's rows, the key of the
                    settings, the hash of the table, the hash of its own facts, and what was learnt

Nothing is taken on trust: a shard whose sidecar is there and does not fit what is on the disk is
*bad*. It is never read; it is set aside and made again.
"""

import io
import json
import logging
import re
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from selectit_hf import storage
from selectit_hf.errors import RunError
from selectit_hf.shapes import Shape, misfit

__all__ = ["Shards"]

logger = logging.getLogger(__name__)

NAME = re.compile(r"(\d{5,})\.(parquet|json|claim|retry)")
FIRST_FORMAT = {
    "rows": [int],
    "sha256": str,
    "rater": {"model": str, "revision": str, "parameters": int, "rating_key": str},
    "oom_splits": int,
    "seconds": (int, float),
}
"""The facts of a sidecar of format 1, which did not hash them."""


class Shards:
    """The committed parts of one set of columns over a run's rows.

    Args:
        folder: where they lie.
        rows: how many rows the run has.
        size: how many rows a shard has; the last one may have fewer.
        key: a hash of all settings that can change a value; another key's shards are bad.
        shape: what a sidecar must say beside the shard's own facts; see `selectit_hf.shapes`.
    """

    def __init__(
        self, folder: Path, rows: int, size: int, key: str, shape: Shape | None = None
    ) -> None:
        self.folder, self.rows, self.size, self.key = folder, rows, size, key
        self._shape = shape or {}
        self._checked: dict[int, tuple[Any, dict[str, Any]]] = {}

    def __len__(self) -> int:
        return -(-self.rows // self.size)

    def rows_of(self, number: int) -> range:
        """The rows of one shard."""
        start = number * self.size
        return range(start, min(start + self.size, self.rows))

    def ranges(self) -> list[range]:
        """The rows of each shard."""
        return [self.rows_of(number) for number in range(len(self))]

    # What is there

    def facts(self, number: int) -> dict[str, Any] | None:
        """The sidecar of a committed, whole shard, else ``None``. Hashes what changed on disk."""
        signature = self._signature(number)
        if signature is None:
            return None
        known = self._checked.get(number)
        if known is None or known[0] != signature:
            facts, _ = self._read(number)
            if facts is None:
                return None
            known = self._checked[number] = signature, facts
        return known[1]

    def is_committed(self, number: int) -> bool:
        """Whether a shard was committed, whole or not: a glance, where `facts` reads it all."""
        return self._path(number, "json").exists()

    def committed_at(self, number: int) -> int:
        """When a shard was committed, in nanoseconds by the clock of the file system."""
        return self._path(number, "json").stat().st_mtime_ns

    def missing(self) -> list[int]:
        """The shards that are to be made, or made again."""
        return [number for number in range(len(self)) if self.facts(number) is None]

    def bad(self) -> list[int]:
        """The shards that were committed and are not whole."""
        return [number for number in self.missing() if self.is_committed(number)]

    def strays(self) -> list[str]:
        """Files that are no part of any shard of this run."""
        if not self.folder.is_dir():
            return []
        return sorted(
            path.name
            for path in self.folder.iterdir()
            if not path.name.startswith(".") and not self._is_ours(path.name)
        )

    def check(self) -> None:
        """Refuse unless the shards cover all rows exactly once.

        Raises:
            RunError: a shard is missing or bad, or there are files of other shards.
        """
        for number in range(len(self)):
            if self.facts(number) is None:
                raise self._not_whole(number)
        strays = self.strays()
        if strays:
            raise RunError(
                f"The folder {self.folder.name!r} of the run holds {strays[0]!r}"
                f"{f' and {len(strays) - 1} more' if len(strays) > 1 else ''}, which is no shard "
                "of its plan; run the same 'selectit run' command again, which sets it aside."
            )

    def table(self, number: int) -> pa.Table:
        """The rows of one shard; the bytes that are read are the bytes that were hashed.

        Raises:
            RunError: it is not there, or not whole.
        """
        facts, data = self._read(number)
        if facts is None:
            raise self._not_whole(number)
        return pq.read_table(pa.BufferReader(data))

    # Writing

    def commit(self, number: int, table: pa.Table, facts: dict[str, Any]) -> None:
        """Make a shard durable, its sidecar last. One that is whole already stays as it is.

        Args:
            number: which shard.
            table: one row for each row of the shard, in order.
            facts: what else its sidecar says, JSON-able.

        Raises:
            OSError: the disk is full or failing; the shard is not committed.
        """
        rows = self.rows_of(number)
        assert table.num_rows == len(rows), f"{table.num_rows} rows for shard {number} of {rows}"
        if self.facts(number) is not None:  # by another worker, meanwhile
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        self.set_aside(number)
        buffer = io.BytesIO()
        pq.write_table(table, buffer)
        data = buffer.getvalue()
        storage.write(self._path(number, "parquet"), data)
        own = {"rows": [rows.start, rows.stop], "key": self.key, "sha256": storage.sha256(data)}
        said = json.loads(json.dumps({**own, **facts}))
        storage.write_json(self._path(number, "json"), {**said, "facts_sha256": _hash(said)})
        storage.reached("shard committed")

    def set_aside(self, number: int) -> None:
        """Rename what is left of a bad shard to ``.bad-...``, and say so in the log."""
        if self.is_committed(number) and self.facts(number) is None:
            rows = self.rows_of(number)
            logger.warning(
                "The shard of rows %d to %d in %s is not what was committed; it is set aside.",
                rows.start, rows.stop - 1, self.folder.name,
            )  # fmt: skip
            for ending in ("json", "parquet"):
                self._rename_bad(self._path(number, ending))

    def set_strays_aside(self) -> None:
        """Rename files that are no part of any shard to ``.bad-...``, and say so in the log."""
        for name in self.strays():
            logger.warning("%s in %s is no shard of the plan; set aside.", name, self.folder.name)
            self._rename_bad(self.folder / name)

    def beside(self, number: int, ending: str) -> Path:
        """A file beside a shard: its ``claim``, or what is known of its ``retry``."""
        return self._path(number, ending)

    # Inside

    def _path(self, number: int, ending: str) -> Path:
        return self.folder / f"{number:05d}.{ending}"

    def _is_ours(self, name: str) -> bool:
        match = NAME.fullmatch(name)
        if match is None:
            return False
        number = int(match[1])
        return number < len(self) and name == self._path(number, match[2]).name

    def _signature(self, number: int) -> tuple[tuple[int, int, int], ...] | None:
        try:
            stats = [self._path(number, ending).stat() for ending in ("json", "parquet")]
        except OSError:
            return None
        return tuple((stat.st_ino, stat.st_size, stat.st_mtime_ns) for stat in stats)

    def _read(self, number: int) -> tuple[dict[str, Any] | None, bytes]:
        """A shard's sidecar and the bytes of its table; ``None`` where they are not as committed.

        The sidecar comes first: a table that replaces another's between the two does not fit it.
        """
        try:
            facts = storage.read_json(self._path(number, "json"))
            data = self._path(number, "parquet").read_bytes()
        except (RunError, OSError):
            return None, b""
        rows = self.rows_of(number)
        whole = (
            _is_as_written(facts)
            and misfit(facts, self._shape) is None
            and facts.get("rows") == [rows.start, rows.stop]
            and _key(facts) == self.key
            and facts.get("sha256") == storage.sha256(data)
        )
        return (facts, data) if whole else (None, b"")

    def _not_whole(self, number: int) -> RunError:
        rows = self.rows_of(number)
        return RunError(
            f"The rows {rows.start} to {rows.stop - 1} are not rated by {self.folder.name!r}, or "
            "their shard is damaged; run the same 'selectit run' command again to rate them."
        )

    def _rename_bad(self, path: Path) -> None:
        if path.exists():
            path.replace(path.with_name(f".bad-{time.time_ns()}-{path.name}"))


def _hash(facts: dict[str, Any]) -> str:
    return storage.sha256(json.dumps(facts, sort_keys=True).encode())


def _is_as_written(facts: dict[str, Any]) -> bool:
    said = {key: value for key, value in facts.items() if key != "facts_sha256"}
    if "facts_sha256" not in facts:
        return set(facts) == set(FIRST_FORMAT) and misfit(facts, FIRST_FORMAT) is None
    return bool(facts["facts_sha256"] == _hash(said))


def _key(facts: dict[str, Any]) -> Any:
    if "key" in facts:
        return facts["key"]
    rater = facts.get("rater")
    return rater.get("rating_key") if isinstance(rater, dict) else None
