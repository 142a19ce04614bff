"""`python -m ondevice` is the command `ondevice`."""

from __future__ import annotations

import sys

from ondevice.common.launch import leave_working_folder

leave_working_folder()  # `-m` searches it first, and a person's folder may hold a `yaml.py`

from ondevice.cli import command  # noqa: E402

sys.exit(command())
