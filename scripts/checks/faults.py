"""Every request of a load, a run and a push fails once or for good: are the messages still true?

A local Hub (``tests/hub_server.py``) holds two versions of a model and of datasets, and a cache
holds the older one. Each case runs the command itself in a forked process, with one fault: at the
n-th request, or from the n-th on, the server answers 403, 404, 429, 500 or 503, cuts the
connection, sends a byte at a time, redirects to a page, answers with an empty list or an empty
object, or answers as it did at the older version.
After each case the exit code and what plan, ratings, card and data say must agree with what the
server holds:

    a run that succeeds   names revisions that the server showed, and its rows and ratings are those
                          of a run pinned to them without any fault
    a run that fails      exits with 1 and a paragraph, in time
    a push that succeeds  is one private commit whose files are the manifest's
    a push that fails     exits with 1, in time; the old or the whole new state is there, never a
                          part, and the words fit it
    always                no token in anything printed

    python scripts/checks/faults.py                # every 41st case, about two minutes
    python scripts/checks/faults.py --long         # every request, over an hour
    python scripts/checks/faults.py --long --only "run parquet"   # a part of it
    python scripts/checks/faults.py --mutant  # trusts the libraries' fallback; must find violations

The last line of stdout is JSON. Exit: 0 without violations, else 1.
"""

import argparse
import hashlib
import itertools
import json
import os
import re
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import inf
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))

TOO_LONG = 20.0
"""Seconds after which a case counts as hanging."""
DRIP = 0.05
"""Seconds between two bytes of a dripping answer."""
PATIENCE = 1.5
"""Seconds that a request may take in these cases, whose clock is fast."""
CODES = (403, 404, 429, 500, 503)
SECRET = "hf_test_token_of_user"


# A process that has imported everything, and forks for each case


def serve() -> None:
    """Run each command that a line of stdin names in a fork, and answer with its exit code."""
    import matplotlib.pyplot  # noqa: F401
    import torch
    import transformers  # noqa: F401
    from transformers import AutoModelForCausalLM, LlamaForCausalLM  # noqa: F401

    from selectit_hf.cli import app

    torch.set_num_threads(1)
    sleep = time.sleep
    time.sleep = lambda seconds: sleep(min(seconds, 0.01))
    _hurry("--mutant" in sys.argv)
    print("ready", flush=True)
    for line in sys.stdin:
        wanted = json.loads(line)
        child = os.fork()
        if not child:
            for number, name in ((1, "out"), (2, "err")):
                opened = os.open(wanted[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
                os.dup2(opened, number)
            sys.argv = ["selectit", *wanted["arguments"]]
            code = 0
            try:
                app.main()
            except SystemExit as stop:
                code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
            except BaseException:
                code = 99
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
        print(json.dumps(_ended(child)), flush=True)


def _ended(child: int) -> int | None:
    start = time.monotonic()
    while time.monotonic() - start < TOO_LONG:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        select.select([], [], [], 0.005)
    os.kill(child, 9)
    os.waitpid(child, 0)
    return None


def _hurry(mutant: bool) -> None:
    """Shorten the package's waiting times; the mutant trusts whatever was loaded."""
    import huggingface_hub.constants as hub

    from selectit_hf import patience
    from selectit_hf.formats import hub_datasets

    hub.HF_HUB_ETAG_TIMEOUT = hub.HF_HUB_DOWNLOAD_TIMEOUT = 5
    patience.PATIENCE = PATIENCE
    if mutant:
        hub_datasets._data_files = _believed  # type: ignore[assignment]


def _believed(builder: Any, name: str, sha: str, listed: Any) -> dict[str, list[str]]:
    """The builder's data files, unchecked."""
    files = (builder.config.data_files or {}).items()
    return {
        str(split): [str(url).partition(f"@{sha}/")[2] for url in urls] for split, urls in files
    }


class Commands:
    """The other end of `serve`."""

    def __init__(self, environment: dict[str, str], mutant: bool) -> None:
        flags = ["--mutant"] if mutant else []
        self.process = subprocess.Popen(
            [sys.executable, __file__, "serve", *flags],
            env={**environment, "OMP_NUM_THREADS": "1", "COLUMNS": "400", "NO_PROXY": "127.0.0.1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout
        assert self.process.stdin
        assert self.process.stdout.readline().strip() == "ready"

    def run(self, folder: Path, *arguments: str) -> tuple[int | None, str, str]:
        """Exit code (``None`` if it did not end), stdout and stderr."""
        assert self.process.stdout
        assert self.process.stdin
        out, err = folder / "out.txt", folder / "err.txt"
        wanted = {"arguments": arguments, "out": str(out), "err": str(err)}
        self.process.stdin.write(json.dumps(wanted) + "\n")
        self.process.stdin.flush()
        code = json.loads(self.process.stdout.readline())
        return code, out.read_text("utf-8", "replace"), err.read_text("utf-8", "replace")

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait()


# Faults


def drip() -> Any:
    """The answer a byte at a time."""
    from hub_server import Response

    def slowly(server: Any, body: Any) -> Iterator[bytes]:
        for chunk in body:
            for i in range(len(chunk)):
                server.closing.wait(DRIP)
                yield chunk[i : i + 1]

    def fault(server: Any, work: Callable[[], Response]) -> Response:
        response = work()
        return replace(response, body=slowly(server, response.body))

    return fault


def redirect(server: Any, work: Any) -> Any:
    """To a page that says 200, as captive portals do."""
    from hub_server import status

    return status(302, {"Location": f"{server.url}/api/portal"})(server, work)


def odd(body: bytes) -> Any:
    from hub_server import status

    return status(200, {"Content-Type": "application/json"}, body)


def stale(server: Any, work: Any) -> Any:
    """Answer as at the older version, without the newer commit; writes are not affected."""
    if work.args[0].method not in ("GET", "HEAD"):
        return work()
    with server.lock:
        newer = {key: (dict(repo.refs), dict(repo.objects)) for key, repo in server.repos.items()}
        for repo in server.repos.values():
            if old := server.old.get(repo.name):
                repo.refs["refs/heads/main"] = old
                repo.objects = {s: c for s, c in repo.objects.items() if s in server.known}
        try:
            return work()
        finally:
            for key, (refs, objects) in newer.items():
                server.repos[key].refs, server.repos[key].objects = refs, objects


def faults() -> dict[str, Any]:
    from hub_server import cut, status

    return {
        **{str(code): status(code) for code in CODES},
        "cut": cut(),
        "cut after": cut(after=True),
        "cut within": cut(sent=40),
        "drip": drip(),
        "redirect": redirect,
        "null": odd(b"null"),
        "nothing": odd(b"{}"),
        "empty": odd(b"[]"),
        "stale": stale,
    }


# The stage


@dataclass
class Stage:
    """A server with two versions of everything, a warm cache, and what clean runs yield."""

    server: Any
    commands: Commands
    folder: Path
    home: Path
    truths: dict[tuple[str, str, str], Any]
    stale: bool = False
    before: frozenset[str] | set[str] = frozenset()

    def restore(self, warm: bool) -> None:
        """Restore the cache as before the newer versions, or an empty one."""
        shutil.rmtree(self.home, ignore_errors=True)
        if warm:
            shutil.copytree(self.folder / "warm", self.home, symlinks=True)

    def run(self, name: str, out: Path, model: str = "user/tiny") -> tuple[int | None, str, str]:
        """The command, whose results hold all rows."""
        arguments = ["run", name, "--split", "train", "--model", model, "--out", str(out)]
        return self.commands.run(self.folder, *arguments, "--proportion", "1", "--json")

    def truth(self, data: str, rows: str, model: str) -> Any:
        """What a run pinned to both commits yields, computed once without a fault."""
        key = (data, rows, model)
        if key not in self.truths:
            self.restore(False)
            out = self.folder / "truth"
            shutil.rmtree(out, ignore_errors=True)
            code, _, err = self.run(f"{data}@{rows}", out, f"user/tiny@{model}")
            assert code == 0, err
            self.truths[key] = contents(out)
        return self.truths[key]


def contents(out: Path) -> Any:
    """The rows and everything computed from them."""
    import pyarrow.parquet as pq

    (found,) = out.rglob("scores.parquet")
    scores = pq.read_table(found)
    (found,) = out.rglob("selected.parquet")
    return [
        pq.read_table(found).select(["instruction", "output"]).to_pylist(),
        [n for n in scores.column_names if not n.startswith("rater")],
        scores.drop_columns([n for n in scores.column_names if n.startswith("rater")]).to_pylist(),
    ]


def versions(folder: Path) -> list[dict[str, bytes]]:
    """Two versions of a tiny random model: other weights, and another context length."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    found = []
    for seed in (0, 1):
        tokens = AutoTokenizer.from_pretrained(ROOT / "selectit_hf" / "data" / "tiny-rater")
        tokens.model_max_length = 700 + 100 * seed
        torch.manual_seed(seed)
        config = LlamaConfig(
            vocab_size=len(tokens),
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=1,
            max_position_embeddings=2048,
        )
        place = folder / f"model-{seed}"
        LlamaForCausalLM(config).save_pretrained(place)
        tokens.save_pretrained(place)
        found.append({path.name: path.read_bytes() for path in place.iterdir()})
    return found


def data(seed: int, kind: str) -> dict[str, bytes]:
    import io

    import pyarrow as pa
    import pyarrow.parquet as pq

    def rows(split: str, count: int) -> list[dict[str, str]]:
        return [
            {"instruction": f"Say {seed} {split} {i}.", "output": f"{'word ' * 900}{i}"}
            for i in range(count)
        ]

    found = {}
    for split, count in (("train", 2), ("test", 1)):
        if kind == "parquet":
            buffer = io.BytesIO()
            pq.write_table(pa.Table.from_pylist(rows(split, count)), buffer)
            found[f"data/{split}-00000.parquet"] = buffer.getvalue()
        else:
            lines = "\n".join(map(json.dumps, rows(split, count)))
            found[f"data/{split}.jsonl"] = lines.encode()
            if kind == "configs":
                found[f"other/{split}.jsonl"] = lines.replace("Say", "Shout").encode()
    if kind == "configs":
        card = [
            {
                "config_name": "default",
                "data_files": [
                    {"split": split, "path": f"data/{split}*"} for split in ("train", "test")
                ],
            }
        ]
        found["README.md"] = f"---\nconfigs: {json.dumps(card)}\n---\n".encode()
    return found


KINDS = ("parquet", "jsonl", "configs")


@contextmanager
def stage(mutant: bool = False) -> Iterator[Stage]:
    """Everything that the cases need."""
    from hub_server import HubServer

    with tempfile.TemporaryDirectory(prefix="selectit-faults-") as name, HubServer() as server:
        folder, home = Path(name), Path(name) / "home"
        older, newer = versions(folder)
        model = server.add_repo("model", "user/tiny", older)
        sets = {k: server.add_repo("dataset", f"user/{k}", data(0, k)) for k in KINDS}
        repos = [model, *sets.values()]
        commands = Commands(server.environment(home), mutant)
        try:
            found = Stage(server, commands, folder, home, {})
            for kind in KINDS:
                found.truth(f"user/{kind}", sets[kind].head, model.head)
            found.restore(False)
            for kind in KINDS:  # by the branch, as a person would
                code, _, err = found.run(f"user/{kind}", folder / kind)
                assert code == 0, err
            shutil.copytree(home, folder / "warm", symlinks=True)
            server.old = {repo.name: repo.head for repo in repos}
            server.known = {sha for repo in repos for sha in repo.objects}
            model.commit(newer, "Newer")
            for kind in KINDS:
                sets[kind].commit(data(1, kind), "Newer")
            yield found
        finally:
            commands.close()


# Cases


def arranged(server: Any, at: int, fault: Any, good: bool) -> None:
    server.faults.clear()
    start = len(server.requests)
    server.at(lambda r: r.index >= start + at, fault, inf if good else 1)


def check_run(found: Stage, kind: str, out: Path, ended: Any) -> str | None:
    code, said, err = ended
    if SECRET in said + err:
        return "a token was printed"
    if code is None:
        return "it did not end"
    server = found.server
    repo, model = server.repo("dataset", f"user/{kind}"), server.repo("model", "user/tiny")
    if code != 0:
        if code != 1:
            return f"exit {code}: {err[-300:]}"
        if "Traceback" in err or not err.strip():
            return f"no clear error: {err[-300:]}"
        return "results of a failed run" if list(out.rglob("scores.parquet")) else None
    plan = json.loads((out / "plan.json").read_text())
    rows, rater = plan["input"]["revision"], plan["models"][0]["revision"]
    if rows not in repo.objects or rater not in model.objects:
        return "a revision that the server does not have"
    if (rows, rater) != (repo.head, model.head) and not found.stale:
        return f"an old revision: rows {rows[:7]}, model {rater[:7]}"
    if contents(out) != found.truth(f"user/{kind}", rows, rater):
        return f"rows or ratings of another revision than {rows[:7]} and {rater[:7]}"
    return None


def attack_runs(
    found: Stage, kind: str, warm: bool, step: int, counts: Counter[str], names: list[str]
) -> Iterator[str]:
    """Every fault at every ``step``-th request of a run."""
    server, out = found.server, found.folder / "run"
    found.restore(warm)
    before = len(server.requests)
    shutil.rmtree(out, ignore_errors=True)
    ended = found.run(f"user/{kind}", out)
    found.stale = False
    asked = [str(r) for r in server.requests[before:]]
    assert ended[0] == 0, ended[2]
    if wrong := check_run(found, kind, out, ended):
        yield f"{kind} without a fault: {wrong}: {ended[2][-500:]}"
        return
    total = len(asked)
    every = faults()
    number = 0
    for at in range(total):
        for name in names or every:
            for good in (False, True):
                number += 1
                if number % step:
                    continue
                found.truth(
                    f"user/{kind}",
                    server.repo("dataset", f"user/{kind}").head,
                    server.repo("model", "user/tiny").head,
                )
                found.restore(warm)
                shutil.rmtree(out, ignore_errors=True)
                arranged(server, at, every[name], good)
                found.stale = name == "stale"
                start, sent = time.monotonic(), len(server.requests)
                ended = found.run(f"user/{kind}", out)
                server.faults.clear()
                counts["cases"] += 1
                made = len(server.requests) - sent
                counts["ended well" if ended[0] == 0 else "refused"] += 1
                wrong = check_run(found, kind, out, ended)
                if os.environ.get("FAULTS_VERBOSE"):
                    print(
                        f"{time.monotonic() - start:.1f}s {kind} {at} {name} {good} "
                        f"{made}/{total} {asked[at]} -> {ended[0]} {ended[2].strip()[-300:]}",
                        file=sys.stderr,
                    )
                if wrong:
                    part = f"{kind} warm" if warm else kind
                    word = "for good" if good else "once"
                    yield f"{part}: {name} {word} at {at} ({asked[at]}): {wrong}"


# Pushes

KEPT = "user/kept"
NOT_THERE = re.compile("nothing was (committed|pushed|uploaded)", re.IGNORECASE)
THERE = re.compile("the commit [0-9a-f]{40} is in", re.IGNORECASE)
LIMIT = 8
"""Seconds that a push may take."""


def whole(repo: Any, revision: str) -> dict[str, str]:
    """The hashes of a revision's files; empty if they do not match the manifest."""
    files = repo.files(revision)
    manifest = json.loads(files.get("selectit.json", b"{}")).get("files", {})
    for path, said in manifest.items():
        if hashlib.sha256(files.get(path, b"")).hexdigest() != said["sha256"]:
            return {}
    return {path: hashlib.sha256(data).hexdigest() for path, data in files.items()}


Contents = dict[str, dict[str, str]]
"""What a push without a fault commits, by the words that must then be said."""
UNREAD = "the rows were not compared with"


def check_push(found: Stage, before: str | None, wanted: Contents, ended: Any) -> str | None:
    code, said, err = ended
    words = " ".join((said + err).split())
    if SECRET in words:
        return "a token was printed"
    if code not in (0, 1):
        return "it did not end" if code is None else f"exit {code}: {err[-300:]}"
    if code and ("Traceback" in err or not err.strip()):
        return f"no clear error: {err[-300:]}"
    repo = found.server.repos.get(("dataset", KEPT))
    if repo is not None and not repo.private:
        return "it is public"
    made = [c for c in repo.history() if before is None or c.sha != before] if repo else []
    made = [c for c in made if c.parent and (before is None or c.sha not in found.before)]
    if len(made) > 1:
        return f"{len(made)} commits"
    files = whole(repo, made[0].sha) if made else {}
    if made and files not in wanted.values():
        return "a part of the push"
    if made and not code and (UNREAD in words) != (files == wanted[UNREAD]):
        return "the card and the words do not agree on whether the source was read"
    if not code:
        return None if made else "success without a commit"
    if made and NOT_THERE.search(words):
        return f"there is a commit, and it says: {err[-300:]}"
    if not made and THERE.search(words):
        return f"there is no commit, and it says: {err[-300:]}"
    return None


def attack_pushes(
    found: Stage, update: bool, step: int, counts: Counter[str], names: list[str]
) -> Iterator[str]:
    """Every fault at every ``step``-th request of a push."""
    server, every = found.server, faults()
    key, flags = ("dataset", KEPT), ["--update"] if update else []
    part = "update" if update else "push"

    def restart() -> str | None:
        server.repos.pop(key, None)
        server.faults.clear()
        if not update:
            return None
        repo = server.add_repo("dataset", KEPT, private=True)
        server.old[KEPT] = repo.head
        server.known.add(repo.head)
        repo.commit(earlier, "Earlier")
        return str(repo.head)

    def push(run: str, *more: str) -> Any:
        arguments = ["push", str(found.folder / run), KEPT, "--yes", "--timeout", str(LIMIT)]
        return found.commands.run(found.folder, *arguments, *more)

    earlier: dict[str, bytes] = {}
    if update:
        server.repos.pop(key, None)
        ended = push("parquet")
        assert ended[0] == 0, ended[2]
        earlier = server.repos[key].files()
    source = server.repos.pop(("dataset", "user/jsonl"))
    restart()
    ended = push("jsonl", *flags)
    assert ended[0] == 0, ended[2]
    wanted = {UNREAD: whole(server.repos[key], "main")}
    server.repos["dataset", "user/jsonl"] = source
    before = restart()
    found.before = set(server.repos[key].objects) if update else set()
    start = len(server.requests)
    ended = push("jsonl", *flags)
    asked = [str(r) for r in server.requests[start:]]
    assert ended[0] == 0, ended[2]
    wanted[""] = whole(server.repos[key], "main")
    if wrong := check_push(found, before, wanted, ended):
        yield f"{part} without a fault: {wrong}"
        return
    number = 0
    for at, name, good in itertools.product(range(len(asked)), names or every, (False, True)):
        number += 1
        if number % step:
            continue
        before = restart()
        found.before = set(server.repos[key].objects) if update else set()
        arranged(server, at, every[name], good)
        begun = time.monotonic()
        ended = push("jsonl", *flags)
        counts["cases"] += 1
        counts["pushed" if ended[0] == 0 else "refused"] += 1
        if os.environ.get("FAULTS_VERBOSE"):
            took = time.monotonic() - begun
            words = ended[2].strip()[-300:]
            print(
                f"{took:.1f}s {part} {at} {name} {good} {asked[at]} -> {ended[0]} {words}",
                file=sys.stderr,
            )
        if wrong := check_push(found, before, wanted, ended):
            yield f"{part}: {name} {'for good' if good else 'once'} at {at} ({asked[at]}): {wrong}"
    restart()


def main() -> int:
    if sys.argv[1:2] == ["serve"]:
        serve()
        return 0
    flags = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    flags.add_argument("--long", action="store_true", help="every request")
    flags.add_argument("--mutant", action="store_true", help="trust the fallback")
    flags.add_argument("--step", type=int, help="every how-manieth case")
    flags.add_argument("--only", default="", help="parts whose name holds this")
    flags.add_argument("--fault", action="append", default=[], help="only this; repeatable")
    given = flags.parse_args()
    step = given.step or (1 if given.long else 41)
    counts: Counter[str] = Counter()
    violations = []
    with stage(given.mutant) as found:
        for kind in KINDS:
            for warm in (True, False):
                part = f"run {kind} {'warm' if warm else 'cold'}"
                if given.only not in part:
                    continue
                for wrong in attack_runs(found, kind, warm, step, counts, given.fault):
                    print(wrong, file=sys.stderr)
                    violations.append(wrong)
                print(f"after {part}: {dict(counts)}", file=sys.stderr, flush=True)
        for update in (False, True):
            if given.only in ("update" if update else "push"):
                for wrong in attack_pushes(found, update, step, counts, given.fault):
                    print(wrong, file=sys.stderr)
                    violations.append(wrong)
                print(f"after {'update' if update else 'push'}: {dict(counts)}", file=sys.stderr)
    print(json.dumps({**counts, "violations": len(violations), "first": violations[:3]}))
    return int(bool(violations))


if __name__ == "__main__":
    sys.exit(main())
