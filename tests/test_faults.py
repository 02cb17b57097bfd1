"""Every call of the operating system and every allocation of ours, made to fail once.

As SQLite does (https://sqlite.org/testing.html#i_o_error_testing): an acquisition is run
with the first call made to fail, then with the second, until one passes untouched.

SCRATCHWRITER_FAULTS=1 pytest tests/test_faults.py    for each call, not one in four
"""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import fault_scenarios
from marks import PORTABLE, takes_a_shim

EVERY = int(os.environ.get("SCRATCHWRITER_FAULTS", "4"))
HERE = Path(__file__).parent

pytestmark = takes_a_shim


@pytest.mark.parametrize("stays", [0, 1, 2], ids=["once", "until told", "half written"])
@pytest.mark.parametrize(
    "scenario",
    [
        scenario
        for scenario, what in fault_scenarios.SCENARIOS.items()
        if not (PORTABLE and "staged" in what)
    ],
)
def test_a_call_that_fails_is_one_error_and_costs_nothing(shim, tmp_path, scenario, stays):
    code = errno.EIO if stays == 1 else errno.ENOSPC
    if stays == 1 and scenario == "unbounded on disk":
        code = errno.EDQUOT  # a quota of this user's
    also = os.pathsep + os.environ["PYTHONPATH"] if "PYTHONPATH" in os.environ else ""
    program = [fault_scenarios.__file__, str(tmp_path), scenario, code, stays, EVERY]
    ended = subprocess.run(
        [sys.executable, *map(str, program)],
        env={**os.environ, "LD_PRELOAD": shim, "PYTHONPATH": f"{HERE}{also}"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    result = json.loads(ended.stdout)
    struck = result["failed"]
    # It is the real calls that failed, of every kind that the scenario has.
    if scenario.startswith("in memory"):
        assert sum(struck.values()) >= (1 if PORTABLE else 12) // EVERY
        assert result["datasets"] == 0
    else:
        assert sum(struck.values()) >= (50 if PORTABLE else 150) // EVERY
        assert result["datasets"] > sum(struck.values())
        # One in four may miss what is called once, and fewer may miss more.
        kinds = {"open64"} if EVERY > 1 else {"open64", "fsync"}
        if not PORTABLE:
            kinds |= {"pwrite64"} if EVERY > 1 else {"pwrite64", "madvise"}
            if EVERY == 1 and "without" not in scenario:
                kinds |= {"fallocate64"}
        assert kinds <= set(struck) or EVERY > 4
