"""Loads the compiled kernels, or says how to build them. There is no slow fallback."""

import importlib

import torch  # first: the extension links against torch's libraries and its OpenMP runtime

try:
    # Not `from fastlstm import _C`, whose error would speak of a circular import.
    _C = importlib.import_module("fastlstm._C")
except ImportError as error:
    raise ImportError(
        "fastlstm._C, the compiled part of fastlstm, cannot be loaded for this Python and torch"
        f" {torch.__version__}; build it with `pip install --no-build-isolation .` in the source tree"
        f" ({error})"
    ) from error


def cpu_capability() -> str:
    """Return the instruction set of the CPU kernels in use: ``"AVX512"``, ``"AVX2"`` or ``"DEFAULT"``.

    The environment variable ``ATEN_CPU_CAPABILITY`` (``avx512``, ``avx2``, ``default``), read once a
    process, narrows it, as it does for torch itself.
    """
    return _C.cpu_capability()


__all__ = ["_C", "cpu_capability"]
