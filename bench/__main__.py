"""python -m bench: measures the machine, then every case, and writes a table, JSON and a plot."""

from __future__ import annotations

import sys

from .run import main

sys.exit(main())
