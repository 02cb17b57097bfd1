"""The layers of the package: imports point down only."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import scratchwriter

ROOT = Path(scratchwriter.__file__).parent

# From the bottom: a module imports from its own layer and those below it. Within a layer
# the imports have no circle.
LAYERS = [
    {"_version", "errors"},
    {"_region"},  # addresses, and what differs between operating systems
    {"_core", "_native"},  # compiled: the path of a frame
    {"dimensions", "settings", "plan", "stats", "coords"},  # what is asked; arithmetic
    {"_files"},  # what the files of a dataset say
    {"_writing"},  # how a dataset is made
    {"_integrations"},
    {"events", "views", "stream", "following", "reader"},  # what users hold
    {"_showing"},
    {"bridges"},
    {"cli", "__main__", "__init__", "_pyinstaller"},
]
# Imports that happen only when they are asked for may point up: for a notebook, for a
# library that is installed.
DYNAMIC = {
    ("stream", "_showing.disk_texts"),
    ("stream", "_showing.html"),
    ("reader", "_showing.html"),
}
# Modules that import others by a name in a variable.
IMPORTERS = {"__init__", "_integrations"}


def _files():
    return sorted(
        p for p in ROOT.rglob("*.py*") if p.suffix in (".py", ".pyx", ".pxd", ".pyi")
    )


def _module(path):
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


def _layer(module):
    return next(i for i, layer in enumerate(LAYERS) if module in layer)


def _used(path):
    return {
        name.removeprefix("scratchwriter.")
        for name in _imports(path)
        if name.startswith("scratchwriter.")
    }


def _is_in_a_function(path, name):
    """Whether a module is imported in functions only."""
    tree = ast.parse(path.read_text())
    return not any(
        isinstance(node, ast.ImportFrom) and node.module == f"scratchwriter.{name}"
        for node in tree.body
    )


def test_every_module_has_its_layer():
    found = {_module(path) for path in _files()}
    assert found == set.union(*LAYERS)


@pytest.mark.parametrize("path", _files(), ids=lambda p: str(p.relative_to(ROOT)))
def test_a_module_imports_only_from_its_layer_and_those_below(path):
    module = _module(path)
    for name in _used(path):
        if (module, name) in DYNAMIC:
            assert _is_in_a_function(path, name)
            continue
        assert _layer(name.split(".")[0]) <= _layer(module), f"{module} imports {name}"


@pytest.mark.parametrize("path", _files(), ids=lambda p: str(p.relative_to(ROOT)))
def test_a_module_is_imported_by_its_name_only_where_that_is_declared(path):
    if "import_module(" in path.read_text():
        assert _module(path) in IMPORTERS


def test_the_declared_upward_imports_exist():
    used = {(_module(path), name) for path in _files() for name in _used(path)}
    assert used >= DYNAMIC


def test_there_is_no_circle():
    """Neither among the modules of a layer, nor among those of a package."""
    needs = {}
    for path in _files():
        name = str(path.relative_to(ROOT).with_suffix("")).replace("/", ".")
        name = name.removesuffix(".__init__")
        used = {used for used in _used(path) if (_module(path), used) not in DYNAMIC}
        needs.setdefault(name, set()).update(used - {name})
    needs["__init__"] = set()  # whoever imports a package imports it first
    done: set[str] = set()
    while done < set(needs):
        ready = {
            n
            for n, used in needs.items()
            if n not in done and not (used & set(needs)) - done
        }
        assert ready, f"circle among {sorted(set(needs) - done)}"
        done |= ready


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
