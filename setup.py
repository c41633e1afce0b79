"""Builds fastlstm._C. The CPU kernels are always built; which instruction set runs is decided at run time.

Environment: MAX_JOBS (parallel compilations), DEBUG=1 (-O0 -g), CXX, FASTLSTM_NO_OPENMP=1 (serial kernels).
"""

import os
import sys
from pathlib import Path

from setuptools import setup

try:
    from torch.utils.cpp_extension import BuildExtension, CppExtension
except ImportError:
    sys.exit(
        "fastlstm is built against the torch you have: install torch first, then run"
        " `pip install --no-build-isolation .`"
    )

ROOT = Path(__file__).parent
DEBUG = os.environ.get("DEBUG") == "1"
OPENMP = os.environ.get("FASTLSTM_NO_OPENMP") != "1"

# -fno-math-errno and -fno-trapping-math do not change a result; -ffast-math would. No -march: each kernel file names its
# instruction set itself, and the rest must run anywhere.
compile_args = ["-O0", "-g"] if DEBUG else ["-O3", "-g0"]
compile_args += ["-fno-math-errno", "-fno-trapping-math", "-fvisibility=hidden", "-Wall"]
link_args = []
if OPENMP and sys.platform.startswith("linux"):
    # Without it at::parallel_for would silently run serial as well. torch brings the OpenMP runtime itself.
    compile_args.append("-fopenmp")
    link_args.append("-fopenmp")

sources = sorted(str(p.relative_to(ROOT)) for p in (ROOT / "csrc").rglob("*.cpp"))
headers = sorted(
    str(p.relative_to(ROOT)) for pattern in ("*.h", "*.inl") for p in (ROOT / "csrc").rglob(pattern)
)

setup(
    ext_modules=[
        CppExtension(
            "fastlstm._C",
            sources,
            depends=headers,
            extra_compile_args={"cxx": compile_args},
            extra_link_args=link_args,
        )
    ],
    cmdclass={"build_ext": BuildExtension},
)
