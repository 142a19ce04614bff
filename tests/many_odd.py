"""One of several processes has other versions in its last job. Imported first by a worker of
`many.py`."""

from __future__ import annotations

import os
from typing import Any

import ondevice.stages.pipeline as pipeline

_versions = pipeline.versions


def versions() -> dict[str, Any]:
    odd = os.environ["MANY_JOB"] == os.environ["MANY_ODD"]
    return {**_versions(), **({"ondevice": "0.0.1"} if odd else {})}


pipeline.versions = versions
