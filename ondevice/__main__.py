"""`python -m ondevice` is the command `ondevice`."""

from __future__ import annotations

import sys

from ondevice.cli import main

sys.exit(main())
