import os
import sys
from pathlib import Path

import pytest
import torch

import fastlstm

TESTS = Path(__file__).resolve().parent
# What tests of several rooms import; what one room alone needs is found beside its tests.
sys.path.insert(0, str(TESTS / "support"))
# benchmarks and examples are found here. Last, so that fastlstm is the installed one.
sys.path.append(str(TESTS.parent))

# torch.testing's modules (the module database, opcheck) call it when they are imported, and no test
# after that could change a switch such as torch.backends.mkldnn.enabled.
torch.backends.disable_global_flags = lambda: None


def pytest_report_header() -> str:
    return (
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, "
        f"fastlstm {fastlstm.__version__} on {fastlstm.cpu_capability()} "
        f"(ATEN_CPU_CAPABILITY={os.environ.get('ATEN_CPU_CAPABILITY', 'unset')})"
    )


@pytest.fixture(autouse=True)
def restore_global_state():
    """Seed every test alike and undo what it did to torch's process-wide switches.

    One thread, unless a test asks for more: on a busy machine torch's own threads wait for each
    other most of the time when tensors are as small as these.
    """
    dtype = torch.get_default_dtype()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(1)
    torch.set_default_dtype(dtype)
    torch.use_deterministic_algorithms(False)
    torch.set_flush_denormal(False)


@pytest.fixture(params=["AVX512", "AVX2", "DEFAULT"])
def capability(request: pytest.FixtureRequest) -> str:
    """Each CPU capability the extension can have; skips those missing here."""
    if request.param not in fastlstm._C.capabilities():
        pytest.skip(f"{request.param} is not compiled in or not supported by this machine")
    return request.param
