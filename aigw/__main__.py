"""`python -m aigw`: the same as the command `aigw`."""

import sys

from aigw.cli import main

sys.exit(main())
