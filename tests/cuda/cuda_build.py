"""`make cuda-build`: the extension with its CUDA kernels, built and imported without a GPU.

    python tests/cuda/cuda_build.py build/cuda
    python tests/cuda/cuda_build.py build/cuda --table docs/cuda_kernels.md

builds with the torch that runs it, below the folder, for the architectures in TORCH_CUDA_ARCH_LIST.
Warnings of either compiler are errors, and so is a kernel whose registers spill. Then a fresh
process imports the result, which shows that no symbol is missing, and runs a layer on the CPU.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SELF_TEST = ROOT / "tests/simt/selftest.cu"

# setuptools appends CPPFLAGS and LDFLAGS to its own, nvcc NVCC_APPEND_FLAGS.
STRICT = {
    "FORCE_CUDA": "1",
    "CPPFLAGS": "-Werror",
    # Every symbol is bound at import, functions as well as data.
    "LDFLAGS": "-Wl,-z,now",
    "NVCC_APPEND_FLAGS": (
        "-Werror=all-warnings -Xcompiler=-Wall,-Werror -Xptxas=-v,--warn-on-spills,-Werror"
    ),
}

IMPORT = """
import fastlstm, torch
output, _ = fastlstm.LSTM(3, 5)(torch.randn(2, 4, 3))
output.sum().backward()
assert output.shape == (2, 4, 5) and output.isfinite().all()
print("imported without a GPU; compiled for", fastlstm._C.cuda_arch_list())
"""

_STEP = re.compile(r"^\[(\d+/\d+)\] .* -c (\S+\.(?:cpp|cu)) ")
# Of a compilation that failed ninja writes a headline, the command, and its output.
_FAILED = re.compile(r"^FAILED: .*\n.*\n((?:(?!\[\d+/\d+\] |ninja: ).*\n)*)", re.MULTILINE)
# What ninja, nvcc and ptxas write when all is well.
_ROUTINE = re.compile(
    r"^(\[\d+/\d+\] |#\$ NVCC_APPEND_FLAGS|ptxas info |    \d+ bytes stack frame, |\s*$)"
)
_MOST_LINES = 60
_ARCH = re.compile(r"^arch = (\S+)$")
_FUNCTION = re.compile(r"^ Function (\S+):$")
_USAGE = re.compile(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)")


class BuildError(Exception):
    """A step failed; the message is for the terminal."""


@dataclass(frozen=True)
class Kernel:
    """What one kernel takes on one architecture: registers a thread, stack and local bytes."""

    arch: str
    name: str
    registers: int
    stack: int
    local: int


def progress(line: str) -> str | None:
    """`3/20 csrc/layer/layer.cpp` of a line of ninja about a file that it compiles, else None."""
    match = _STEP.match(line)
    if match is None:
        return None
    path = Path(match[2])
    return f"{match[1]} {path.relative_to(ROOT) if path.is_relative_to(ROOT) else path}"


def complaints(log: str) -> str:
    """What a reader of a failed build wants, with names as in the source.

    That is what the failed compilations wrote, or else the end of the log.
    """
    text = "".join(_FAILED.findall(log)) or log
    lines = [line for line in text.splitlines() if not _ROUTINE.match(line)]
    return demangle("\n".join(lines[-_MOST_LINES:]))


def demangle(text: str) -> str:
    cxxfilt = shutil.which("c++filt")
    if cxxfilt is None:
        return text
    return subprocess.run([cxxfilt], input=text, capture_output=True, text=True, check=True).stdout


def run_logged(command: Sequence[str], log: Path, env: dict[str, str]) -> None:
    """Run a command with its output in `log` and one line a compiled file on the terminal.

    Raises:
        BuildError: it failed; with its complaints.
    """
    with (
        log.open("w") as file,
        subprocess.Popen(
            command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as process,
    ):
        for line in process.stdout:
            file.write(line)
            if step := progress(line):
                print(step, flush=True)
    if process.returncode:
        raise BuildError(f"{complaints(log.read_text())}\nall of it: {log}")


def build(out: Path, env: dict[str, str]) -> Path:
    """Build the package below `out` and return the folder to import it from."""
    package = out / "lib"
    # Nothing of an earlier build may be imported. The objects stay, which take the time.
    shutil.rmtree(package, ignore_errors=True)
    command = [sys.executable, "setup.py", "egg_info", "--egg-base", str(out)]
    command += ["build", "--build-base", str(out), "--build-lib", str(package)]
    run_logged(command, out / "build.log", env)
    return package


def nvcc() -> Path:
    """The compiler that setup.py takes as well."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    found = None if home else shutil.which("nvcc")
    return Path(found) if found else Path(home or "/usr/local/cuda", "bin", "nvcc")


def gencode(archs: str) -> list[str]:
    """The flags of nvcc for a TORCH_CUDA_ARCH_LIST of numbers without PTX, such as "8.0 9.0a"."""
    numbers = [arch.replace(".", "") for arch in archs.replace(";", " ").split()]
    return [f"-gencode=arch=compute_{n},code=sm_{n}" for n in numbers]


def compile_self_test(out: Path, env: dict[str, str]) -> None:
    """Compile the kernels that try each primitive of the device, which are not in the library.

    Raises:
        BuildError: it failed; with its complaints.
    """
    command = [str(nvcc()), "-std=c++17", "-O3", "-lineinfo", "-Icsrc", "-c", str(SELF_TEST)]
    command += [*gencode(env["TORCH_CUDA_ARCH_LIST"]), "-o", str(out / "selftest.o")]
    print(SELF_TEST.relative_to(ROOT), flush=True)
    run_logged(command, out / "selftest.log", env)


def import_fresh(package: Path) -> None:
    """Import the build in a process of its own and run a layer on the CPU.

    Raises:
        BuildError: it failed; with the process's errors.
    """
    result = subprocess.run(
        [sys.executable, "-c", IMPORT],
        cwd=package,
        env=os.environ | {"PYTHONPATH": str(package), "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
    )
    if result.returncode:
        raise BuildError(f"the build cannot be used:\n{result.stderr}")
    print(result.stdout, end="")


def find_cuobjdump() -> str | None:
    """cuobjdump of the toolkit, or of the triton that came with torch."""
    if found := shutil.which("cuobjdump", path=f"{nvcc().parent}{os.pathsep}{os.environ['PATH']}"):
        return found
    site = Path(sysconfig.get_path("purelib"))
    bundled = site / "triton/backends/nvidia/bin/cuobjdump"
    return str(bundled) if bundled.exists() else None


def parse_kernels(dump: str) -> Iterator[Kernel]:
    """The kernels in the output of `cuobjdump --dump-resource-usage`."""
    arch = name = ""
    for line in dump.splitlines():
        if match := _ARCH.match(line):
            arch = match[1]
        elif match := _FUNCTION.match(line):
            name = match[1]
        elif name and (match := _USAGE.search(line)):
            yield Kernel(arch, name, int(match[1]), int(match[2]), int(match[4]))
            name = ""


def summary(kernels: Iterable[Kernel]) -> str:
    """One line an architecture: how many kernels, and the most registers and stack of one."""
    by_arch: dict[str, list[Kernel]] = {}
    for kernel in kernels:
        by_arch.setdefault(kernel.arch, []).append(kernel)
    return "\n".join(
        f"{arch}: {len(group)} kernels, at most {max(k.registers for k in group)} registers"
        f" and {max(k.stack + k.local for k in group)} bytes of stack a thread"
        for arch, group in sorted(by_arch.items())
    )


def dump_of(binary: Path) -> str:
    """What cuobjdump says of the kernels in a library or an object.

    Raises:
        ValueError: there is no cuobjdump.
    """
    cuobjdump = find_cuobjdump()
    if cuobjdump is None:
        raise ValueError("cuobjdump was not found")
    command = [cuobjdump, "--dump-resource-usage", str(binary)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def library_of(package: Path) -> Path:
    return next((package / "fastlstm").glob("_C*.so"))


def list_kernels(package: Path) -> None:
    """Print what the library holds for each architecture, where cuobjdump is to be had."""
    try:
        print(summary(parse_kernels(dump_of(library_of(package)))))
    except ValueError as error:
        print(f"{error}: the kernels are not listed")


def write_table(path: Path, package: Path) -> None:
    """Write docs/cuda_kernels.md, or another file, about the persistent kernels of the library.

    Raises:
        BuildError: they cannot be listed.
    """
    # It imports this file.
    import kernel_table

    try:
        kernel_table.write_table(path, [library_of(package)])
    except ValueError as error:
        raise BuildError(f"no table: {error}") from None


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("out", type=Path, help="folder for all that is built")
    parser.add_argument(
        "--table", type=Path, metavar="FILE", help="write a table of the persistent kernels to FILE"
    )
    args = parser.parse_args(arguments)
    out = args.out.resolve()
    if not os.environ.get("TORCH_CUDA_ARCH_LIST"):
        parser.error("TORCH_CUDA_ARCH_LIST must say what to compile for, such as 8.0 9.0a")
    out.mkdir(parents=True, exist_ok=True)
    # ninja is beside the Python that has it.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    env = os.environ | STRICT | {"PATH": path}
    try:
        package = build(out, env)
        if SELF_TEST.exists():
            compile_self_test(out, env)
        import_fresh(package)
        list_kernels(package)
        if args.table is not None:
            write_table(args.table, package)
    except BuildError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
