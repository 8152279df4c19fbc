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
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from selectit_hf import storage
from selectit_hf.errors import RunError
from selectit_hf.mirror import FRESH, Alone
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
        mirror: what the run folder is a copy of; shards are committed there too.
        of: the fingerprint of the rows, which a sidecar says; that of other rows is bad.
    """

    def __init__(
        self,
        folder: Path,
        rows: int,
        size: int,
        key: str,
        shape: Shape | None = None,
        mirror: Alone | None = None,
        of: str | None = None,
    ) -> None:
        self.folder, self.rows, self.size, self.key, self.of = folder, rows, size, key, of
        self.mirror = mirror or Alone()
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
        version = self.version(number)
        if version is None:
            return None
        known = self._checked.get(number)
        if known is None or known[0] != version:
            facts, _ = self._read(number)
            if facts is None:
                return None
            known = self._checked[number] = version, facts
        return known[1]

    def glance(self) -> list[dict[str, Any] | None]:
        """The sidecar of each shard: as `facts`, else the mirror's, whose table is not read."""
        there = self.mirror.sidecars(self.folder)
        return [
            self.facts(number) or self._said(number, there.get(self._path(number, "json"), b""))
            for number in range(len(self))
        ]

    def version(self, number: int) -> tuple[tuple[int, int, int], ...] | None:
        """What changes whenever a shard is written here; ``None`` where there is none."""
        try:
            stats = [self._path(number, ending).stat() for ending in ("json", "parquet")]
        except OSError:
            return None
        return tuple((stat.st_ino, stat.st_size, stat.st_mtime_ns) for stat in stats)

    def is_committed(self, number: int) -> bool:
        """Whether a shard was committed, whole or not: a glance, where `facts` reads it all."""
        return self._path(number, "json").exists()

    def is_elsewhere(self, number: int, age: float = 0.0) -> bool:
        """Whether a shard was committed to the mirror, as was known ``age`` seconds ago."""
        return self.mirror.has(self._path(number, "json"), age)

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

    def hashes(self) -> list[str]:
        """The SHA-256 of each shard's table; the shards are whole, see `check`."""
        self.check()
        return [str((self.facts(number) or {})["sha256"]) for number in range(len(self))]

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

    def commit(
        self, number: int, table: pa.Table, facts: dict[str, Any], replace: bool = False
    ) -> None:
        """Make a shard durable, its sidecar last.

        Args:
            number: which shard.
            table: one row for each row of the shard, in order.
            facts: what else its sidecar says, JSON-able.
            replace: take the place of a shard that is whole; else that one stays.

        Raises:
            OSError: the disk is full or failing; the shard is not committed.
        """
        rows = self.rows_of(number)
        assert table.num_rows == len(rows), f"{table.num_rows} rows for shard {number} of {rows}"
        if replace or self.facts(number) is None:  # else by another worker, meanwhile
            self._write(number, table, facts)
        self.send(number, replace=replace)
        storage.reached("shard committed")

    def _write(self, number: int, table: pa.Table, facts: dict[str, Any]) -> None:
        rows = self.rows_of(number)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.set_aside(number)
        buffer = io.BytesIO()
        pq.write_table(table, buffer)
        data = buffer.getvalue()
        storage.write(self._path(number, "parquet"), data)
        own = {"rows": [rows.start, rows.stop], "key": self.key, "sha256": storage.sha256(data)}
        own |= {} if self.of is None else {"of": self.of}
        said = json.loads(json.dumps({**own, **facts}))
        storage.write_json(self._path(number, "json"), {**said, "facts_sha256": _hash(said)})

    def send(self, number: int, age: float = 0.0, replace: bool = False) -> None:
        """Commit to the mirror what was committed here, unless it was; see `is_elsewhere`."""
        if not replace and self.is_elsewhere(number, age):
            return
        self.mirror.send(self._path(number, "parquet"))
        storage.reached("table mirrored")
        self.mirror.send(self._path(number, "json"))
        storage.reached("sidecar mirrored")

    def hashes_there(self) -> list[str] | None:
        """As `hashes`, of the mirror, by its sidecars alone; ``None`` where one is missing."""
        there = self.mirror.sidecars(self.folder)
        sidecars = [there.get(self._path(number, "json"), b"") for number in range(len(self))]
        facts = [storage.json_object(one) or {} for one in sidecars]
        return [str(one["sha256"]) for one in facts] if all("sha256" in f for f in facts) else None

    def refresh(self, number: int) -> None:
        """Have one shard as the mirror has it, if it is another there, and whole."""
        path = self._path(number, "json")
        there = self.mirror.read(path)
        if there is not None and not (path.exists() and path.read_bytes() == there):
            self._take(number, there)

    def fetch(self, repair: bool = False) -> None:
        """Have every shard as the mirror has it.

        With ``repair``, what is bad there is sent anew or removed, to be made again.
        """
        if not self.mirror.url:
            return
        there, sizes = self.mirror.sidecars(self.folder), self.mirror.sizes(self.folder)
        for number in range(len(self)):
            sidecar = there.get(self._path(number, "json"))
            if self._is_as_there(number, sidecar, sizes):
                continue
            bad = sidecar is not None and not self._take(number, sidecar)
            if repair:
                self._repair(number, bad)

    def _is_as_there(self, number: int, sidecar: bytes | None, sizes: Mapping[str, int]) -> bool:
        path, table = self._path(number, "json"), self._path(number, "parquet")
        return (
            self.facts(number) is not None
            and path.read_bytes() == sidecar
            and table.stat().st_size == sizes.get(table.name)
        )

    def _repair(self, number: int, bad: bool) -> None:
        path = self._path(number, "json")
        if bad:  # where files are not whole at once, it may be on its way
            time.sleep(self.mirror.poll)
            if not self._take(number, self.mirror.read(path) or b""):
                self.mirror.remove(path)
        if self.facts(number) is not None:
            self.send(number, FRESH)

    def _take(self, number: int, sidecar: bytes) -> bool:
        """Write a shard as it is in the mirror, if it is whole there."""
        paths = [self._path(number, ending) for ending in ("parquet", "json")]
        data = self.mirror.read(paths[0])
        if data is None or self._whole(number, sidecar, data) is None:
            return False
        self.set_aside(number)
        self.folder.mkdir(parents=True, exist_ok=True)
        paths[1].unlink(missing_ok=True)
        for path, written in zip(paths, (data, sidecar), strict=True):
            storage.write(path, written)
        return True

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

    def _read(self, number: int) -> tuple[dict[str, Any] | None, bytes]:
        """A shard's sidecar and the bytes of its table; ``None`` where they are not as committed.

        The sidecar comes first: a table that replaces another's between the two does not fit it.
        """
        try:
            sidecar = self._path(number, "json").read_bytes()
            data = self._path(number, "parquet").read_bytes()
        except OSError:
            return None, b""
        facts = self._whole(number, sidecar, data)
        return (None, b"") if facts is None else (facts, data)

    def _whole(self, number: int, sidecar: bytes, data: bytes) -> dict[str, Any] | None:
        """What a sidecar says, if it and the table are as they were committed."""
        facts = self._said(number, sidecar)
        return facts if facts and facts.get("sha256") == storage.sha256(data) else None

    def _said(self, number: int, sidecar: bytes) -> dict[str, Any] | None:
        """What a sidecar says, if it is as it was committed and of this shard."""
        facts = storage.json_object(sidecar)
        rows = self.rows_of(number)
        ours = (
            facts is not None
            and _is_as_written(facts)
            and misfit(facts, self._shape) is None
            and facts.get("rows") == [rows.start, rows.stop]
            and _key(facts) == self.key
            and facts.get("of", self.of) == self.of
        )
        return facts if ours else None

    def _not_whole(self, number: int) -> RunError:
        rows = self.rows_of(number)
        return RunError(
            f"The rows {rows.start} to {rows.stop - 1} are not rated by {self.folder.name!r}, or "
            "their shard is damaged; run the same 'selectit run' command again to rate them."
        )

    def _rename_bad(self, path: Path) -> None:
        with suppress(FileNotFoundError):  # another worker was quicker
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
