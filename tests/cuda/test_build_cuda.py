"""How setup.py decides what to build, and how `make cuda-build` reads what the compilers write."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import cuda_build
import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
SWITCHES = ("FORCE_CUDA", "FASTLSTM_SKIP_CUDA_BUILD", "CUDA_HOME", "CUDA_PATH", "CXX")
CUDA_13 = ("75", "80", "86", "87", "88", "89", "90", "100", "110", "103", "120", "121")
CUDA_12_4 = ("50", "52", "53", "60", "61", "62", "70", "72", "75", "80", "86", "87", "89", "90")


@pytest.fixture
def build(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """setup.py as a module, where torch has CUDA 13 and nothing is asked for in the environment."""
    for name in SWITCHES:
        monkeypatch.delenv(name, raising=False)
    spec = importlib.util.spec_from_file_location("fastlstm_setup", ROOT / "setup.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    os.environ.pop("CUDA_HOME", None)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    return module


@pytest.fixture
def toolkit(build: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An nvcc, and nothing else, where setup.py looks for the toolkit."""
    make(tmp_path / "toolkit/bin", "nvcc")
    monkeypatch.setattr(build, "CUDA_HOME", str(tmp_path / "toolkit"))
    return tmp_path / "toolkit"


def make(folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).touch()
    return folder


def codes(numbers: tuple[str, ...]) -> list[str]:
    return [f"sm_{number}" for number in numbers]


# What to build.


def test_cuda_is_built_where_it_can_be(build: ModuleType, toolkit: Path) -> None:
    assert build.want_cuda()


def test_skip_leaves_cuda_out(
    build: ModuleType, toolkit: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FASTLSTM_SKIP_CUDA_BUILD", "1")
    assert not build.want_cuda()
    monkeypatch.setenv("FORCE_CUDA", "1")
    with pytest.raises(SystemExit, match="contradict"):
        build.want_cuda()


def test_torch_without_cuda(
    build: ModuleType,
    toolkit: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.setattr(torch.version, "cuda", None)
    assert not build.want_cuda()
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("FORCE_CUDA", "1")
    with pytest.raises(
        SystemExit, match=f"torch {re.escape(torch.__version__)} is a build without"
    ):
        build.want_cuda()


@pytest.mark.parametrize(
    ("home", "message"), [(None, "nvcc was not found"), ("/nowhere", r"CUDA_HOME \(/nowhere\)")]
)
def test_no_compiler_for_cuda(
    build: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    home: str | None,
    message: str,
) -> None:
    monkeypatch.setattr(build, "CUDA_HOME", home)
    assert not build.want_cuda()
    note = capsys.readouterr().err
    assert note.startswith("fastlstm: building for the CPU only") and re.search(message, note)
    monkeypatch.setenv("FORCE_CUDA", "1")
    with pytest.raises(SystemExit, match=message):
        build.want_cuda()


@pytest.mark.skipif(
    torch.version.cuda is not None, reason="needs a torch without CUDA, as in .venv"
)
def test_force_cuda_is_one_line_of_error() -> None:
    result = subprocess.run(
        [sys.executable, "setup.py", "--version"],
        cwd=ROOT,
        env=os.environ | {"FORCE_CUDA": "1"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 1 and result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("FORCE_CUDA=1 asks for the CUDA kernels, but torch ")


def test_unknown_sanitizer_is_one_line_of_error(
    build: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "SANITIZE", "memory")
    with pytest.raises(SystemExit, match="FASTLSTM_SANITIZE must be address or thread, got memory"):
        build.cxx_flags()


def test_sources(build: ModuleType) -> None:
    cpu, cuda = build.sources(with_cuda=False), build.sources(with_cuda=True)
    assert set(cpu) < set(cuda)
    assert {Path(name).parts[1] for name in set(cuda) - set(cpu)} == {"cuda"}
    assert {Path(name).suffix for name in cpu} == {".cpp"}
    assert {Path(name).suffix for name in cuda} == {".cpp", ".cu"}
    objects = [Path(name).with_suffix(".o") for name in cuda]
    assert len(set(objects)) == len(objects), "two sources would be compiled into one object"


def test_manifest_ships_what_is_built() -> None:
    (line,) = re.findall(r"^recursive-include csrc (.*)$", (ROOT / "MANIFEST.in").read_text(), re.M)
    present = {p.suffix for p in (ROOT / "csrc").rglob("*") if p.is_file()}
    assert present <= {pattern.lstrip("*") for pattern in line.split()}


# Architectures.


@pytest.mark.parametrize(
    ("known", "expected"),
    [
        (CUDA_13, "7.5 8.0 8.6 8.9 9.0a 10.0 12.0+PTX"),
        (CUDA_12_4, "7.5 8.0 8.6 8.9+PTX 9.0a"),
    ],
)
def test_default_archs(build: ModuleType, known: tuple[str, ...], expected: str) -> None:
    assert build.arch_list("", codes(known)) == expected


@pytest.mark.parametrize("requested", ["8.0;9.0a", "8.0 9.0a", " 8.0;  9.0a; "])
def test_requested_archs(build: ModuleType, requested: str) -> None:
    assert build.arch_list(requested, codes(CUDA_13)) == "8.0 9.0a"


def test_archs_of_torch(build: ModuleType) -> None:
    """What is passed on to torch is what it understands."""
    from torch.utils import cpp_extension

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCH_CUDA_ARCH_LIST", build.arch_list("", codes(CUDA_13)))
        flags = cpp_extension._get_cuda_arch_flags()
    assert "-gencode=arch=compute_90a,code=sm_90a" in flags
    assert [flag for flag in flags if "code=compute" in flag] == [
        "-gencode=arch=compute_120,code=compute_120"
    ]


# Where a toolkit's parts are.


def test_a_whole_toolkit_is_enough(build: ModuleType, tmp_path: Path) -> None:
    toolkit = make(tmp_path / "toolkit/include", *build.LIBRARY_HEADERS)
    pip = make(tmp_path / "nvidia/cu13/include", *build.LIBRARY_HEADERS)
    assert build.extra_includes([toolkit, pip]) == [toolkit]


def test_pip_gives_the_headers_that_a_toolkit_lacks(build: ModuleType, tmp_path: Path) -> None:
    toolkit = make(tmp_path / "toolkit/include", "cublas_v2.h", "cublasLt.h")
    cublas = make(tmp_path / "nvidia/cublas/include", "cublas_v2.h", "cublasLt.h")
    solver = make(tmp_path / "nvidia/cusolver/include", "cusolverDn.h")
    sparse = make(tmp_path / "nvidia/cusparse/include", "cusparse.h")
    folders = [toolkit, cublas, solver, sparse]
    assert build.extra_includes(folders) == [toolkit, sparse, solver]


def test_missing_header(build: ModuleType, toolkit: Path) -> None:
    folder = make(toolkit / "include", "cublas_v2.h", "cublasLt.h", "cusolverDn.h")
    with pytest.raises(SystemExit, match=rf"need cusparse.h, which is neither.*\({toolkit}\)"):
        build.extra_includes([folder])


def test_cublas(build: ModuleType, toolkit: Path, tmp_path: Path) -> None:
    empty = make(toolkit / "lib64")
    pip = make(tmp_path / "nvidia/cu13/lib", "libcublas.so.13", "libcublasLt.so.13")
    whole = make(tmp_path / "whole/lib64", "libcublas.so", "libcublas.so.13")
    assert build.cublas([empty, pip], "13") == (pip, ":libcublas.so.13")
    assert build.cublas([whole, pip], "13") == (whole, "cublas")
    with pytest.raises(SystemExit, match=r"libcublas\.so, which is neither.*libcublas\.so\.12"):
        build.cublas([empty, pip], "12")


def test_folders_of_pip(build: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    include = make(tmp_path / "nvidia/cu13/include")
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "nvidia", raising=False)
    assert build.pip_folders("include") == [include]
    assert build.pip_folders("lib") == []


def test_folders_without_pip_packages(
    build: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "nvidia", raising=False)
    assert build.pip_folders("include") == []


def test_nvcc_behind_a_script(
    build: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The script's folder is no toolkit; the real one is where nvcc says that it is."""
    script = make(tmp_path / "bin") / "nvcc"
    script.write_text(f"#!/bin/sh\necho '#$ _HERE_={tmp_path}/cuda/bin' >&2\nexit 1\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(script.parent))
    monkeypatch.setenv("CUDA_HOME", "")
    build.find_toolkit()
    assert os.environ["CUDA_HOME"] == f"{tmp_path}/cuda"

    make(tmp_path / "include", "cuda_runtime_api.h")
    monkeypatch.setenv("CUDA_HOME", "")
    build.find_toolkit()
    assert os.environ["CUDA_HOME"] == "", "torch finds a toolkit around its nvcc itself"


def test_cxx_is_the_host_compiler_of_nvcc(
    build: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not any(flag.startswith("-ccbin") for flag in build.nvcc_flags())
    monkeypatch.setenv("CXX", "g++-12")
    assert "-ccbin=g++-12" in build.nvcc_flags()


# What the compilers write.

NINJA_LOG = f"""\
running build_ext
[1/3] c++ -MMD -MF a.o.d -I/x -c -c {ROOT}/csrc/layer/layer.cpp -o a.o -O3
[2/3] nvcc -MD -MF b.o.d -DX -c {ROOT}/csrc/cuda/step.cu -o b.o -lineinfo
FAILED: [code=255] b.o
nvcc -MD -MF b.o.d -DX -c {ROOT}/csrc/cuda/step.cu -o b.o -lineinfo
ptxas info    : Compiling entry function '_Z4stepIfEvPT_' for 'sm_80'
ptxas error   : Registers are spilled to local memory in function '_Z4stepIfEvPT_', 8 bytes
    8 bytes stack frame, 8 bytes spill stores, 8 bytes spill loads
[3/3] c++ -MMD -MF c.o.d -c -c {ROOT}/csrc/layer/cell.cpp -o c.o
ninja: build stopped: subcommand failed.
Traceback (most recent call last):
RuntimeError: Error compiling objects for extension
"""


def test_progress() -> None:
    steps = [cuda_build.progress(line) for line in NINJA_LOG.splitlines()]
    assert [step for step in steps if step] == [
        "1/3 csrc/layer/layer.cpp",
        "2/3 csrc/cuda/step.cu",
        "3/3 csrc/layer/cell.cpp",
    ]


def test_complaints_are_those_of_the_failed_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_build, "demangle", lambda text: text)
    assert cuda_build.complaints(NINJA_LOG) == (
        "ptxas error   : Registers are spilled to local memory in function '_Z4stepIfEvPT_', 8 bytes"
    )
    link = "[1/1] c++ -c a.cpp\nld: cannot find -lcublas\nerror: command 'g++' failed\n"
    assert cuda_build.complaints(link) == ("ld: cannot find -lcublas\nerror: command 'g++' failed")


@pytest.mark.skipif(not shutil.which("c++filt"), reason="needs c++filt of binutils")
def test_kernels_are_named_as_in_the_source() -> None:
    assert "void step<float>(float*)" in cuda_build.complaints(NINJA_LOG)


def test_a_failed_command_says_so(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    command = [sys.executable, "-c", f"print({NINJA_LOG!r}); raise SystemExit(3)"]
    with pytest.raises(cuda_build.BuildError, match="spilled to local memory"):
        cuda_build.run_logged(command, tmp_path / "log", dict(os.environ))
    assert "2/3 csrc/cuda/step.cu" in capsys.readouterr().out
    assert "RuntimeError" in (tmp_path / "log").read_text()


# More values than 32 registers hold, all of them alive at the barrier.
SPILLING_KERNEL = """
__global__ void __launch_bounds__(1024, 2) faulty(float* p) {
  float kept[64];
#pragma unroll
  for (int i = 0; i < 64; i++) kept[i] = p[i * 7 + threadIdx.x];
  __syncthreads();
#pragma unroll
  for (int i = 0; i < 64; i++) p[i + threadIdx.x] = kept[i] * kept[(i * 13 + 5) % 64];
}
"""
CARELESS_KERNEL = "__global__ void faulty() { int unused = 3; }\n"


@pytest.mark.skipif(not cuda_build.nvcc().exists(), reason="needs nvcc")
@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        (SPILLING_KERNEL, r"spilled to local memory in function '.*faulty"),
        (CARELESS_KERNEL, r"error #177-D: variable .unused."),
    ],
    ids=["spill", "warning"],
)
def test_faults_of_a_kernel_are_errors(tmp_path: Path, source: str, complaint: str) -> None:
    path = tmp_path / "faulty.cu"
    path.write_text(source)
    command = [str(cuda_build.nvcc()), *cuda_build.gencode("8.0"), "-c", str(path)]
    command += ["-o", str(tmp_path / "faulty.o")]
    with pytest.raises(cuda_build.BuildError, match=complaint):
        cuda_build.run_logged(command, tmp_path / "log", os.environ | cuda_build.STRICT)


def test_gencode() -> None:
    assert cuda_build.gencode("8.0 9.0a") == [
        "-gencode=arch=compute_80,code=sm_80",
        "-gencode=arch=compute_90a,code=sm_90a",
    ]


DUMP = """
Fatbin elf code:
================
arch = sm_80
code version = [1,8]

Resource usage:
 Common:
  GLOBAL:0
 Function _Z1aPf:
  REG:72 STACK:0 SHARED:0 LOCAL:0 CONSTANT[0]:360 TEXTURE:0 SURFACE:0 SAMPLER:0
 Function _Z1bPf:
  REG:32 STACK:16 SHARED:128 LOCAL:8 CONSTANT[0]:360 TEXTURE:0 SURFACE:0 SAMPLER:0

Fatbin elf code:
================
arch = sm_90a

Resource usage:
 Common:
  GLOBAL:0
 Function _Z1aPf:
  REG:64 STACK:0 SHARED:0 LOCAL:0 CONSTANT[0]:536 TEXTURE:0 SURFACE:0 SAMPLER:0
"""


def test_summary_of_kernels() -> None:
    kernels = list(cuda_build.parse_kernels(DUMP))
    assert [kernel.name for kernel in kernels] == ["_Z1aPf", "_Z1bPf", "_Z1aPf"]
    assert cuda_build.summary(kernels).splitlines() == [
        "sm_80: 2 kernels, at most 72 registers and 24 bytes of stack a thread",
        "sm_90a: 1 kernels, at most 64 registers and 0 bytes of stack a thread",
    ]


def test_architectures_must_be_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, tmp_path: Path
) -> None:
    monkeypatch.delenv("TORCH_CUDA_ARCH_LIST", raising=False)
    with pytest.raises(SystemExit):
        cuda_build.main([str(tmp_path)])
    assert "TORCH_CUDA_ARCH_LIST" in capsys.readouterr().err
