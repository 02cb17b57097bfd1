"""The rooms of the house: imports point in one direction only."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import scratchwriter

ROOT = Path(scratchwriter.__file__).parent

# What each room may import of the package. Rooms above know those below, never the
# other way round; the compiled rooms know nobody above them.
ALLOWED = {
    "_version": set(),
    "dimensions": set(),
    "settings": {"dimensions"},
    "plan": {"settings"},
    "_odometer": set(),
    "_platform": set(),
    "_convert": set(),
    "_core": {"_convert", "_odometer", "_platform"},
    "_c_api": {"_core", "_platform"},
    "_appender": {"_c_api", "_convert", "_core"},
    "_ahead": {"_core", "_odometer", "_platform", "_region"},
    "_region": {"_platform", "_region"},
    "errors": set(),
    "metadata": {"_convert", "_region", "errors"},
    "records": {"plan"},
    "record_array": {
        "_ahead",
        "_core",
        "_region",
        "manifest",
        "plan",
        "policy",
        "records",
    },
    "native": set(),
    "policy": {"_region", "plan", "settings"},
    "manifest": {"_region", "_version", "errors", "plan", "settings"},
    "append_times": {"_region", "manifest", "stats"},
    "folders": {"_region", "errors", "manifest", "policy", "settings"},
    "growth": {
        "_ahead",
        "_core",
        "_region",
        "manifest",
        "metadata",
        "plan",
        "policy",
        "record_array",
        "settings",
    },
    "storage": {
        "_core",
        "_region",
        "append_times",
        "folders",
        "growth",
        "manifest",
        "metadata",
        "plan",
        "policy",
        "settings",
        "syncer",
    },
    "syncer": set(),
    "_watch": {"_core", "_platform"},
    "coords": {"dimensions", "plan", "settings"},
    "events": {"coords", "plan"},
    "live": {"_watch", "manifest", "plan"},
    "views": {"coords", "events", "plan"},
    "stats": set(),
    "stream": {
        "_appender",
        "_c_api",
        "_core",
        "_watch",
        "coords",
        "events",
        "html",
        "neighbours",
        "plan",
        "records",
        "settings",
        "stats",
        "storage",
        "views",
    },
    "reader": {
        "_region",
        "append_times",
        "coords",
        "errors",
        "events",
        "html",
        "live",
        "neighbours",
        "manifest",
        "metadata",
        "plan",
        "records",
        "settings",
        "stats",
        "views",
    },
    "repair": {
        "_region",
        "errors",
        "folders",
        "manifest",
        "metadata",
        "reader",
        "records",
    },
    "neighbours": set(),
    "pictures": {"views"},
    "html": {"pictures", "views"},
    "report": {"pictures", "policy", "reader", "stats"},
    "monitor": {"policy", "reader", "stats"},
    "bridges": {
        "_region",
        "bridges",
        "dimensions",
        "errors",
        "manifest",
        "metadata",
        "plan",
        "reader",
        "settings",
        "stream",
        "views",
    },
    "demo": {"dimensions", "pictures", "settings", "stream"},
    "cli": {
        "_version",
        "bridges",
        "demo",
        "errors",
        "folders",
        "monitor",
        "pictures",
        "policy",
        "reader",
        "repair",
        "report",
        "settings",
    },
    "__main__": {"cli"},
    "__init__": {
        "_version",
        "bridges",
        "coords",
        "dimensions",
        "errors",
        "native",
        "reader",
        "settings",
        "stream",
        "views",
    },
}


def _files():
    return sorted(
        p for p in ROOT.rglob("*.py*") if p.suffix in (".py", ".pyx", ".pxd", ".pyi")
    )


def _room(path):
    return path.relative_to(ROOT).parts[0].split(".")[0]


def _imports(path):
    text = path.read_text()
    if path.suffix in (".py", ".pyi"):
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{path}: relative import"
                yield from (
                    f"{node.module}.{a.name}"
                    if node.module == "scratchwriter"
                    else node.module
                    for a in node.names
                )
            elif isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
    else:
        yield from re.findall(r"^\s*(?:from|c?import)\s+([\w.]+)", text, re.MULTILINE)


@pytest.mark.parametrize("path", _files(), ids=lambda p: str(p.relative_to(ROOT)))
def test_a_room_imports_only_the_rooms_below_it(path):
    room = _room(path)
    used = {
        name.split(".")[1] for name in _imports(path) if name.startswith("scratchwriter.")
    }
    assert used <= ALLOWED[room], f"{room} may not import {used - ALLOWED[room]}"


def test_the_rule_has_no_circle():
    order: list[str] = []
    rooms = dict(ALLOWED)
    while rooms:
        ready = [r for r, needs in rooms.items() if needs - {r} <= set(order)]
        assert ready, f"circle among {sorted(rooms)}"
        order += ready
        for room in ready:
            del rooms[room]


def _modules_loaded_by(code):
    printed = subprocess.run(
        [sys.executable, "-c", f"{code}; import sys; print(*sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    return set(printed.split())


def test_importing_the_package_loads_nothing_heavy():
    loaded = _modules_loaded_by("import scratchwriter")
    assert not {"numpy", "pydantic", "scratchwriter.stream"} & loaded


def test_importing_the_names_loads_no_optional_dependency():
    loaded = _modules_loaded_by("from scratchwriter import *")
    assert {"numpy", "pydantic", "scratchwriter.stream"} <= loaded
    optional = {"rich", "PIL", "pymmcore", "mm_test_adapters", "ome_writers", "argparse"}
    assert not optional & loaded


@pytest.mark.parametrize("name", scratchwriter.__all__)
def test_the_face_gives_the_name_that_it_declares(name):
    tree = ast.parse((ROOT / "__init__.py").read_text())
    home = next(
        node.module
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and name in [a.name for a in node.names]
    )
    assert getattr(scratchwriter, name) is getattr(sys.modules[home], name)
    assert name in dir(scratchwriter)


def test_the_face_has_no_other_names():
    with pytest.raises(AttributeError, match=r"no attribute 'Storage'"):
        _ = scratchwriter.Storage


def test_the_recipes_have_the_examples():
    """What the page includes is a line that a formatter must leave alone."""
    page = ROOT.parent.parent / "docs" / "recipes.md"
    if not page.exists():
        pytest.skip("not in a clone")
    included = re.findall(r'^--8<-- "(examples/[^"]+)"$', page.read_text(), re.MULTILINE)
    there = {
        str(path.relative_to(page.parent.parent))
        for path in (page.parent.parent / "examples").rglob("*.*")
        if path.suffix in (".py", ".c")
    }
    assert set(included) == there
