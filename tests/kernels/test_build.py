"""The package as it is imported: without its extension, and from elsewhere."""

import subprocess
import sys
from pathlib import Path

import fastlstm


def run(code: str, cwd: Path | None = None) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True)


def test_missing_extension_says_how_to_build_it() -> None:
    result = run("import sys; sys.modules['fastlstm._C'] = None; import fastlstm")
    assert result.returncode != 0
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: ")
    assert "make build" in last or "pip install" in last


def test_works_from_another_directory(tmp_path: Path) -> None:
    package = Path(fastlstm.__file__).resolve().parent.parent
    result = run(
        f"import sys; sys.path.append({str(package)!r})\n"
        "import torch, fastlstm\n"
        "print(fastlstm.LSTM(3, 4)(torch.randn(2, 1, 3))[0].shape)",
        cwd=tmp_path,
    )
    assert result.stdout.strip() == "torch.Size([2, 1, 4])", result.stderr


def test_public_names() -> None:
    assert issubclass(fastlstm.LSTM, fastlstm.LSTM.__mro__[1])
    assert isinstance(fastlstm.__version__, str)
    assert fastlstm.cpu_capability() == fastlstm._C.cpu_capability()
    assert fastlstm.cpu_capability() in fastlstm._C.capabilities()
    assert callable(fastlstm.functional.lstm) and callable(fastlstm.reference.lstm)


def test_reference_needs_no_extension() -> None:
    source = Path(fastlstm.reference.__file__)
    result = run(
        "import importlib.util, sys\n"
        f"spec = importlib.util.spec_from_file_location('reference', {str(source)!r})\n"
        "module = importlib.util.module_from_spec(spec)\n"
        "spec.loader.exec_module(module)\n"
        "assert not any(name.startswith('fastlstm') for name in sys.modules)\n"
        "print(module.lstm.__name__)"
    )
    assert result.stdout.strip() == "lstm", result.stderr
