"""What tests of some rooms depend on."""

import os
import shutil
import sys

import pytest

from scratchwriter._region import PortableRegion, make_region

PORTABLE = type(make_region(1)) is PortableRegion  # it does not stage

needs_direct_writes = pytest.mark.skipif(PORTABLE, reason="a portable region is not staged")
# With SCRATCHWRITER_STAGED=1 small datasets are staged, too (see conftest.py).
STAGED = os.environ.get("SCRATCHWRITER_STAGED") == "1"
needs_page_cache = pytest.mark.skipif(
    STAGED, reason="looks at the files of a small dataset while it is recorded"
)

takes_a_shim = pytest.mark.skipif(
    sys.platform != "linux" or "LD_PRELOAD" in os.environ or shutil.which("cc") is None,
    reason="puts itself before the C library, and needs a C compiler for that",
)
