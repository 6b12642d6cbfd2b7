"""`python -m elit`: the command `elit`, also for torchrun."""

import sys

from elit.cli import main

sys.exit(main())
