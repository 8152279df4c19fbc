"""Columns of a run that are committed part by part: a table and a sidecar for each range of rows.

    NNNNN.<first 12 of its sha256>.parquet   the rows of shard N, never overwritten
    NNNNN.json   its sidecar, written last: the commit. It names the table and its whole hash, the
                 shard's rows and the key of the settings, and holds the hash of its own facts

A shard depends only on the plan and its number, so two workers at one shard write the same table.
If they do not (one had to split a batch), both tables are kept, and the first sidecar stays.
Nothing is taken on trust: a sidecar of another plan, or a table that differs from what its sidecar
says, is set aside and made again.
"""

import io
import json
import logging
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from selectit_hf import whole_files
from selectit_hf.errors import RunError
from selectit_hf.formats import not_floats
from selectit_hf.hashes import sha256
from selectit_hf.json_files import as_json, facts_hash, json_object, misfit
from selectit_hf.runs.store import Store

__all__ = [
    "HASH",
    "POINTS",
    "RATINGS",
    "Facts",
    "Part",
    "Shards",
    "refuse_mixed",
    "rows_words",
]

logger = logging.getLogger(__name__)

POINTS = ("shard rated", *whole_files.POINTS, "table written", "looked again", "shard committed")
"""Where a shard can be interrupted, in order. The points of a file are passed for the table and
again for the sidecar; in object storage they do not exist."""

NAMED = 8
"""How many missing shards a message names."""

Facts = dict[str, Any]
"""What a sidecar says."""
HASH = re.compile("[0-9a-f]{64}")
RATINGS = {
    "rater": {"model": str, "revision": str, "parameters": int, "rating_key": str},
    "oom_splits": int,
    "seconds": float,
    "made_with?": {str: str},
}
"""What it says about ratings, besides the table; see `selectit_hf.json_files.misfit`."""


class Part(NamedTuple):
    """The rows of one shard, and the fingerprint of their segment of the input."""

    rows: range
    of: str


class Shards:
    """The committed parts of one set of columns over a run's rows.

    Args:
        store: the run folder.
        folder: their folder in it.
        parts: the rows of each.
        key: a hash of all settings that can change a value; shards with another key are not used.
        pinned: the hashes of the tables that the run's results are made from, by number.
        schema: what the sidecars must say besides the table.
    """

    def __init__(
        self,
        store: Store,
        folder: str,
        parts: Sequence[Part],
        key: str,
        pinned: Sequence[str] = (),
        schema: dict[str, Any] = {},  # noqa: B006  (not changed)
    ) -> None:
        self.store, self.folder, self.parts, self.key = store, folder, parts, key
        self._pinned, self._schema = pinned, schema
        self._known: dict[int, Facts] = {}

    def __len__(self) -> int:
        return len(self.parts)

    @property
    def name(self) -> str:
        """Whose columns they are, for messages."""
        return self.folder.rpartition("/")[2]

    # Reading

    def committed(self) -> dict[int, Facts]:
        """The facts of all whole sidecars whose table exists and has the right size.

        Sidecars that were read before are not read again.
        """
        files = self.store.sizes(self.folder)
        names = {self._sidecar(number): number for number in range(len(self))}
        there = {number for name, number in names.items() if name.rpartition("/")[2] in files}
        self._known = {number: self._known[number] for number in there & self._known.keys()}
        new = [name for name, number in names.items() if number in there - self._known.keys()]
        for name, data in self.store.read_many(new).items():
            facts = self._said(names[name], data)
            if facts is not None:
                self._known[names[name]] = facts
        return {
            number: facts
            for number, facts in sorted(self._known.items())
            if files.get(facts["table"], -1) == facts.get("bytes", files.get(facts["table"]))
        }

    def is_committed(self, number: int) -> bool:
        """Whether a shard is committed now; checks only its own files."""
        return bool(self._committed_now(number))

    def _committed_now(self, number: int) -> bool | None:
        """Whether a sidecar is whole, and its table there; ``None`` without a sidecar."""
        name = self._sidecar(number)
        data = self.store.read_many([name]).get(name)
        if data is None:
            return None
        facts = self._said(number, data)
        size = self.store.size(f"{self.folder}/{facts['table']}") if facts else None
        return facts is not None and size is not None and size == facts.get("bytes", size)

    def missing(self) -> list[int]:
        """The shards that are not committed."""
        there = self.committed()
        return [number for number in range(len(self)) if number not in there]

    def any_facts(self) -> Facts:
        """What one of the sidecars says; nothing if there is none."""
        return next(iter((self._known or self.committed()).values()), {})

    def all_facts(self) -> list[Facts]:
        """What the sidecars say, in order.

        Raises:
            RunError: some shards are missing; the message names them.
        """
        there = self.committed()
        self.refuse([number for number in range(len(self)) if number not in there])
        return list(there.values())

    def table(self, facts: Facts) -> pa.Table | None:
        """The table that a sidecar names, if it exists and its bytes have the right hash."""
        data = self._whole(facts)
        return None if data is None else pq.read_table(pa.BufferReader(data))

    def check(self) -> list[Facts]:
        """Read all tables and compare their hashes; return what the sidecars say, in order.

        Raises:
            RunError: shards are missing or damaged; the message names them.
        """
        found = self.all_facts()
        self.refuse([number for number, facts in enumerate(found) if self._whole(facts) is None])
        return found

    def refuse(self, missing: Sequence[int]) -> None:
        """Raise an error that names the missing shards.

        Raises:
            RunError: unless there are none.
        """
        if missing:
            rows = [rows_words(self.parts[number].rows) for number in missing[:NAMED]]
            more = f" and {len(missing) - NAMED} more shards" if len(missing) > NAMED else ""
            raise RunError(
                f"{', '.join(rows)}{more} are not rated by {self.name!r}, or the shard is damaged; "
                "run the same 'selectit run' or 'selectit rate' command again to rate them."
            )

    # Writing

    def commit(self, number: int, table: pa.Table, facts: Facts, replace: bool = False) -> bool:
        """Write a shard durably: its table, then its sidecar unless there is one by then.

        Args:
            number: which shard.
            table: one row for each row of the shard, in order.
            facts: the other facts in its sidecar, JSON-able.
            replace: replace a shard that is whole; otherwise that shard stays.

        Returns:
            Whether this shard is the one that stays.

        Raises:
            OSError: the disk is full or failing; the shard is not committed.
        """
        rows, of = self.parts[number]
        assert table.num_rows == len(rows), f"{table.num_rows} rows for shard {number} of {rows}"
        buffer = io.BytesIO()
        pq.write_table(table, buffer, use_dictionary=not_floats(table.schema))
        data = buffer.getvalue()
        digest = sha256(data)
        name = f"{number:05d}.{digest[:12]}.parquet"
        if self.table({"table": name, "sha256": digest}) is None:  # else it is there already
            self.store.write(f"{self.folder}/{name}", data)
        whole_files.reached("table written")
        own: Facts = {"rows": [rows.start, rows.stop], "key": self.key, "of": of}
        own |= {"table": name, "bytes": len(data), "sha256": digest}
        said = json.loads(json.dumps({**own, **facts}))
        sidecar = as_json({**said, "facts_sha256": facts_hash(said)})
        there = None if replace else self._committed_now(number)
        if there is False:
            self.set_aside(number)
        free = not there
        whole_files.reached("looked again")
        if replace:
            self.store.write(self._sidecar(number), sidecar)
        elif free:  # so far; a shard that another worker committed meanwhile stays
            free = self.store.create(self._sidecar(number), sidecar)
        whole_files.reached("shard committed")
        return free

    def set_aside(self, number: int) -> None:
        """Set a shard aside that differs from what was committed, and log it; it is made again."""
        words = f"{rows_words(self.parts[number].rows)}, by {self.name}"
        logger.warning("The shard of %s, differs from what was committed; it is set aside.", words)
        self._known.pop(number, None)
        self.store.set_aside(self._sidecar(number))

    # Inside

    def _whole(self, facts: Facts) -> bytes | None:
        try:
            data = self.store.read(f"{self.folder}/{facts['table']}")
        except FileNotFoundError:
            return None
        return data if sha256(data) == facts["sha256"] else None

    def _sidecar(self, number: int) -> str:
        return f"{self.folder}/{number:05d}.json"

    def _said(self, number: int, sidecar: bytes) -> Facts | None:
        """The facts of a sidecar, if it is unchanged and belongs to this shard."""
        facts = json_object(sidecar) or {}
        rows, of = self.parts[number]
        ours = {"rows": [rows.start, rows.stop], "key": self.key, "of": of}
        written = facts.pop("facts_sha256", None)
        if written != facts_hash(facts) or any(facts.get(name) != ours[name] for name in ours):
            return None
        if misfit(facts, {"sha256": HASH, "bytes?": int, **self._schema}) is not None:
            return None
        facts.setdefault("table", f"{number:05d}.parquet")  # as 0.1.0 named it
        if not re.fullmatch(rf"{number:05d}(\.[0-9a-f]{{12}})?\.parquet", str(facts["table"])):
            return None
        return self._as_pinned(number, facts)

    def _as_pinned(self, number: int, facts: Facts) -> Facts:
        """Prefer the table that the results are made from to one that a late worker committed."""
        pin = self._pinned[number] if number < len(self._pinned) else facts["sha256"]
        if pin == facts["sha256"]:
            return facts
        pinned = {**facts, "sha256": pin, "table": f"{number:05d}.{pin[:12]}.parquet"}
        pinned.pop("bytes", None)
        return facts if self.table(pinned) is None else pinned


def refuse_mixed(
    slug: str, made_with: Sequence[dict[str, str]], others: Sequence[str] = ()
) -> None:
    """Refuse shards of one model that were rated with other versions or on other hardware.

    ``others`` are the sidecars of those that were rated otherwise than the first one.

    Raises:
        RunError: the message names what differs.
    """
    said = {name: {str(one.get(name)) for one in made_with} for name in [*made_with, {}][0]}
    differ = [f"{name}: {' and '.join(sorted(s))}" for name, s in said.items() if len(s) > 1]
    if differ:
        more = f" and {len(others) - NAMED} more" if len(others) > NAMED else ""
        again = f"remove {', '.join(others[:NAMED])}{more} and rate" if others else "rate"
        raise RunError(
            f"Shards by {slug!r} are rated with several versions of the libraries or on several "
            f"kinds of hardware ({'; '.join(differ)}), so ratings differ in their last digits. "
            f"To have all of one kind, {again} with what the run began with; or add --allow-mixed, "
            "and summary and card will say so."
        )


def rows_words(rows: range) -> str:
    """As in ``the rows 0 to 3``."""
    return f"the rows {rows.start} to {rows.stop - 1}"
