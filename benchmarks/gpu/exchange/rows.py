"""The columns of the results."""

from __future__ import annotations

FIELDS = (
    *("date", "commit", "device", "driver", "cuda", "capability", "sms", "sm_mhz"),
    *("scheme", "groups", "blocks", "threads", "N", "H", "steps", "launches"),
    *("us", "us_min", "us_max", "us_with_loop", "us_loop"),
)
