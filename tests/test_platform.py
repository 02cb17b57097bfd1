"""The C that differs between systems, by programs of its own."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

import scratchwriter

HERE = Path(__file__).parent
INCLUDE = Path(scratchwriter.__file__).parent / "_region"

pytestmark = pytest.mark.skipif(
    shutil.which("cc") is None or not (INCLUDE / "platform.h").exists(),
    reason="needs a C compiler for POSIX, and the header",
)


@pytest.mark.skipif("LD_PRELOAD" in os.environ, reason="a sanitizer in a sanitizer")
@pytest.mark.parametrize("flags", [["-O2"], ["-O1", "-g", "-fsanitize=thread"]], ids=str)
def test_the_mutex_lets_one_thread_in_at_a_time_and_everybody_in_the_end(tmp_path, flags):
    program = tmp_path / "mutex"
    source = str(HERE / "mutex.c")
    command = ["cc", *flags, f"-I{INCLUDE}", source, "-o", str(program), "-lpthread"]
    built = subprocess.run(command, capture_output=True, text=True)
    if built.returncode and "tsan" in built.stderr:
        pytest.skip("this compiler has no ThreadSanitizer")
    assert built.returncode == 0, built.stderr
    # ThreadSanitizer's shadow memory lies where addresses may be at random.
    fixed = ["setarch", "-R"] if shutil.which("setarch") else []
    ended = subprocess.run([*fixed, program], capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert int(ended.stdout) == 4 * 100_000
