"""Builds the extension with sanitizers, out of place, and runs the kernel tests under them.

    python tests/kernels/sanitizers.py                  both, then test_sanitizers.py
    python tests/kernels/sanitizers.py thread -k cells  one of them, with arguments for pytest

torch is not instrumented: what it allocates is watched where our code touches it, its own threads
are not.
"""

import os
import subprocess
import sys
import sysconfig
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fastlstm

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build" / "sanitize"

# Which tests run in which build; each list is a process.
TESTS = {
    "address": [
        ["races", "half", "parity", "schedule", "states", "tokens"],
        ["cells_parity", "isolation", "layouts", "memory", "odd_tensors", "ragged"],
    ],
    "thread": [["races", "isolation"]],
}
# And on kernels that are not the best of the machine: those of them that are marked `paths`.
OTHER_KERNELS = [["races", "cells_parity", "layouts", "states"]]

# Fatal where found: a report names the place, and the log the test. Of what libraries do that are not
# instrumented ThreadSanitizer sees a part, and would take it for races.
OPTIONS = {
    "address": {
        "ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
    },
    "thread": {"TSAN_OPTIONS": "halt_on_error=1:ignore_noninstrumented_modules=1"},
}
# libstdc++ as well: the interceptors look for its functions when the first library is loaded.
RUNTIMES = {"address": ["libasan.so", "libstdc++.so"], "thread": ["libtsan.so", "libstdc++.so"]}


def library(name: str) -> str:
    command = [os.environ.get("CXX", "c++"), f"-print-file-name={name}"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def objects(kind: str) -> Path:
    """Where the build of a kind keeps its object files, and ninja's file."""
    return BUILD / kind / "objects"


def package_folder(kind: str) -> Path:
    """What has to be on PYTHONPATH for that build."""
    return BUILD / kind / "lib"


def run(words: list, env: dict[str, str], log: Path, may_return: tuple[int, ...] = (0,)) -> str:
    """Run a command with its output in ``log``, of which it returns the last line."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as out:
        done = subprocess.run(words, cwd=ROOT, env=env, stdout=out, stderr=subprocess.STDOUT)
    lines = log.read_text(errors="replace").splitlines()
    if done.returncode not in may_return:
        print("\n".join(lines[-80:]))
        sys.exit(f"failed: all of it is in {log}")
    return lines[-1] if lines else ""


def build(kind: str) -> None:
    start = time.perf_counter()
    words = [sys.executable, "setup.py", "build", "--build-base", BUILD / kind]
    words += ["--build-lib", package_folder(kind), "--build-temp", objects(kind)]
    env = {**os.environ, "FASTLSTM_SANITIZE": kind, "FASTLSTM_SKIP_CUDA_BUILD": "1"}
    run(words, env, BUILD / f"{kind}-build.log")
    print(f"{kind}: built in {time.perf_counter() - start:.0f} s", flush=True)


def environment(kind: str, package: Path | None = None) -> dict[str, str]:
    """The environment of a process that imports an instrumented fastlstm."""
    return {
        **os.environ,
        **OPTIONS[kind],
        "LD_PRELOAD": " ".join(map(library, RUNTIMES[kind])),
        "PYTHONPATH": str(package or package_folder(kind)),
    }


def command(kind: str, *words: str) -> list[str]:
    """What runs ``words``, a command, in an environment of that kind."""
    # A layout as random as newer kernels make it leaves no room for ThreadSanitizer of GCC 12. Some
    # containers do not allow to ask for another.
    plain = ["setarch", "-R"]
    if kind == "thread" and subprocess.run([*plain, "true"], capture_output=True).returncode == 0:
        return [*plain, *words]
    return list(words)


def run_tests(kind: str, capability: str, names: list[str], arguments: list[str]) -> None:
    """The tests of some files on the kernels of a capability."""
    found = {path.stem: path for path in (ROOT / "tests").rglob("test_*.py")}
    files = [found[f"test_{name}"] for name in names]
    # Not `python -m pytest`, which finds the package of the working folder first. The reports go
    # past pytest, which is gone when they are read.
    words = [str(Path(sysconfig.get_path("scripts"), "pytest")), "-v", "--capture=sys"]
    words += ["-p", "no:cacheprovider", *map(str, files)]
    words += [] if capability == best_kernels() else ["-m", "paths"]
    start = time.perf_counter()
    last = run(
        command(kind, *words, *arguments),
        environment(kind) | {"ATEN_CPU_CAPABILITY": capability.lower()},
        BUILD / f"{kind}-{capability}-{names[0]}.log",
        # 5: arguments may leave some processes without a test.
        (0, 5) if arguments else (0,),
    )
    what = f"{kind}, {capability}, {names[0]} ..."
    print(f"{what}, {time.perf_counter() - start:.0f} s: {last.strip(' =')}", flush=True)


def best_kernels() -> str:
    return fastlstm._C.capabilities()[0]


def main(arguments: list[str]) -> None:
    kinds = arguments[:1] or list(TESTS)
    for kind in kinds:
        build(kind)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        running = [
            pool.submit(run_tests, kind, capability, names, arguments[1:])
            for kind in kinds
            for capability in fastlstm._C.capabilities()
            for names in (TESTS[kind] if capability == best_kernels() else OTHER_KERNELS)
        ]
        for each in running:
            each.result()
    if not arguments:
        words = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            str(Path(__file__).with_name("test_sanitizers.py")),
        ]
        env = {**os.environ, "FASTLSTM_SANITIZER_BUILDS": "1"}
        sys.exit(subprocess.run(words, cwd=ROOT, env=env).returncode)


if __name__ == "__main__":
    main(sys.argv[1:])
