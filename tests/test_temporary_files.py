"""What a run of the tests leaves behind: see conftest.py, which is tried here as it is."""

import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

HERE = Path(__file__).parent
SETTINGS = HERE.parent / "pyproject.toml"
LARGE, SMALL = 60 << 20, 1000


@pytest.fixture
def run(tmp_path):
    """Run a program of tests under our conftest.py; return its status and what is left."""
    if not SETTINGS.exists():
        pytest.skip("without the settings of pytest")

    def run(program):
        tests, temporary = tmp_path / "tests", tmp_path / "temporary"
        tests.mkdir()
        temporary.mkdir()
        shutil.copy(HERE / "conftest.py", tests)
        shutil.copy(SETTINGS, tmp_path)
        head = f"""
            import os, signal, subprocess, sys, tempfile
            from pathlib import Path

            def write(path, nbytes):
                Path(path).write_bytes(bytes(nbytes))

            LARGE, SMALL = {LARGE}, {SMALL}
        """
        code = textwrap.dedent(head) + textwrap.dedent(program)
        (tests / "test_it.py").write_text(code)
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests"],
            cwd=tmp_path,
            env={**os.environ, "TMPDIR": str(temporary)},
            capture_output=True,
            text=True,
        )
        print(done.stdout)
        left = {
            path.name: path.stat().st_size
            for path in temporary.rglob("*")
            if path.is_file() and not path.is_symlink() and path.name != ".lock"
        }
        return done.returncode, left

    return run


def test_the_folder_of_a_test_that_passed_goes_at_once(run):
    status, left = run("""
        def test_one(tmp_path):
            write(tmp_path / "data", LARGE)
            Path(os.environ["TMPDIR"], "first").write_text(str(tmp_path))

        def test_two():
            assert not Path(Path(os.environ["TMPDIR"], "first").read_text()).exists()
    """)
    assert (status, left) == (pytest.ExitCode.OK, {})


def test_of_a_test_that_failed_what_is_small_stays(run):
    status, left = run("""
        def test_one(tmp_path):
            write(tmp_path / "large", LARGE)
            write(tmp_path / "small", SMALL)
            assert False
    """)
    assert (status, left) == (pytest.ExitCode.TESTS_FAILED, {"small": SMALL})


def test_an_interrupted_run_leaves_nothing_large(run):
    status, left = run("""
        def test_one(tmp_path):
            write(tmp_path / "large", LARGE)
            # A job in the background inherits that it is ignored.
            signal.signal(signal.SIGINT, signal.default_int_handler)
            os.kill(os.getpid(), signal.SIGINT)
    """)
    assert (status, left) == (pytest.ExitCode.INTERRUPTED, {})


def test_what_a_killed_program_leaves_in_the_temporary_folder_goes_with_the_run(run):
    status, left = run("""
        def test_one():
            program = (
                "import os, tempfile;"
                "open(tempfile.mkdtemp() + '/data', 'wb').write(bytes(1000));"
                "os.kill(os.getpid(), 9)"
            )
            done = subprocess.run([sys.executable, "-c", program])
            assert done.returncode == -signal.SIGKILL
    """)
    assert (status, left) == (pytest.ExitCode.OK, {})


def test_a_run_whose_tests_leave_much_fails_and_says_what(run, capfd):
    status, left = run("""
        def test_one(tmp_path_factory):
            write(tmp_path_factory.mktemp("forgotten") / "data", LARGE)
    """)
    assert (status, left) == (pytest.ExitCode.TESTS_FAILED, {})
    assert "forgotten0/data" in capfd.readouterr().out
