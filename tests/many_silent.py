"""A silent connection is looked after sooner than a person would have it. Imported first by a worker
of `many.py`."""

from __future__ import annotations

from ondevice.seam import connections

connections._OPTIONS.update(
    TCP_KEEPIDLE=1, TCP_KEEPALIVE=1, TCP_KEEPINTVL=1, TCP_KEEPCNT=3, TCP_USER_TIMEOUT=4000
)
