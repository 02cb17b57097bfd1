"""Types, as programs see them that use no plugin of a type checker."""

import ast
import importlib.util
import inspect
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import scratchwriter
from scratchwriter import dimensions, settings

HERE = Path(__file__).parent
README = HERE.parent / "README.md"
# What the README's snippets take from the program around them.
AROUND = """
from typing import Any
import numpy as np
import numpy.typing as npt
from scratchwriter import CoordUpdate

class Camera:
    def read_into(self, frame: npt.NDArray[Any]) -> None: ...

camera = Camera()
frames: list[npt.NDArray[np.uint16]] = []
times, ids = [1], [2]
buffer = b""
t, n = 1, 2

def callback(update: CoordUpdate) -> None: ...
"""

MODELS = [
    dimensions.Channel,
    dimensions.Dimension,
    dimensions.Plate,
    settings.ScratchFormat,
    settings.AcquisitionSettings,
]


def made_again(model):
    """Return a function that makes a model from all that another one holds."""
    given = ", ".join(f"{name}=it.{name}" for name in model.model_fields)
    name = model.__name__
    return f"def remake_{name}(it: {name}) -> {name}:\n    return {name}({given})\n"


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    """A folder with the README's snippets as one program, and one of more uses."""
    folder = tmp_path_factory.mktemp("programs")
    snippets = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert len(snippets) >= 4
    (folder / "readme.py").write_text("\n".join([AROUND, *snippets]))
    (folder / "uses.py").write_text((HERE / "typed_uses.py").read_text())
    names = ", ".join(model.__name__ for model in MODELS)
    again = [f"from scratchwriter import {names}", *map(made_again, MODELS)]
    (folder / "again.py").write_text("\n".join(again))
    return folder


def check(command, folder):
    # As installed, or from the folder that a source tree is installed from.
    path = str(Path(scratchwriter.__file__).parents[1])
    env = os.environ | ({} if "site-packages" in path else {"MYPYPATH": path})
    ran = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=env)
    assert ran.returncode == 0, ran.stdout + ran.stderr


PROGRAMS = ["readme.py", "uses.py", "again.py"]
WRONG = {
    "a number as dimensions": "AcquisitionSettings(dimensions=3)",
    "no such setting": "AcquisitionSettings(dimension=[])",
    "no such choice": 'ScratchFormat(durability="disk")',
    "no name": "Dimension(count=3)",
}


def run_mypy(folder, *programs):
    if importlib.util.find_spec("mypy") is None:
        pytest.skip("mypy is not installed")
    options = ["--strict", "--config-file=", "--cache-dir", str(folder / "cache")]
    # Errors in the library itself are found by its own configuration.
    options += ["--follow-imports=silent"]
    check([sys.executable, "-m", "mypy", *options, *programs], folder)


def run_pyright(folder, *programs):
    if importlib.util.find_spec("pyright") is None:
        pytest.skip("pyright is not installed")
    configuration = {
        "typeCheckingMode": "strict",
        "include": programs,
        "extraPaths": [str(Path(scratchwriter.__file__).parents[1])],
    }
    (folder / "pyrightconfig.json").write_text(json.dumps(configuration))
    command = [sys.executable, "-m", "pyright", "-p", "."]
    check([*command, "--pythonpath", sys.executable], folder)


@pytest.mark.parametrize("run", [run_mypy, run_pyright])
def test_a_type_checker_accepts_what_people_write(programs, run):
    run(programs, *PROGRAMS)


@pytest.mark.parametrize("run", [run_mypy, run_pyright])
def test_a_type_checker_finds_what_is_wrong(programs, run):
    lines = ["from scratchwriter import AcquisitionSettings, Dimension, ScratchFormat"]
    (programs / "wrong.py").write_text("\n".join([*lines, *WRONG.values(), ""]))
    with pytest.raises(AssertionError) as found:
        run(programs, "wrong.py")
    faulty = set(re.findall(r"wrong\.py:(\d+)\D[^\n]*error", str(found.value)))
    assert faulty == {str(2 + i) for i in range(len(WRONG))}


def declared(kind):
    """Return the parameters that a model declares for type checkers only."""
    (tree,) = ast.parse(inspect.getsource(kind)).body
    found = [
        statement
        for block in tree.body
        if isinstance(block, ast.If)
        for statement in block.body
        if isinstance(statement, ast.FunctionDef) and statement.name == "__init__"
    ]
    (init,) = found
    return [argument.arg for argument in init.args.kwonlyargs], init.args.kw_defaults


@pytest.mark.parametrize("kind", MODELS)
def test_what_is_declared_for_type_checkers_are_the_fields(kind):
    names, defaults = declared(kind)
    assert names == list(kind.model_fields)
    for name, default in zip(names, defaults, strict=True):
        field = kind.model_fields[name]
        assert field.is_required() == (default is None), name
        if isinstance(default, ast.Constant) and default.value is not ...:
            assert field.default == default.value, name
