"""Compiling the C programs of the benchmarks."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

HERE = Path(__file__).parent


def compile_c(source: str, folder: Path, *flags: str) -> Path:
    """Compile a file of this folder; return the program or library in `folder`."""
    target = folder / Path(source).stem
    compiler = os.environ.get("CC", "cc")
    command = [compiler, "-O3", "-Wall", "-Wextra", "-pthread", *flags]
    subprocess.run([*command, str(HERE / source), "-o", str(target)], check=True)
    return target
