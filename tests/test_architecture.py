"""The shape of the house: imports point down, one module runs models, `__all__` tells the truth."""

import ast
import importlib
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ATTEMPTS

import selectit_hf

PACKAGE = Path(selectit_hf.__file__).parent
FLOORS = {
    0: {
        "adapters",
        "arrow_types",
        "attention",
        "auc",
        "batches",
        "batching",
        "complete",
        "content",
        "errors",
        "figures",
        "hardware",
        "privacy",
        "quantization",
        "patience",
        "quiet",
        "redaction",
        "shared_prefix",
        "spread",
        "terminal",
        "turns",
        "json_files",
        "whole_files",
    },
    1: {
        "chat",
        "chat_probe",
        "media",
        "ways",
        "hub_files",
        "hub_models",
        "loading",
        "page_map",
        "reflection",
        "rows",
        "selection",
        "sources",
        "faults",
        "files",
        "layouts",
        "records",
        "translation",
    },
    2: {
        "ahead",
        "forward",
        "tally",
        "template_ends",
        "checkpoints",
        "defects",
        "duplicates",
        "endpoint",
        "engine",
        "fingerprint",
        "journal",
        "kept_rows",
        "stream_files",
        "prompts",
        "quotas",
        "ratings",
        "responses",
        "selectors",
        "survey",
        "tokens",
        "writing",
    },
    3: {
        "baselines",
        "diversity",
        "judge",
        "mapping",
        "model_level",
        "placement",
        "rate_batch",
        "rating_scorer",
        "scorer_settings",
        "perplexity",
        "raters",
        "score_tables",
        "scorers",
    },
    4: {
        "ablation",
        "candidates",
        "card",
        "check_file",
        "check_plot",
        "compare",
        "contrast",
        "finished",
        "measures",
        "page",
        "page_data",
        "page_plots",
        "page_rows",
        "page_words",
        "plots",
        "report",
        "runs",
        "runs.engines",
        "runs.engines.datatrove",
        "runs.engines.executor_options",
        "runs.engines.launch",
        "runs.engines.launchers",
        "runs.engines.local",
        "runs.monitor",
        "runs.plans",
        "runs.rating",
        "runs.reopen",
        "runs.results",
        "runs.run",
        "runs.segments",
        "runs.shards",
        "runs.store",
        "runs.streaming",
        "staging",
        "trust_check",
        "verdict",
    },
    5: {
        "analysis",
        "cli",
        "cli_check",
        "cli_launch",
        "cli_runs",
        "hub",
        "options",
        "publishing",
        "remote",
        "screen",
    },
    6: {"__init__", "__main__"},
}
FLOOR = {module: floor for floor, modules in FLOORS.items() for module in modules}
FILES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): path
    for path in PACKAGE.rglob("*.py")
}
MODULES = sorted(FILES)


def tree(module: str) -> ast.Module:
    return ast.parse(FILES[module].read_text("utf-8"))


def imports(module: str) -> list[tuple[str, str, str]]:
    """``(from, name, local name)`` of every import of a module, wherever it stands."""
    found = []
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.Import):
            found += [(a.name, "", a.asname or a.name) for a in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively"
            found += [(str(node.module), a.name, a.asname or a.name) for a in node.names]
    return found


def own_imports(module: str) -> set[str]:
    """The modules of this package that a module imports."""
    found = set()
    for source, name, _ in imports(module):
        package, _, submodule = source.partition(".")
        if package == "selectit_hf":
            inner = f"{submodule}.{name}".strip(".")
            found.add(inner if inner in MODULES else submodule or "__init__")
    return found


def used_names(module: str) -> set[tuple[str, str]]:
    """``(other module, name)`` for every name of another module that a module uses."""
    used, aliases = set(), {}
    for source, name, local in imports(module):
        package, _, submodule = source.partition(".")
        inner = f"{submodule}.{name}".strip(".")
        if package == "selectit_hf" and inner in MODULES:
            aliases[local] = inner
        elif package == "selectit_hf" and submodule:
            used.add((submodule, name))
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            other = aliases.get(node.value.id)
            if other:
                used.add((other, node.attr))
    return used


@pytest.mark.parametrize("module", MODULES)
def test_every_module_has_a_floor(module):
    assert module in FLOOR, f"say on which floor {module}.py lies"


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_down(module):
    upward = {other for other in own_imports(module) if FLOOR.get(other, 0) > FLOOR.get(module, 9)}
    assert not upward


@pytest.mark.parametrize("module", MODULES)
def test_imports_make_no_circle(module):
    seen, left = set(), own_imports(module)
    while left:
        seen |= left
        left = set().union(*map(own_imports, left)) - seen
    assert module not in seen


@pytest.mark.parametrize(
    "module",
    sorted(
        set(MODULES)
        - {"engine", "forward", "hardware", "loading", "shared_prefix", "spread", "tally"}
    ),
)
def test_only_the_engine_imports_torch(module):
    heavy = {source.partition(".")[0] for source, _, _ in imports(module)}
    assert not heavy & {"torch", "accelerate"}


def test_the_engine_knows_nothing_of_selectit():
    below = {"batching", "errors", "loading", "shared_prefix", "ways"}
    assert own_imports("engine") <= {*below, "forward", "tally"}
    assert own_imports("forward") <= below
    assert own_imports("ways") <= {"batching", "shared_prefix"}
    loads = {"adapters", "attention", "complete", "quantization", "spread"}
    assert own_imports("loading") == {"errors", *loads}
    assert set().union(*map(own_imports, loads)) <= {"errors", "quantization"}
    assert not own_imports("shared_prefix")


def test_only_the_hub_module_writes_to_the_hub():
    writers = {"create_commit", "create_repo", "upload_file", "upload_folder", "push_to_hub"}
    for module in set(MODULES) - {"hub"}:
        called = {node.attr for node in ast.walk(tree(module)) if isinstance(node, ast.Attribute)}
        assert not called & writers, module


def is_command(node: ast.FunctionDef | ast.ClassDef) -> bool:
    """Whether a function is reached as a command of the command line."""
    return any(".command(" in ast.unparse(decorator) for decorator in node.decorator_list)


@pytest.mark.parametrize("module", sorted(set(MODULES) - {"__main__", "runs.engines"}))
def test_all_is_what_the_module_defines(module):
    name = "selectit_hf" if module == "__init__" else f"selectit_hf.{module}"
    listed = importlib.import_module(name).__all__
    assert sorted(listed) == sorted(set(listed))
    own = tree(module).body
    named = [n for n in own if isinstance(n, (ast.FunctionDef, ast.ClassDef)) and not is_command(n)]
    defined = {node.name for node in named}
    public = {name for name in defined if not name.startswith("_")}
    assert public <= set(listed), public - set(listed)
    if module == "runs":  # a door: what it lists is what it imports
        assert set(listed) == {local for _, _, local in imports(module)}
        return
    if module == "__init__":
        ours = [one for one in imports(module) if one[0].startswith("selectit_hf.")]
        assert set(listed) == {local for _, _, local in ours}
        for home, name, _ in ours:
            assert getattr(selectit_hf, name) is getattr(importlib.import_module(home), name)
        return
    for node in own:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        defined |= {target.id for target in targets if isinstance(target, ast.Name)}
    assert set(listed) <= defined, set(listed) - defined


@pytest.mark.parametrize("module", MODULES)
def test_modules_use_only_the_public_names_of_each_other(module):
    for other, name in used_names(module):
        assert name in importlib.import_module(f"selectit_hf.{other}").__all__, f"{other}.{name}"


# The tests' own house


@pytest.mark.parametrize("host", ["192.0.2.1", "2001:db8::1", "example.invalid"])
def test_the_network_is_out_of_reach(host):
    with pytest.raises(pytest.fail.Exception, match="reached for the network"):
        socket.create_connection((host, 80), timeout=1)
    with socket.socket() as plain, pytest.raises(pytest.fail.Exception):
        plain.connect(("192.0.2.1", 80))
    with socket.socket() as plain, pytest.raises(pytest.fail.Exception):
        plain.connect_ex(("192.0.2.1", 80))
    assert len(ATTEMPTS) == 3
    ATTEMPTS.clear()


def test_loopback_is_within_reach():
    with socket.create_server(("127.0.0.1", 0)) as server:
        socket.create_connection(server.getsockname()).close()
    assert not ATTEMPTS


def test_what_rates_needs_nothing_that_reads_or_publishes_datasets():
    code = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("datasets", "typer"):
            raise ImportError(name)
sys.meta_path.insert(0, Absent())
import selectit_hf.engine, selectit_hf.tokens, selectit_hf.prompts, selectit_hf.reflection
"""
    subprocess.run([sys.executable, "-c", code], check=True)
