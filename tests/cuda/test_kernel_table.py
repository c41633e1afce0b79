"""The table of the persistent kernels: how it reads names and layouts, and that it is current."""

import itertools
from pathlib import Path

import cuda_build
import kernel_table
import pytest
import simt_extension
from cuda_build import Kernel
from kernel_table import GPUS, Gpu, Instance, Known, Layout

H100, A100, RTX_4090 = GPUS
DOCUMENT = kernel_table.ROOT / "docs" / "cuda_kernels.md"
# As nvcc writes them.
GROUP = "_ZN8fastlstm4cuda12group_kernelINS0_11GroupBwdJobINS_8LstmCellEfLi48ENS0_11GridScatterEEELNS0_8ExchangeE1EEEvNT_6ParamsE"
BLOCK = "_ZN8fastlstm4cuda12block_kernelINS0_8BlockFwdINS_11RnnReluCellENS_6device4HalfELi1EEEEEvNT_6ParamsE"
STEP = "_ZN8fastlstm4cuda16collect_h_kernelIfEEvNS0_11SequenceBwdIT_EE"


@pytest.fixture(scope="module")
def known() -> Known:
    return kernel_table.all_layouts()


def every_instance() -> list[Instance]:
    """All that are compiled."""
    groups = itertools.product(
        ("cluster", "grid"),
        kernel_table.DIRECTIONS,
        kernel_table.CELLS.values(),
        kernel_table.DTYPES.values(),
        (16, 32, 48),
    )
    blocks = [
        Instance("block", direction, cell, dtype, index)
        for direction, cell, dtype in itertools.product(
            kernel_table.DIRECTIONS, kernel_table.CELLS.values(), ("bfloat16", "float16", "TF32")
        )
        for index in range(2 if "RNN" in cell or dtype == "TF32" else 3)
    ]
    found = [*blocks, *itertools.starmap(Instance, groups)]
    return [key for key in found if (key.family, key.dtype) != ("cluster", "float32")]


def test_names_of_kernels() -> None:
    kernels = [
        Kernel("sm_80", GROUP, 246, 0, 0),
        Kernel("sm_90a", GROUP, 255, 8, 0),
        Kernel("sm_80", BLOCK, 120, 0, 0),
        Kernel("sm_80", STEP, 26, 0, 0),
    ]
    found = kernel_table.instances(kernels)
    grid = Instance("grid", "backward", "LSTM", "TF32", 48)
    block = Instance("block", "forward", "RNN_RELU", "float16", 1)
    assert set(found) == {grid, block}
    assert {arch: kernel.registers for arch, kernel in found[grid].items()} == {
        "sm_80": 246,
        "sm_90a": 255,
    }
    of_cluster = "group_kernel<fastlstm::cuda::GroupFwdJob<fastlstm::GruCell, fastlstm::device::BFloat16, 16, fastlstm::cuda::ClusterGather>"
    assert kernel_table.instance(of_cluster) == Instance(
        "cluster", "forward", "GRU", "bfloat16", 16
    )
    of_grid = of_cluster.replace("device::BFloat16", "cuda::Float3x").replace("Cluster", "Grid")
    assert kernel_table.instance(of_grid) == Instance("grid", "forward", "GRU", "float32", 16)


@pytest.mark.parametrize(
    "gpu, registers, layout, blocks",
    [
        (H100, 255, Layout(64, 256, 1024), 1),
        (H100, 128, Layout(64, 256, 1024), 2),
        # Registers come for 256 of a warp at a time, and warps for 4.
        (H100, 101, Layout(64, 128, 1024), 4),
        (H100, 129, Layout(64, 256, 1024), 1),
        # 1 KiB of every block is the system's.
        (A100, 32, Layout(64, 256, 81 * 1024), 2),
        (A100, 32, Layout(64, 256, 82 * 1024), 1),
        (A100, 16, Layout(64, 256, 1024), 8),
        (RTX_4090, 16, Layout(64, 256, 1024), 6),
    ],
)
def test_blocks_that_fit(gpu: Gpu, registers: int, layout: Layout, blocks: int) -> None:
    assert kernel_table.blocks_that_fit(gpu, registers, layout) == blocks


def test_layouts_are_those_of_the_kernels(known: Known) -> None:
    """As host code asks for them before a launch, for the largest H and for no larger one."""
    simt = simt_extension.load()
    cells = list(kernel_table.CELLS.values())

    def bytes_of(key: Instance, gpu: Gpu, H: int) -> int:
        shared = {"cell": cells.index(key.cell), "backward": key.direction == "backward", "H": H}
        shared |= {"element_bytes": 2 if key.dtype == "16-bit" else 4, "tf32": key.dtype == "TF32"}
        if key.family == "block":
            return simt.block_shared_bytes(**shared)
        blocks = -(-H // key.size)
        if key.family == "cluster":
            blocks = next((n for n in (2, 4, 8, 16) if n >= blocks), 0)
        if not 0 < blocks <= gpu.multiprocessors:
            return 1 << 30
        cluster = key.family == "cluster"
        return simt.group_shared_bytes(
            **shared, cluster=cluster, units=key.size, blocks=blocks, rows=8
        )

    for gpu in GPUS:
        for key, layout in known[gpu.name].items():
            if layout.H:
                assert bytes_of(key, gpu, layout.H) == layout.bytes <= gpu.block_kib * 1024
            limit = key.size if key.family == "block" else 8192
            if layout.H and limit > layout.H:
                assert bytes_of(key, gpu, layout.H + 1) > gpu.block_kib * 1024
    assert all(layout.H == 0 for key, layout in known["A100"].items() if key.family == "cluster")


def test_every_kernel_is_a_row(known: Known) -> None:
    found = {
        key: {
            arch: Kernel(arch, "", 255 if arch == "sm_80" else 199, 16, 8)
            for arch in kernel_table.ARCHS
        }
        for key in every_instance()
    }
    text = kernel_table.table(found, known)
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    assert len(lines) == len(found) + 6
    assert [line for line in text.splitlines() if line.startswith("## ")] == [
        f"## {family}, {direction}"
        for family in ("block", "cluster", "grid")
        for direction in ("forward", "backward")
    ]
    row = next(line for line in lines if line.startswith("| RNN_TANH | bfloat16 | 64 "))
    # 199 registers of 256 threads on sm_90a, 255 on sm_80.
    assert row.startswith("| RNN_TANH | bfloat16 | 64 | 255 | 199 | 24 | 64 | 7.0 | 1 | 64 | 7.0 |")
    cluster = next(
        line for line in text.partition("## cluster")[2].splitlines() if "| LSTM " in line
    )
    assert cluster.startswith("| LSTM | bfloat16 | 16 | 199 | 24 | 256 | ")
    assert "sm_80" not in text.partition("## cluster, f")[2].partition("## grid")[0]
    assert max(len(line) for line in text.splitlines()) < 160


def test_what_is_missing_is_an_error(known: Known) -> None:
    for name, message in (
        (STEP, "there are no persistent kernels"),
        (GROUP, "grid backward LSTM TF32 48 is not compiled for sm_90a"),
    ):
        found = kernel_table.instances([Kernel("sm_80", name, 26, 0, 0)])
        with pytest.raises(ValueError, match=message):
            kernel_table.table(found, known)


def test_no_cuobjdump_is_an_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(cuda_build, "find_cuobjdump", lambda: None)
    assert kernel_table.main([str(tmp_path / "table.md"), str(tmp_path / "lib.so")]) == 1
    assert capsys.readouterr().err == "cuobjdump was not found\n"
    (tmp_path / "fastlstm").mkdir()
    (tmp_path / "fastlstm" / "_C.so").touch()
    with pytest.raises(cuda_build.BuildError, match="no table: cuobjdump was not found"):
        cuda_build.write_table(tmp_path / "table.md", tmp_path)
    cuda_build.list_kernels(tmp_path)
    assert "the kernels are not listed" in capsys.readouterr().out


def test_build_writes_the_table_on_request(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "8.0 9.0a")
    for name in ("compile_self_test", "import_fresh", "list_kernels"):
        monkeypatch.setattr(cuda_build, name, lambda *_: None)
    monkeypatch.setattr(cuda_build, "build", lambda out, env: out / "lib")
    written = []
    monkeypatch.setattr(cuda_build, "write_table", lambda *arguments: written.append(arguments))
    assert cuda_build.main([str(tmp_path)]) == 0
    assert written == []
    assert cuda_build.main([str(tmp_path), "--table", "table.md"]) == 0
    assert written == [(Path("table.md"), tmp_path / "lib")]


def test_document_is_current(known: Known, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """But for its registers, which are those of its last build."""
    text = DOCUMENT.read_text()
    assert set(kernel_table.recorded(text)) == set(every_instance())
    monkeypatch.setattr(kernel_table, "all_layouts", lambda: known)
    path = tmp_path / "table.md"
    path.write_text(text)
    assert kernel_table.main([str(path)]) == 0
    assert path.read_text() == text, (
        "python tests/cuda/kernel_table.py docs/cuda_kernels.md brings its layouts up to date"
    )
