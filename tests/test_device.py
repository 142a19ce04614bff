"""`pytest --device` arrives."""

from __future__ import annotations

import pytest

from ondevice.seam.protocols import Backend


def test_the_backend_is_on_the_device_that_was_asked_for(
    backend: Backend, request: pytest.FixtureRequest
) -> None:
    on_cpu = request.config.getoption("--device") == "cpu"
    assert (backend.device == "cpu") == on_cpu
