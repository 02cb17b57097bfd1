"""`python -m scratchwriter`."""

import sys

from scratchwriter.cli import main

sys.exit(main())
