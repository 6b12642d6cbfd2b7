"""`python -m elit.cli`: the same as `python -m elit`."""

import sys

from elit.cli import main

sys.exit(main())
