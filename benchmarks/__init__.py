"""Benchmarks of scratchwriter; README.md says how to run them.

asv imports the files here as a package, and the scripts are run by their path. So that
they can import each other by the same plain names either way, the folder is on the path.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
