"""Builds fastlstm._C: the CPU kernels always, the CUDA kernels where torch has CUDA and nvcc is found.

Which of the CPU kernels runs is decided at run time. No GPU is needed: what is built does not
depend on the one that is present, unless TORCH_CUDA_ARCH_LIST says so.

Environment: MAX_JOBS (parallel compilations), DEBUG=1 (-O0 -g), CXX, FASTLSTM_NO_OPENMP=1 (serial
CPU kernels), FASTLSTM_TEST_CELLS=1 (a cell more, for the tests),
FASTLSTM_SANITIZE=address or thread (instrumented, for tests/kernels/sanitizers.py),
CUDA_HOME, TORCH_CUDA_ARCH_LIST ("8.0 9.0a"; default: see DEFAULT_ARCHS), FORCE_CUDA=1 (an error
where the CUDA kernels cannot be built), FASTLSTM_SKIP_CUDA_BUILD=1 (CPU kernels only).
"""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from setuptools import Extension, setup

ROOT = Path(__file__).parent
DEBUG = os.environ.get("DEBUG") == "1"
SANITIZE = os.environ.get("FASTLSTM_SANITIZE", "")
TEST_CELLS = ["-DFASTLSTM_TEST_CELLS"] * (os.environ.get("FASTLSTM_TEST_CELLS") == "1")
# ThreadSanitizer does not know libgomp, and would report every team's start and end as a race.
OPENMP = os.environ.get("FASTLSTM_NO_OPENMP") != "1" and SANITIZE != "thread"

# What each value of FASTLSTM_SANITIZE compiles with. The checks that are left out stand at every
# access or temporary: with them the kernels of one instruction set compile for minutes.
SANITIZERS = {
    "address": [
        "-fsanitize=address,undefined",
        "-fno-sanitize=null,alignment,object-size,pointer-overflow,vptr",
        "-fno-sanitize-address-use-after-scope",
        "-fno-sanitize-recover=undefined",
        "-fno-wrapv",  # Python compiles with -fwrapv, under which no overflow is reported
    ],
    "thread": ["-fsanitize=thread", "-DFASTLSTM_STD_THREADS"],
}

# One for each generation since the oldest that CUDA 13 knows, and for each that runs code of no
# other. Those that nvcc does not know are left out.
DEFAULT_ARCHS = ("7.5", "8.0", "8.6", "8.9", "9.0a", "10.0", "12.0")
# Where NVIDIA's installers, conda and Debian put the parts of a toolkit.
INCLUDE_FOLDERS = ("include", "targets/*/include")
LIB_FOLDERS = ("lib64", "lib", "targets/*/lib", "lib/*-linux-gnu")
# Included by ATen/cuda/CUDAContext.h, and missing in a toolkit that is little more than nvcc.
LIBRARY_HEADERS = ("cublas_v2.h", "cublasLt.h", "cusparse.h", "cusolverDn.h")


def toolkit_folders(home: Path, patterns: Iterable[str]) -> list[Path]:
    """The folders of a toolkit that match, in the order of the patterns."""
    return [folder for pattern in patterns for folder in sorted(home.glob(pattern))]


def toolkit_of(nvcc: str) -> str | None:
    """The toolkit of an nvcc that may be a script which runs the real one, or None.

    torch takes the folder above that of the nvcc on PATH for the toolkit.
    """
    output = subprocess.run([nvcc, "--dryrun", "none.cu"], capture_output=True, text=True).stderr
    match = re.search(r"^#\$ _HERE_=(.+)$", output, re.MULTILINE)
    return str(Path(match[1]).parent) if match else None


def find_toolkit() -> None:
    """Set CUDA_HOME where torch would guess wrong. It reads it when it is imported."""
    nvcc = shutil.which("nvcc")
    if nvcc is None or os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH"):
        return
    guess = Path(nvcc).parent.parent
    patterns = [f"{folder}/cuda_runtime_api.h" for folder in INCLUDE_FOLDERS]
    if toolkit_folders(guess, patterns):
        return
    if home := toolkit_of(nvcc):
        os.environ["CUDA_HOME"] = home


find_toolkit()
try:
    import torch
    from torch.utils.cpp_extension import CUDA_HOME, BuildExtension, CppExtension, CUDAExtension
except ImportError:
    sys.exit(
        "fastlstm is built against the torch you have: install torch first, then run"
        " `pip install --no-build-isolation .`"
    )


def why_not_cuda() -> str | None:
    """What keeps the CUDA kernels from being built here, or None."""
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is a build without CUDA"
    if CUDA_HOME is None:
        return "nvcc was not found: put it on PATH or set CUDA_HOME"
    if not Path(CUDA_HOME, "bin", "nvcc").exists():
        return f"there is no bin/nvcc in CUDA_HOME ({CUDA_HOME})"
    return None


def want_cuda() -> bool:
    """Whether to build the CUDA kernels. Exits where FORCE_CUDA=1 cannot be obeyed."""
    forced = os.environ.get("FORCE_CUDA") == "1"
    if os.environ.get("FASTLSTM_SKIP_CUDA_BUILD") == "1":
        if forced:
            sys.exit("FORCE_CUDA=1 and FASTLSTM_SKIP_CUDA_BUILD=1 contradict each other: unset one")
        return False
    obstacle = why_not_cuda()
    if obstacle and forced:
        sys.exit(f"FORCE_CUDA=1 asks for the CUDA kernels, but {obstacle}")
    if obstacle and torch.version.cuda is not None:
        print(f"fastlstm: building for the CPU only, as {obstacle}", file=sys.stderr)
    return obstacle is None


def arch_list(requested: str, nvcc_codes: Iterable[str]) -> str:
    """The architectures to compile for, in the form of TORCH_CUDA_ARCH_LIST, between spaces.

    Args:
        requested: the user's list, between spaces or semicolons; empty: `DEFAULT_ARCHS`.
        nvcc_codes: what nvcc can compile for: "sm_80", "sm_90", ...
    """
    if requested:
        return " ".join(requested.replace(";", " ").split())
    known = set(nvcc_codes)
    archs = [a for a in DEFAULT_ARCHS if "sm_" + a.rstrip("a").replace(".", "") in known]
    # PTX, for GPUs to come. That of an architecture with "a" would run on no other.
    portable = [a for a in archs if not a.endswith("a")]
    return " ".join(a + "+PTX" if a == portable[-1] else a for a in archs)


def nvcc_codes() -> list[str]:
    command = [str(Path(CUDA_HOME, "bin", "nvcc")), "--list-gpu-code"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()


def pip_folders(name: str) -> list[Path]:
    """`name` ("include", "lib") of NVIDIA's packages, which pip installs beside torch."""
    spec = importlib.util.find_spec("nvidia")
    roots = spec.submodule_search_locations if spec else None
    return sorted(folder for root in roots or () for folder in Path(root).glob(f"*/{name}"))


def extra_includes(folders: Iterable[Path]) -> list[Path]:
    """The first of `folders` that holds each of `LIBRARY_HEADERS`. Exits where one is in none."""
    folders = list(folders)
    found: dict[Path, None] = {}
    for header in LIBRARY_HEADERS:
        holders = [folder for folder in folders if (folder / header).exists()]
        if not holders:
            sys.exit(
                f"the CUDA kernels need {header}, which is neither in CUDA_HOME ({CUDA_HOME}) nor"
                " in a package of pip: install the toolkit's libraries, or set"
                " FASTLSTM_SKIP_CUDA_BUILD=1 for a build without CUDA"
            )
        found[holders[0]] = None
    return list(found)


def cublas(folders: Iterable[Path], cuda_major: str) -> tuple[Path, str]:
    """The folder of libcublas and its name for the linker. Exits where there is none.

    NVIDIA's pip packages have the file with the version in its name only. Its folder is for the
    linker: when fastlstm is imported, torch has loaded the library.
    """
    versioned = f"libcublas.so.{cuda_major}"
    for folder in folders:
        if (folder / "libcublas.so").exists():
            return folder, "cublas"
        if (folder / versioned).exists():
            return folder, ":" + versioned
    sys.exit(
        f"the CUDA kernels need libcublas.so, which is neither in CUDA_HOME ({CUDA_HOME}) nor"
        f" (as {versioned}) in a package of pip: install it, or set FASTLSTM_SKIP_CUDA_BUILD=1 for"
        " a build without CUDA"
    )


def sources(with_cuda: bool) -> list[str]:
    """Every file to compile, relative to the root as setuptools wants it."""
    files = [p for pattern in ("*.cpp", "*.cu") for p in (ROOT / "csrc").rglob(pattern)]
    files = [p.relative_to(ROOT) for p in files]
    return sorted(str(p) for p in files if with_cuda or Path("csrc/cuda") not in p.parents)


def headers() -> list[str]:
    patterns = ("*.h", "*.inl", "*.cuh")
    files = [p for pattern in patterns for p in (ROOT / "csrc").rglob(pattern)]
    return sorted(str(p.relative_to(ROOT)) for p in files)


def cxx_flags() -> tuple[list[str], list[str]]:
    """Flags for the host's compiler and for the linker."""
    # -fno-math-errno and -fno-trapping-math do not change a result; -ffast-math would. No -march:
    # each kernel file names its instruction set itself, and the rest must run anywhere.
    # The loop of the register tile is 146 bytes. Where it happens to begin decides how many lines of
    # the cache of decoded instructions it takes: on a Zen 3 the same instructions 32 bytes further
    # on made the LSTM's forward 5 to 12 % slower.
    aligned = ["-falign-functions=64", "-falign-loops=64"]
    compile_args = ["-O0", "-g"] if DEBUG else ["-O3", "-g0", *aligned]
    link_args = []
    if SANITIZE:
        if SANITIZE not in SANITIZERS:
            sys.exit(f"FASTLSTM_SANITIZE must be address or thread, got {SANITIZE}")
        compile_args = ["-O1", "-g1", "-fno-omit-frame-pointer", *SANITIZERS[SANITIZE]]
        link_args.append(SANITIZERS[SANITIZE][0])
    compile_args += TEST_CELLS + [
        "-fno-math-errno",
        "-fno-trapping-math",
        "-fvisibility=hidden",
        "-Wall",
    ]
    if OPENMP and sys.platform.startswith("linux"):
        # Without it at::parallel_for would silently run serial as well. torch brings the OpenMP
        # runtime itself.
        compile_args.append("-fopenmp")
        link_args.append("-fopenmp")
    return compile_args, link_args


def nvcc_flags() -> list[str]:
    # DEBUG=1 is for the host's half: -G changes the kernels so much that their faults go away.
    # -lineinfo costs no time and lets profilers and compute-sanitizer name the line.
    flags = ["-O0", "-g"] if DEBUG else ["-O3"]
    flags += TEST_CELLS + ["-lineinfo", "-std=c++17", "-Xcompiler=-fvisibility=hidden"]
    if cxx := os.environ.get("CXX"):
        flags.append(f"-ccbin={cxx}")
    return flags


def cpu_extension() -> Extension:
    compile_args, link_args = cxx_flags()
    return CppExtension(
        "fastlstm._C",
        sources(with_cuda=False),
        depends=headers(),
        extra_compile_args={"cxx": compile_args},
        extra_link_args=link_args,
    )


def cuda_extension() -> Extension:
    archs = arch_list(os.environ.get("TORCH_CUDA_ARCH_LIST", ""), nvcc_codes())
    # torch makes the flags from it. Unset, it would ask the GPUs that are present.
    os.environ["TORCH_CUDA_ARCH_LIST"] = archs
    home = Path(CUDA_HOME)
    libs = toolkit_folders(home, LIB_FOLDERS) + pip_folders("lib")
    cublas_folder, cublas_name = cublas(libs, torch.version.cuda.split(".")[0])
    compile_args, link_args = cxx_flags()
    extension = CUDAExtension(
        "fastlstm._C",
        sources(with_cuda=True),
        depends=headers(),
        define_macros=[("FASTLSTM_CUDA", "1"), ("FASTLSTM_CUDA_ARCHS", f'"{archs}"')],
        library_dirs=[str(cublas_folder)],
        libraries=[cublas_name],
        extra_compile_args={"cxx": compile_args, "nvcc": nvcc_flags()},
        extra_link_args=link_args,
    )
    # torch adds the toolkit's own folder. Behind it, so that these give only what it lacks.
    includes = toolkit_folders(home, INCLUDE_FOLDERS) + pip_folders("include")
    extension.include_dirs += [str(p) for p in extra_includes(includes) if p != home / "include"]
    return extension


if __name__ == "__main__":
    setup(
        ext_modules=[cuda_extension() if want_cuda() else cpu_extension()],
        cmdclass={"build_ext": BuildExtension},
    )
