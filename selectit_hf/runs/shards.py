"""Columns of a run that are committed part by part: a table and a sidecar for each range of rows.

    NNNNN.<first 12 of its sha256>.parquet   the rows of shard N, never overwritten
    NNNNN.json   its sidecar, written last: the commit. It names the table and its whole hash, and
                 holds the shard's rows, the key of the settings, and the hash of its own facts

A shard follows from plan and number alone, so two workers at one shard write the same table, and
where they do not (one had to split a batch) two tables lie side by side. The first sidecar stays.
Nothing is taken on trust: a sidecar that is not of this plan, or a table that is not what its
sidecar says, is set aside and made again.
"""

import io
import json
import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from selectit_hf.errors import RunError
from selectit_hf.runs import store as stores
from selectit_hf.runs.shapes import Shape, misfit
from selectit_hf.runs.store import Store

__all__ = ["Part", "Shards", "rows_words"]

logger = logging.getLogger(__name__)

SIDECAR = re.compile(r"(\d{5,})\.json")
TABLE = re.compile(r"(\d{5,})(\.[0-9a-f]{12})?\.parquet")
FIRST_FORMAT = {
    "rows": [int],
    "sha256": str,
    "rater": {"model": str, "revision": str, "parameters": int, "rating_key": str},
    "oom_splits": int,
    "seconds": (int, float),
}
"""The facts of a sidecar of plan format 1, which did not hash them."""

Facts = dict[str, Any]


class Part(NamedTuple):
    """The rows of one shard, and the fingerprint of the segment of the input that they are of."""

    rows: range
    of: str


class Shards:
    """The committed parts of one set of columns over a run's rows.

    Args:
        store: the run folder.
        folder: where they lie in it.
        parts: the rows of each.
        key: a hash of all settings that can change a value; another key's shards are bad.
        shape: what a sidecar must say beside the shard's own facts; see `shapes.misfit`.
        pinned: the hashes of the tables that the run's results are made of, by number.
    """

    def __init__(
        self,
        store: Store,
        folder: str,
        parts: Sequence[Part],
        key: str,
        shape: Shape | None = None,
        pinned: Sequence[str] = (),
    ) -> None:
        self.store, self.folder, self.parts, self.key = store, folder, parts, key
        self._shape, self._pinned = shape or {}, pinned
        self._known: dict[int, Facts] = {}

    def __len__(self) -> int:
        return len(self.parts)

    @property
    def name(self) -> str:
        """Whose columns they are, for messages."""
        return self.folder.rpartition("/")[2]

    def rows_of(self, number: int) -> range:
        """The rows of one shard."""
        return self.parts[number].rows

    # What is there

    def facts(self, number: int) -> Facts | None:
        """What a shard's sidecar says, now, if it is whole and of this plan; else ``None``."""
        name = self._sidecar(number)
        return self._said(number, self.store.read_many([name]).get(name, b""))

    def committed(self) -> dict[int, Facts]:
        """What the sidecars say that are whole and name a table that is there, by number.

        Sidecars that were seen before are not read again.
        """
        files = self.store.sizes(self.folder)
        there = [match for name in files if (match := SIDECAR.fullmatch(name))]
        numbers = {int(match[1]) for match in there} & set(range(len(self)))
        self._known = {n: facts for n, facts in self._known.items() if n in numbers}
        new = {self._sidecar(n): n for n in sorted(numbers - self._known.keys())}
        for name, data in self.store.read_many(list(new)).items():
            facts = self._said(new[name], data)
            if facts is not None:
                self._known[new[name]] = facts
        return {n: facts for n, facts in sorted(self._known.items()) if facts["table"] in files}

    def is_committed(self, number: int) -> bool:
        """Whether a shard has a whole sidecar, now, and the table that it names is there."""
        facts = self.facts(number)
        return facts is not None and self.store.exists(f"{self.folder}/{facts['table']}")

    def missing(self) -> list[int]:
        """The shards that are not committed."""
        there = self.committed()
        return [number for number in range(len(self)) if number not in there]

    def any_facts(self) -> Facts | None:
        """What one of the sidecars says, if there is a whole one."""
        return next(iter(self._known.values()), None) or next(
            iter(self.committed().values()), None
        )

    def all_facts(self) -> list[Facts]:
        """What the sidecars say, in order.

        Raises:
            RunError: some are not there, or not whole; all of them are named.
        """
        there = self.committed()
        self.refuse([number for number in range(len(self)) if number not in there])
        return list(there.values())

    def table(self, facts: Facts) -> pa.Table | None:
        """The table that a sidecar names, if it is there and whole.

        The bytes that are read are the bytes that are hashed.
        """
        try:
            data = self.store.read(f"{self.folder}/{facts['table']}")
        except FileNotFoundError:
            return None
        return pq.read_table(pa.BufferReader(data)) if _fits(data, facts) else None

    def refuse(self, missing: Sequence[int]) -> None:
        """Say which shards are missing.

        Raises:
            RunError: unless there are none.
        """
        if not missing:
            return
        several = f" ({len(missing)} of {len(self)} shards)" if len(missing) > 1 else ""
        named = ", ".join(rows_words(self.rows_of(number)) for number in missing[:8])
        more = ", and others" if len(missing) > 8 else ""
        raise RunError(
            f"{named}{more}{several} are not rated by {self.name!r}, or their shard is damaged; "
            "run the same 'selectit run' or 'selectit rate' command again to rate them."
        )

    # Writing

    def commit(self, number: int, table: pa.Table, facts: Facts, replace: bool = False) -> bool:
        """Make a shard durable: its table, then, if there still is none, its sidecar.

        Args:
            number: which shard.
            table: one row for each row of the shard, in order.
            facts: what else its sidecar says, JSON-able.
            replace: take the place of a shard that is whole; else that one stays.

        Returns:
            Whether this sidecar is the one that stays.

        Raises:
            OSError: the disk is full or failing; the shard is not committed.
        """
        rows = self.rows_of(number)
        assert table.num_rows == len(rows), f"{table.num_rows} rows for shard {number} of {rows}"
        buffer = io.BytesIO()
        pq.write_table(table, buffer)
        data = buffer.getvalue()
        digest = stores.sha256(data)
        name = f"{number:05d}.{digest[:12]}.parquet"
        self._keep(f"{self.folder}/{name}", data)
        stores.reached("table written")
        own = {"rows": [rows.start, rows.stop], "key": self.key, "of": self.parts[number].of}
        said = json.loads(json.dumps({**own, "table": name, "sha256": digest, **facts}))
        sidecar = stores.as_json({**said, "facts_sha256": _hash(said)})
        first = replace or self._is_free(number)
        stores.reached("looked again")
        if replace:
            self.store.write(self._sidecar(number), sidecar)
        elif first:
            first = self.store.create(self._sidecar(number), sidecar)
        stores.reached("shard committed")
        return first

    def set_aside(self, number: int) -> None:
        """Let a shard that is not what was committed be made again, and say so in the log."""
        logger.warning(
            "The shard of %s in %s is not what was committed; it is set aside.",
            rows_words(self.rows_of(number)),
            self.name,
        )
        self._known.pop(number, None)
        self.store.set_aside(self._sidecar(number))

    # Inside

    def _sidecar(self, number: int) -> str:
        return f"{self.folder}/{number:05d}.json"

    def _keep(self, name: str, data: bytes) -> None:
        """Write a table under its name, unless it is there; one of other bytes is damaged."""
        try:
            if self.store.read(name) == data:
                return
        except FileNotFoundError:
            pass
        self.store.write(name, data)

    def _is_free(self, number: int) -> bool:
        """Whether a shard is still to be committed; a sidecar that is not whole is set aside."""
        if self.is_committed(number):
            return False
        if self.store.exists(self._sidecar(number)):
            self.set_aside(number)
        return True

    def _said(self, number: int, sidecar: bytes) -> Facts | None:
        """What a sidecar says, if it is as it was committed and of this shard."""
        facts = stores.json_object(sidecar)
        rows, of = self.parts[number]
        if (
            facts is None
            or not _is_as_written(facts)
            or misfit(facts, self._shape) is not None
            or facts.get("rows") != [rows.start, rows.stop]
            or _key(facts) != self.key
            or facts.get("of", of) != of
        ):
            return None
        facts.setdefault("table", f"{number:05d}.parquet")  # as plan formats 1 and 2 named it
        named = TABLE.fullmatch(str(facts["table"]))
        return self._as_pinned(number, facts) if named and int(named[1]) == number else None

    def _as_pinned(self, number: int, facts: Facts) -> Facts:
        """The table that the results are made of comes before one that a late worker committed."""
        pin = self._pinned[number] if number < len(self._pinned) else facts["sha256"]
        if pin == facts["sha256"]:
            return facts
        pinned = {**facts, "sha256": pin, "table": f"{number:05d}.{pin[:12]}.parquet"}
        return facts if self.table(pinned) is None else pinned


def rows_words(rows: range) -> str:
    """As in ``the rows 0 to 3``."""
    return f"the rows {rows.start} to {rows.stop - 1}"


def _fits(data: bytes, facts: Mapping[str, Any]) -> bool:
    return stores.sha256(data) == facts["sha256"]


def _hash(facts: Facts) -> str:
    return stores.sha256(json.dumps(facts, sort_keys=True).encode())


def _is_as_written(facts: Facts) -> bool:
    if "facts_sha256" not in facts:
        return set(facts) == set(FIRST_FORMAT) and misfit(facts, FIRST_FORMAT) is None
    said = {key: value for key, value in facts.items() if key != "facts_sha256"}
    return bool(facts["facts_sha256"] == _hash(said))


def _key(facts: Facts) -> Any:
    if "key" in facts:
        return facts["key"]
    rater = facts.get("rater")
    return rater.get("rating_key") if isinstance(rater, dict) else None
