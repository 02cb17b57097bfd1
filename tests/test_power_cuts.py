"""What was promised holds after a power cut at any moment: see power_cuts.py.

python tests/power_cuts.py --states 100000    for more of them
"""

import os
import shutil
import sys

import pytest

from marks import PORTABLE

try:
    import power_cuts
except (ImportError, OSError) as error:
    pytest.skip(f"mfusepy, or FUSE itself: {error}", allow_module_level=True)

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or os.geteuid() != 0 or PORTABLE,
    reason="a disk of its own needs Linux and root",
)
STATES = int(os.environ.get("SCRATCHWRITER_POWER_CUTS", "40"))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("file_system", power_cuts.FILE_SYSTEMS)
def test_what_was_promised_holds_at_any_moment(file_system, seed):
    if shutil.which(power_cuts.FILE_SYSTEMS[file_system][0][0]) is None:
        pytest.skip(f"mkfs.{file_system} is missing")
    kinds = power_cuts.cut(file_system, seed, STATES)
    assert sum(kinds.values()) == STATES
