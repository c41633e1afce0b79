import os

import pytest
import torch

import fastlstm


def pytest_report_header() -> str:
    return (
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, "
        f"fastlstm {fastlstm.__version__} on {fastlstm.cpu_capability()} "
        f"(ATEN_CPU_CAPABILITY={os.environ.get('ATEN_CPU_CAPABILITY', 'unset')})"
    )


@pytest.fixture(autouse=True)
def restore_global_state():
    """Seed every test alike and undo what it did to torch's process-wide switches."""
    threads = torch.get_num_threads()
    dtype = torch.get_default_dtype()
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)
    torch.set_default_dtype(dtype)
    torch.use_deterministic_algorithms(False)
    torch.set_flush_denormal(False)


@pytest.fixture(params=["AVX512", "AVX2", "DEFAULT"])
def capability(request: pytest.FixtureRequest) -> str:
    """Each CPU capability the extension can have; skips those missing here."""
    if request.param not in fastlstm._C.capabilities():
        pytest.skip(f"{request.param} is not compiled in or not supported by this machine")
    return request.param
