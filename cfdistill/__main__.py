"""`python -m cfdistill` is the command `cfdistill`."""

import sys

from cfdistill.cli import main

sys.exit(main())
