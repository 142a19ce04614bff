"""Where tests run that hold for every device: `pytest --device gpu` takes Metal or CUDA. The one test
here proves that the option arrives.
"""

from __future__ import annotations

import os

import pytest

from ondevice.seam.protocols import Backend
from ondevice.seam.select import load_backend

DEVICE = os.environ.get("ONDEVICE_TEST_DEVICE", "cpu")


def backend_of(name: str) -> Backend:
    """The backend on the device under test, in float32: where results can be compared."""
    return load_backend(name, device=DEVICE, dtype="float32")


def test_the_backend_is_on_the_device_that_was_asked_for(
    backend: Backend, request: pytest.FixtureRequest
) -> None:
    on_cpu = request.config.getoption("--device") == "cpu"
    assert (backend.device == "cpu") == on_cpu
