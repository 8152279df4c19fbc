"""What an attacker may do to a finished run folder: bits, values, types, links, pipes, names.

`mutate` changes a folder in one or two ways. If it can, it recomputes the hashes, so that the
changes pass the hash checks and reach the checks after them.
"""

import json
import os
import random
import re
import shutil
import socket
from collections.abc import Callable
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

__all__ = ["MUTATIONS", "mutate"]

RESULTS = ("scores.parquet", "selected.parquet", "summary.json")
MANIFEST = "selection.json"
DEEP = "@deep@"
ESCAPES = "\x1b[2J\x1b]52;c;eA==\x07\x1b]8;;http://x\x07\u202e\x9b31m[/b]\r\x00"
MANY = 20_000_000
"""Rows of a table that takes a few kilobytes."""


class Place:
    """A run folder, an outside folder that must not be touched, and a random generator.

    Attributes:
        run: the folder that is changed.
        canary: the outside folder; it holds a copy of the run, under its name, and ``note.txt``.
        random: makes all choices.
        sealed: whether hashes are recomputed.
    """

    def __init__(self, run: Path, canary: Path, chooser: random.Random) -> None:
        self.run, self.canary, self.random = run, canary, chooser
        self.sealed = chooser.random() < 0.8

    def files(self, *endings: str) -> list[Path]:
        """The plain files of the run, with some extensions or with any."""
        found = [p for p in sorted(self.run.rglob("*")) if p.is_file() and not p.is_symlink()]
        return [p for p in found if not endings or p.suffix in endings]

    def any_file(self, *endings: str) -> Path:
        """A random file; the results and the plan are as likely as all shards together."""
        found = self.files(*endings)
        top = [path for path in found if path.parent == self.run]
        return self.random.choice(top if top and self.random.random() < 0.5 else found)

    def name(self, path: Path) -> str:
        """A path in the run."""
        return str(path.relative_to(self.run))


# The hashes


def facts_hash(facts: Any) -> str:
    return sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def read(path: Path) -> Any:
    with suppress(OSError, ValueError, RecursionError):
        if path.is_file():  # and no pipe, which would be waited for
            return json.loads(path.read_bytes())
    return None


def write(path: Path, facts: Any) -> None:
    text = json.dumps(facts, indent=2)
    path.write_text(text.replace(f'"{DEEP}"', "[" * 100_000 + "]" * 100_000))


def hashed(path: Path, key: str) -> None:
    """Write the hash of a JSON object into it."""
    facts = read(path)
    if isinstance(facts, dict) and path.is_file():
        facts.pop(key, None)
        write(path, {**facts, key: facts_hash(facts)})


def seal(run: Path, changed: Path) -> None:
    """Recompute every hash that depends on a changed file."""
    name = str(changed.relative_to(run))
    if name == "plan.json":
        hashed(changed, "plan_sha256")
    elif name.startswith(("ratings/", "measures/")):
        seal_shard(changed)
    elif name.startswith("rows/") and changed.suffix == ".arrow":
        for sidecar in changed.parent.glob("*.json"):
            write(sidecar, {**read(sidecar), "sha256": sha256(changed.read_bytes()).hexdigest()})
    manifest, path = read(run / MANIFEST), run / MANIFEST
    if not isinstance(manifest, dict) or not path.is_file():
        return
    if changed != path:
        there = [one for one in RESULTS if (run / one).is_file()]
        hashes = {one: sha256((run / one).read_bytes()).hexdigest() for one in there}
        tables: dict[str, list[str]] = {}
        for sidecar in sorted(run.glob("ratings/*/?????.json")):
            said = read(sidecar)
            if isinstance(said, dict) and "sha256" in said:
                tables.setdefault(sidecar.parent.name, []).append(said["sha256"])
        write(path, {**manifest, "sha256": hashes, "tables": tables})
    hashed(path, "manifest_sha256")


def seal_shard(changed: Path) -> None:
    sidecar = changed.with_name(f"{changed.name[:5]}.json")
    facts = read(sidecar)
    if changed.suffix == ".parquet" and isinstance(facts, dict) and changed.is_file():
        data = changed.read_bytes()
        digest = sha256(data).hexdigest()
        place = changed.with_name(f"{changed.name[:5]}.{digest[:12]}.parquet")
        changed.rename(place)
        write(sidecar, {**facts, "table": place.name, "bytes": len(data), "sha256": digest})
    hashed(sidecar, "facts_sha256")


# Bytes


def bits(place: Place) -> str:
    """Some bits flipped, cut short, emptied, lengthened, or another file's bytes."""
    path = place.any_file()
    data, choose = bytearray(path.read_bytes()), place.random
    what = choose.choice(["flip", "flip", "flip", "cut", "empty", "longer", "noise", "other"])
    if what == "flip" and data:
        for _ in range(choose.choice([1, 1, 1, 8])):
            data[choose.randrange(len(data))] ^= 1 << choose.randrange(8)
    elif what == "cut":
        del data[choose.randrange(len(data) + 1) :]
    elif what == "empty":
        data.clear()
    elif what == "longer":
        data += choose.randbytes(100)
    elif what == "noise":
        data[:] = choose.randbytes(len(data))
    else:
        data[:] = place.any_file().read_bytes()
    path.write_bytes(data)
    if place.sealed:
        seal(place.run, path)
    return f"{what} in {place.name(path)}"


# Values


def values(place: Place) -> list[Any]:
    deep: Any = []
    for _ in range(200):
        deep = [deep]
    canary = str(place.canary)
    return [
        *(None, True, False, -1, 0, 1, 2, 3, 5, 7, 2**31, 2**63, 10**18, 10**30, 10**400),
        *(0.5, -0.0, 1e308, float("nan"), float("inf"), "", "x", "..", ".", "/", "\ud800", "\0"),
        *("../canary", canary, f"{canary}/note.txt", f"file://{canary}/note.txt", "~"),
        *("../canary/run/scores.parquet", "s3://bucket/x", "http://127.0.0.1:9/x", "hf://x/y"),
        *(ESCAPES, "a" * 100_000, "[bold]x[/b]", "{k}", "{{ x }}", "\n---\nlicense: mit\n"),
        *([], {}, [[]], [None], {"a": 1}, [1e308] * 3, ["x"] * 1000, deep, DEEP, {ESCAPES: 1}),
        *("paper", "released", "token_score__small", "model_score", "float16", "sha256:0"),
    ]


def places_of(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of everything in a JSON value, a few of each long list."""
    if not isinstance(value, (dict, list)):
        return [path]
    inner = list(value.items() if isinstance(value, dict) else enumerate(value))
    return [path, *(found for key, one in inner[:30] for found in places_of(one, (*path, key)))]


def value(place: Place) -> str:
    """A value of a JSON file replaced, removed, or changed slightly."""
    path, choose = place.any_file(".json"), place.random
    facts = read(path)
    if facts is None:
        return bits(place)
    said = []
    for _ in range(choose.choice([1, 1, 2])):
        at = choose.choice(places_of(facts))
        said.append(".".join(map(str, at)))
        facts = changed(facts, at, place)
    with suppress(ValueError, RecursionError):  # values that JSON cannot hold
        write(path, facts)
        if place.sealed:
            seal(place.run, path)
    return f"{place.name(path)} at {' and '.join(said)}"


def changed(facts: Any, at: tuple[Any, ...], place: Place) -> Any:
    choose = place.random
    if not at:
        return choose.choice(values(place))
    holder = facts
    for key in at[:-1]:
        holder = holder[key]
    old, what = holder[at[-1]], choose.randrange(10)
    if what == 0:
        del holder[at[-1]]
    elif what == 1 and isinstance(holder, dict):
        holder[choose.choice([ESCAPES, "..", "", "more"])] = choose.choice(values(place))
    elif what <= 3 and isinstance(old, (int, float)) and not isinstance(old, bool):
        holder[at[-1]] = choose.choice([old + 1, old - 1, -old, old * 10**9, old / 2, float(old)])
    elif what <= 3 and isinstance(old, list):
        holder[at[-1]] = choose.choice([[], old * 2, old[:-1], old[::-1]])
    else:
        holder[at[-1]] = choose.choice(values(place))
    return facts


# Links, and things that are not files


def links(place: Place) -> str:
    """A file or folder of the run as a link to the same outside, to another file, or to nothing."""
    choose = place.random
    names = [place.name(path) for path in sorted(place.run.rglob("*"))]
    more = ["report", "report/images", "report/report.html", "report/images/scores.png", ".lock"]
    more += ["progress", "measures", "rows", "scores.parquet", MANIFEST, "progress/x.00000.json"]
    name = choose.choice([*names, *more])
    path = place.run / name
    targets = [place.canary / "run" / name] * 3
    targets += [place.canary / "note.txt", place.canary / "new", place.canary, path]
    target = str(choose.choice(targets))
    if choose.random() < 0.3:
        target = os.path.relpath(target, path.parent)
    remove(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if not os.path.lexists(path):
        path.symlink_to(target)
    return f"{name} is a link to {target}"


def remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def kinds(place: Place) -> str:
    """A file that is a folder, a FIFO, a socket, or gone; a folder that is a file."""
    choose = place.random
    path = choose.choice([p for p in sorted(place.run.rglob("*")) if not p.is_symlink()])
    what = choose.choice(["folder", "full folder", "fifo", "fifo", "socket", "file", "gone"])
    remove(path)
    if what in ("folder", "full folder"):
        path.mkdir()
        if what == "full folder":
            (path / "x").write_text("x")
    elif what == "fifo":
        os.mkfifo(path)
    elif what == "socket":
        with socket.socket(socket.AF_UNIX) as one, suppress(OSError):  # a path that is too long
            one.bind(str(path))
    elif what == "file":
        path.write_text("x")
    return f"{place.name(path)} is {what}"


def names(place: Place) -> str:
    """Additional files with odd names."""
    choose = place.random
    odd = [ESCAPES.replace("/", "").replace("\0", ""), "a\nb", "..x", "-rf", "[0]", "*", "é" * 100]
    folder = choose.choice([place.run, *(p for p in sorted(place.run.rglob("*")) if p.is_dir())])
    name = choose.choice(odd) + choose.choice(["", ".json", ".parquet", ".00000.json", ".partial"])
    path = os.path.join(os.fsencode(folder), os.fsencode(name))
    if choose.random() < 0.3:
        path += b"\xff"
    with open(path, "wb") as file:
        file.write(choose.choice([b"", b"{}", b"\xff", b'{"at": "x"}']))
    return f"a file {name!r} in {folder.name}"


def notes(place: Place) -> str:
    """Notes about shards in progress with arbitrary contents."""
    choose, folder = place.random, place.run / "progress"
    if not os.path.lexists(folder):
        folder.mkdir()
    slug = next(iter(sorted(p.name for p in (place.run / "ratings").glob("*"))), "x")
    stem = choose.choice([slug, "x", ESCAPES.replace("/", "").replace("\0", ""), f"{slug}.x"])
    number = choose.choice(["00000", "1", "99999", "9" * 100, "²", "-1"])
    facts = {"at": choose.choice([4e9, 1.0]), "rows": 3} if choose.random() < 0.2 else {}
    facts |= {key: choose.choice(values(place)) for key in ("at", "rows") if key not in facts}
    with suppress(OSError, ValueError, RecursionError):
        write(folder / f"{stem}.{number}.json", facts)
    return f"a note {stem}.{number} of {str(facts)[:60]}"


def report(place: Place) -> str:
    """An existing report whose page, images or folders are links or not files."""
    choose = place.random
    folder = place.run / "report"
    (folder / "images").mkdir(parents=True, exist_ok=True)
    places = ["", "images", "report.html", "images/scores.png", "images/agreement.png"]
    path = folder / choose.choice(places)
    remove(path)
    what = choose.choice(["link", "link", "link", "folder", "fifo"])
    if what == "link":
        inside = place.canary / "run" / "report" / path.relative_to(folder)
        path.symlink_to(choose.choice([inside, place.canary / "new", place.canary / "note.txt"]))
    elif what == "folder":
        path.mkdir()
    else:
        os.mkfifo(path)
    return f"{place.name(path)} is a {what}"


# Tables


def column_of(count: int, place: Place) -> pa.Array:
    """Values of any Arrow type."""
    medium = {"bytes": None, "path": f"{place.canary}/note.txt"}
    ints = list(range(count))
    made: list[Callable[[], Any]] = [
        lambda: pa.nulls(count),
        lambda: pa.array([ESCAPES] * count),
        lambda: pa.array(["ok"] * count, pa.large_string()),
        lambda: pa.array(["ok"] * count).dictionary_encode(),
        lambda: pa.array([10**18] * count),
        lambda: pa.array([-1] * count, pa.int8()),
        lambda: pa.array([2**64 - 1] * count, pa.uint64()),
        lambda: pa.array([float("nan")] * count),
        lambda: pa.array([float("inf")] * count, pa.float32()),
        lambda: pa.array([1.0] * count, pa.float16()),
        lambda: pa.array([True] * count),
        lambda: pa.array([b"\xff"] * count),
        lambda: pa.array(ints, pa.timestamp("ns", "UTC")),
        lambda: pa.array(ints, pa.duration("s")),
        lambda: pa.array(ints, pa.date32()),
        lambda: pa.array(ints, pa.decimal128(20, 2)),
        lambda: pa.array([[float(i)] * (i % 3) for i in ints]),
        lambda: pa.array([[[float(i)] * (i % 3)] * (i % 4) for i in ints]),
        lambda: pa.array([[[1.0] * 5] * 5 if i % 2 else None for i in ints]),
        lambda: pa.array([[1.0] * 25 for _ in ints], pa.list_(pa.float32(), 25)),
        lambda: pa.array([[1.0] * 24 for _ in ints], pa.list_(pa.float32(), 24)),
        lambda: pa.array([[["x"]] for _ in ints]),
        lambda: pa.array([medium for _ in ints], pa.struct({"bytes": "binary", "path": "string"})),
        lambda: pa.array([{"model": "x", "revision": None} for _ in ints]),
        lambda: pa.array([{"a": {"b": [{"c": i}]}} for i in ints]),
        lambda: pa.array([{} for _ in ints], pa.struct([])),
        lambda: pa.array([[("k", 1)] for _ in ints], pa.map_("string", "int64")),
    ]
    return place.random.choice(made)()


FEATURES = (
    {"_type": "Image"},
    {"_type": "Audio"},
    {"_type": "Video"},
    {"_type": "Pdf"},
    {"_type": "Nope"},
    {"_type": "Value", "dtype": "nope"},
    {"_type": "Value", "dtype": "int8"},
    {"_type": "ClassLabel", "names": ["a"]},
    {"_type": "ClassLabel", "names": 1},
    {"_type": "ClassLabel", "num_classes": 10**9},
    {"_type": "ClassLabel", "names_file": "/nowhere"},
    {"_type": "Array2D", "shape": [10**9, 10**9], "dtype": "float32"},
    {"_type": "Sequence", "feature": {"_type": "Image"}},
    {"_type": "List", "feature": {"_type": "Value", "dtype": "string"}, "length": -5},
    {"_type": "Translation", "languages": 5},
    {"_type": "Json"},
    {"path": {"_type": "Image"}},
    [],
    5,
    None,
)
"""What the metadata of a table may call a column."""


def tables(place: Place) -> str:
    """A parquet file with other columns, types, rows, row groups or metadata."""
    choose, path = place.random, place.any_file(".parquet")
    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError):
        return bits(place)
    what = choose.choice(list(TABLES))
    table, how = TABLES[what](table, place)
    pq.write_table(table, path, **how)
    if place.sealed:
        seal(place.run, path)
    return f"{place.name(path)}: {what}"


Changed = tuple[pa.Table, dict[str, Any]]


def typed(table: pa.Table, place: Place) -> Changed:
    at = place.random.randrange(table.num_columns)
    return table.set_column(at, table.column_names[at], column_of(len(table), place)), {}


def medium(table: pa.Table, place: Place) -> Changed:
    """A column that says that it is a picture, and names a file outside."""
    at, named = place.random.randrange(table.num_columns), f"{place.canary}/note.txt"
    kind = pa.struct({"bytes": "binary", "path": "string"})
    rows = [{"bytes": None, "path": named}] * len(table)
    column = pa.array(rows, kind) if place.random.random() < 0.5 else pa.array([named] * len(table))
    table = table.set_column(at, table.column_names[at], column)
    media = place.random.choice(FEATURES[:4])
    return described(table, table.column_names[at], media), {}


def named(table: pa.Table, place: Place) -> Changed:
    column = place.random.choice(table.column_names)
    return described(table, column, place.random.choice(FEATURES)), {}


def described(table: pa.Table, column: str, feature: Any) -> pa.Table:
    """A table whose metadata give ``column`` this feature, and other columns their own."""
    from datasets import Features

    with suppress(Exception):
        plain = table.replace_schema_metadata(None).schema
        known = Features.from_arrow_schema(plain).to_dict()
        said = {"info": {"features": {**known, column: feature}}}
        return table.replace_schema_metadata({"huggingface": json.dumps(said)})
    return table


def told(table: pa.Table, place: Place) -> Changed:
    odd = ["", "x", "[]", "{}", '{"info": 5}', '{"info": {"features": []}}', "[" * 100_000]
    odd += ['{"info": {"features": {"x": {"_type": "Value", "dtype": "string"}}}}', "\x1b[2J"]
    return table.replace_schema_metadata({"huggingface": place.random.choice(odd)}), {}


def fewer(table: pa.Table, place: Place) -> Changed:
    return table.slice(0, place.random.choice([0, 1, len(table) - 1])), {}


def more(table: pa.Table, place: Place) -> Changed:
    return pa.concat_tables([table, table.slice(0, place.random.choice([1, len(table)]))]), {}


def dropped(table: pa.Table, place: Place) -> Changed:
    return table.drop_columns([place.random.choice(table.column_names)]), {}


def renamed(table: pa.Table, place: Place) -> Changed:
    odd = [
        "",
        ESCAPES.replace("\0", ""),
        "row",
        "selected",
        table.column_names[0],
        "x" * 5000,
        "..",
    ]
    at = place.random.randrange(table.num_columns)
    columns = [*table.column_names]
    columns[at] = place.random.choice(odd)
    return table.rename_columns(columns), {}


def nulled(table: pa.Table, place: Place) -> Changed:
    at = place.random.randrange(table.num_columns)
    field = table.schema.field(at)
    return table.set_column(at, field, pa.nulls(len(table), field.type)), {}


def mixed(table: pa.Table, place: Place) -> Changed:
    order = [*range(len(table))]
    place.random.shuffle(order)
    return table.take(order), {}


def grouped(table: pa.Table, place: Place) -> Changed:
    sizes = {"row_group_size": place.random.choice([1, 3, 7])}
    other = {"compression": place.random.choice(["zstd", "gzip", "none", "brotli"])}
    return table, place.random.choice([sizes, other, {"version": "1.0"}])


def wide(table: pa.Table, place: Place) -> Changed:
    for i in range(300):
        table = table.append_column(f"more {i}", pa.nulls(len(table), pa.int8()))
    return table, {}


def long(table: pa.Table, place: Place) -> Changed:
    """Many rows of nulls in few bytes."""
    types = [field for field in table.schema if pa.types.is_integer(field.type)]
    types = types or [f for f in table.schema if pa.types.is_string(f.type)] or [*table.schema]
    return pa.table([pa.nulls(MANY, types[0].type)], names=[types[0].name]), {}


TABLES: dict[str, Callable[[pa.Table, Place], Changed]] = {
    **{"type": typed, "type 2": typed, "type 3": typed, "medium": medium, "feature": named},
    **{"metadata": told, "fewer rows": fewer, "more rows": more, "dropped column": dropped},
    **{"renamed column": renamed, "nulls": nulled, "order": mixed, "groups": grouped},
    **{"many columns": wide, "many rows": long},
}


def stream(place: Place) -> str:
    """A stream's rows with other types, or its sidecar with another place."""
    found = place.files(".arrow")
    if not found:
        return tables(place)
    path, choose = found[0], place.random
    with pa.memory_map(str(path)) as source:
        table = pa.ipc.open_stream(source).read_all()
        table = pa.table({n: pa.array(table[n].to_pylist()) for n in table.column_names})
    if choose.random() < 0.3:
        (sidecar,) = path.parent.glob("*.json")
        write(
            sidecar,
            {
                **read(sidecar),
                choose.choice(["file", "rows", "sha256"]): choose.choice(values(place)),
            },
        )
        return "the sidecar of the rows"
    what = choose.choice([name for name in TABLES if name != "groups"])
    table, _ = TABLES[what](table, place)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    if place.sealed:
        seal(place.run, path)
    return f"the rows: {what}"


MUTATIONS: dict[str, tuple[Callable[[Place], str], int]] = {
    **{"bits": (bits, 3), "value": (value, 6), "links": (links, 3), "kinds": (kinds, 2)},
    **{"names": (names, 1), "notes": (notes, 1), "report": (report, 1), "tables": (tables, 5)},
    **{"stream": (stream, 1)},
}
"""Each kind of change, and how often it is chosen."""


def mutate(run: Path, canary: Path, chooser: random.Random) -> tuple[list[str], list[str]]:
    """Change a run folder in one or two ways; return the kinds, and what was done in words."""
    place, kinds_of, said = Place(run, canary, chooser), [], []
    weights = [weight for _, weight in MUTATIONS.values()]
    for kind in chooser.choices(list(MUTATIONS), weights, k=chooser.choice([1, 1, 1, 2])):
        with suppress(IndexError, OSError, pa.ArrowException):  # nothing left, or no file holds it
            kinds_of.append(kind)
            said.append(MUTATIONS[kind][0](place))
    words = [re.sub(r"[^\x20-\x7e]", "?", one)[:200] for one in said]
    return kinds_of, [*words, "sealed" if place.sealed else "not sealed"]
