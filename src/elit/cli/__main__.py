"""`python -m elit.cli`, for torchrun."""

import sys

from elit.cli import main

sys.exit(main())
