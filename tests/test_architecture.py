"""The shape of the house: rooms with doors, imports that go down, truth in `__all__`."""

import ast
import importlib
import socket
import statistics
import tomllib
from pathlib import Path

import pytest
from conftest import ATTEMPTS

import selectit_hf

PACKAGE = Path(selectit_hf.__file__).parent
ROOMS = (
    "formats",
    "rating",
    "selection",
    "selectors",
    "runs",
    "analysis",
    "report",
    "hub",
    "cli",
)
"""From the lowest floor to the highest. Modules outside them are the ground, which all use."""
FILES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): path
    for path in PACKAGE.rglob("*.py")
}
MODULES = sorted(FILES)
TOP = ("__init__", "__main__")


def room(module: str) -> str:
    """The room a module lies in; empty for the ground."""
    first = module.partition(".")[0]
    return first if first in ROOMS else ""


def floor(module: str) -> int:
    """0 for the ground."""
    return 1 + ROOMS.index(room(module)) if room(module) else 0


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


def ours(module: str) -> list[tuple[str, str]]:
    """``(module of this package, name)``; an empty name where a module itself is imported."""
    found = []
    for source, name, _ in imports(module):
        package, _, inner = source.partition(".")
        if package == "selectit_hf":
            whole = f"{inner}.{name}".strip(".")
            is_module = whole in MODULES and (inner or name in MODULES)
            found.append((whole, "") if is_module else (inner or "__init__", name))
    return found


def beside(module: str) -> set[str]:
    """The modules of its own room that a module imports."""
    mine = {other for other, _ in ours(module) if room(other) == room(module)}
    return mine - {module, room(module), "__init__"}


@pytest.mark.parametrize("module", sorted({*MODULES} - {*TOP}))
def test_imports_go_down_and_through_the_doors(module: str) -> None:
    for other, name in ours(module):
        if room(other) == room(module) or not room(other):
            continue
        assert floor(other) < floor(module), f"{other} lies above"
        door = importlib.import_module(f"selectit_hf.{room(other)}")
        inner = other.partition(".")[2]
        assert other == room(other) or inner in door.__all__, f"{other} is behind a door"
        assert not name or name in door.__all__, f"{name} is behind the door of {other}"


@pytest.mark.parametrize("module", sorted({*MODULES} - {*TOP}))
def test_imports_make_no_circle_in_a_room(module: str) -> None:
    seen: set[str] = set()
    left = beside(module)
    while left:
        seen |= left
        left = set().union(*map(beside, left)) - seen
    assert module not in seen


def test_every_folder_and_module_can_be_taken_in() -> None:
    folders: dict[Path, int] = {}
    sizes = {}
    for module, path in FILES.items():
        if path.name != "__init__.py":
            folders[path.parent] = folders.get(path.parent, 0) + 1
            sizes[module] = len(path.read_text("utf-8").splitlines())
    assert {path.name: count for path, count in folders.items() if count > 12} == {}
    assert {module for module, lines in sizes.items() if lines > 350} == set()
    assert statistics.median(sizes.values()) <= 180


def test_only_the_engine_and_what_loads_models_import_torch() -> None:
    heavy = {
        module
        for module in MODULES
        if {source.partition(".")[0] for source, _, _ in imports(module)} & {"torch", "accelerate"}
    } - {"runs.trackers"}  # accelerate, once a tracker is asked for
    assert {module.rpartition(".")[0] for module in heavy} == {"rating.engine", "rating.models"}


def test_the_engine_knows_nothing_of_selectit() -> None:
    engine = [module for module in MODULES if module.startswith("rating.engine.")]
    used = {other for module in engine for other, _ in ours(module)}
    assert used <= {*engine, "rating.engine", "rating.models.loading", "errors"}


def test_only_one_module_writes_to_the_hub() -> None:
    writers = {"create_commit", "create_repo", "upload_file", "upload_folder", "push_to_hub"}
    for module in {*MODULES} - {"hub.push_commit"}:
        called = {node.attr for node in ast.walk(tree(module)) if isinstance(node, ast.Attribute)}
        assert not called & writers, module


def is_command(node: ast.FunctionDef | ast.ClassDef) -> bool:
    """Whether a function is reached as a command of the command line."""
    return any(".command(" in ast.unparse(decorator) for decorator in node.decorator_list)


def is_door(module: str) -> bool:
    return FILES[module].name == "__init__.py"


@pytest.mark.parametrize("module", [one for one in MODULES if not is_door(one) and one not in TOP])
def test_all_is_what_the_module_defines(module: str) -> None:
    listed = importlib.import_module(f"selectit_hf.{module}").__all__
    assert sorted(listed) == sorted(set(listed))
    own = tree(module).body
    named = [n for n in own if isinstance(n, (ast.FunctionDef, ast.ClassDef)) and not is_command(n)]
    defined = {node.name for node in named}
    public = {name for name in defined if not name.startswith("_")}
    assert public <= set(listed), public - set(listed)
    for node in own:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        defined |= {target.id for target in targets if isinstance(target, ast.Name)}
    assert set(listed) <= defined, set(listed) - defined


@pytest.mark.parametrize("module", [*ROOMS, "__init__"])
def test_a_door_names_what_it_imports(module: str) -> None:
    door = importlib.import_module(f"selectit_hf.{module}") if module in ROOMS else selectit_hf
    listed = door.__all__
    assert sorted(listed) == sorted(set(listed))
    own = [one for one in imports(module) if one[0].startswith("selectit_hf")]
    assert set(listed) == {local for _, _, local in own}
    for home, name, local in own:
        whole = f"{home}.{name}".removeprefix("selectit_hf.")
        if whole not in MODULES:
            assert getattr(door, local) is getattr(importlib.import_module(home), name)


@pytest.mark.parametrize("module", MODULES)
def test_modules_use_only_the_public_names_of_each_other(module: str) -> None:
    aliases = {}
    for source, name, local in imports(module):
        package, _, inner = source.partition(".")
        whole = f"{inner}.{name}".strip(".")
        if package != "selectit_hf":
            continue
        if whole in MODULES and not is_door(whole):
            aliases[local] = whole
        elif inner and name:
            public = importlib.import_module(f"selectit_hf.{inner}").__all__
            assert name in public, f"{inner}.{name}"
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            other = aliases.get(node.value.id)
            if other:
                public = importlib.import_module(f"selectit_hf.{other}").__all__
                assert node.attr in public, f"{other}.{node.attr}"


# The tests' own house


@pytest.mark.parametrize("host", ["192.0.2.1", "2001:db8::1", "example.invalid"])
def test_the_network_is_out_of_reach(host: str) -> None:
    with pytest.raises(pytest.fail.Exception, match="reached for the network"):
        socket.create_connection((host, 80), timeout=1)
    with socket.socket() as plain, pytest.raises(pytest.fail.Exception):
        plain.connect(("192.0.2.1", 80))
    with socket.socket() as plain, pytest.raises(pytest.fail.Exception):
        plain.connect_ex(("192.0.2.1", 80))
    assert len(ATTEMPTS) == 3
    ATTEMPTS.clear()


def test_loopback_is_within_reach() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        socket.create_connection(server.getsockname()).close()
    assert not ATTEMPTS


def test_every_folder_of_the_package_is_shipped() -> None:
    settings = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text("utf-8"))
    folders = {
        ".".join(("selectit_hf", *path.relative_to(PACKAGE).parts[:-1])) for path in FILES.values()
    }
    shipped = {*settings["tool"]["setuptools"]["packages"]} - {"selectit_hf.hub_cards"}
    assert shipped == folders
