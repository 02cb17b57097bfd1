"""What was promised holds after a power cut at any moment: see power_cuts.py.

    python tests/power_cuts.py --states 100000    for more of them
"""

import os
import shutil
import sys

import pytest

from marks import PORTABLE

power_cuts = pytest.importorskip("power_cuts", reason="mfusepy, or FUSE, is missing")

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or os.geteuid() != 0 or PORTABLE,
    reason="a disk of its own needs Linux and root",
)
STATES = int(os.environ.get("SCRATCHWRITER_POWER_CUTS", "40"))
LIVES = {"ext4": [5, 8], "xfs": [1], "btrfs": [1]}


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("file_system", power_cuts.FILE_SYSTEMS)
def test_what_was_promised_holds_at_any_moment(file_system, seed):
    make = power_cuts.FILE_SYSTEMS[file_system][0][0]
    if shutil.which(make) is None:
        pytest.skip(f"{make} is missing")
    try:
        recording = power_cuts.can_record()
    except OSError as error:
        pytest.skip(str(error))
    assert recording is None
    kinds = power_cuts.cut(file_system, seed, STATES)
    assert sum(kinds.values()) == STATES
