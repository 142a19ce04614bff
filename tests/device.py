"""Where tests run that hold for every device: `pytest --device gpu` takes Metal or CUDA."""

from __future__ import annotations

import os

from ondevice.seam.protocols import Backend
from ondevice.seam.select import load_backend

DEVICE = os.environ.get("ONDEVICE_TEST_DEVICE", "cpu")


def backend_of(name: str) -> Backend:
    """The backend on the device under test, in float32: where results can be compared."""
    return load_backend(name, device=DEVICE, dtype="float32")
