"""``python -m patlib`` is the command ``patlib``."""

import sys

from patlib.cli import main

sys.exit(main())
