import gc

import pytest

from benchmarks.common import machine


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """The peak is measured for a moment, and the collector, which runs before every timing, does
    not search all of torch."""
    monkeypatch.setattr(machine, "PEAK_SECONDS", 0.002)
    gc.freeze()
    yield
    gc.unfreeze()
