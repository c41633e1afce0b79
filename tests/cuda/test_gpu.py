"""What only a GPU can show: streams, graphs, no waiting, long sequences, and torch.compile on it."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from cuda_devices import device, on_gpu
from helpers import modes

import fastlstm

pytestmark = on_gpu


@pytest.fixture(autouse=True)
def no_tf32() -> Iterator[None]:
    with device("cuda"):
        yield


def module_of(mode: str, *sizes: int, **options) -> torch.nn.Module:
    kind, _, nonlinearity = mode.partition("_")
    if nonlinearity:
        options["nonlinearity"] = nonlinearity.lower()
    return getattr(fastlstm, kind)(*sizes, device="cuda", **options)


def train_step(module: torch.nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    output = module(x)[0]
    return [output, *torch.autograd.grad(output.sum(), list(module.parameters()))]


@modes
def test_no_synchronisation(mode: str) -> None:
    """Neither forward nor backward waits for the device, lengths and packing included."""
    module = module_of(mode, 8, 16, bidirectional=True)
    x = torch.randn(5, 3, 8, device="cuda", requires_grad=True)
    reset = torch.rand(5, 3, device="cuda") < 0.3
    train_step(module, x)  # the first call sets up cuBLAS
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        train_step(module, x)
        output = module(x, lengths=[5, 2, 3], reset=reset)[0]
        torch.autograd.grad(output.sum(), x)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@modes
def test_side_stream(mode: str) -> None:
    """On the current stream, whichever that is: a result that is late there is still right."""
    module = module_of(mode, 64, 128)
    x = torch.randn(50, 16, 64, device="cuda")
    expected = train_step(module, x)
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        torch.cuda._sleep(20_000_000)
        late = x.clone()
        found = train_step(module, late)
    side.synchronize()
    assert all(map(torch.equal, found, expected))


@modes
def test_second_call_while_the_first_runs(mode: str) -> None:
    """Two streams at once: no call uses the scratch memory of another."""
    module = module_of(mode, 64, 256)
    xs = [torch.randn(100, 16, 64, device="cuda") for _ in range(2)]
    expected = [train_step(module, x) for x in xs]
    torch.cuda.synchronize()
    streams = [torch.cuda.Stream() for _ in xs]
    for _ in range(3):
        found = []
        for stream, x in zip(streams, xs, strict=True):
            with torch.cuda.stream(stream):
                found.append(train_step(module, x))
        torch.cuda.synchronize()
        for mine, own in zip(found, expected, strict=True):
            assert all(map(torch.equal, mine, own))


@pytest.mark.parametrize("lengths", [None, [20, 7, 13, 1]], ids=["padded", "lengths"])
@modes
def test_graph_capture_and_replay(mode: str, lengths: list[int] | None) -> None:
    module = module_of(mode, 8, 32, bidirectional=True)
    static = torch.randn(20, 4, 8, device="cuda")

    def step() -> list[torch.Tensor]:
        output = module(static, lengths=lengths)[0]
        return [output, *torch.autograd.grad(output.sum(), list(module.parameters()))]

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    for seed in range(3):
        torch.manual_seed(seed)
        static.copy_(torch.randn_like(static))
        graph.replay()
        assert all(map(torch.equal, captured, step()))


@modes
def test_long_sequence(mode: str) -> None:
    """Longer than 65,535 steps, where a dimension of a grid would end."""
    module = module_of(mode, 2, 4, dtype=torch.float64)
    x = torch.randn(70_000, 1, 2, device="cuda", dtype=torch.float64)
    output = module(x)[0]
    tail = module(x[-500:])[0]  # the state of the past has faded
    torch.testing.assert_close(output[-1:], tail[-1:], rtol=1e-6, atol=1e-9)


def test_more_elements_than_32_bits_count() -> None:
    """T * N * 4H is above 2^31: offsets are 64-bit."""
    T, N, H = 70, 8192, 1024
    if torch.cuda.get_device_properties(0).total_memory < 40 << 30:
        pytest.skip("needs a GPU of 40 GB")
    module = fastlstm.LSTM(4, H, device="cuda", dtype=torch.bfloat16)
    x = torch.randn(T, N, 4, device="cuda", dtype=torch.bfloat16)
    output, (h_n, _) = module(x)
    alone = module(x[:, -3:].contiguous())[0]
    torch.testing.assert_close(output[:, -3:].float(), alone.float(), rtol=0.05, atol=0.02)
    assert torch.equal(output[-1], h_n[0])


def test_compiled() -> None:
    module = fastlstm.LSTM(8, 16, num_layers=2, device="cuda")
    x = torch.randn(5, 3, 8, device="cuda", requires_grad=True)
    compiled = torch.compile(module, fullgraph=True)
    expected, found = module(x)[0], compiled(x)[0]
    torch.testing.assert_close(found, expected)
    for a, b in zip(
        torch.autograd.grad(found.sum(), list(module.parameters())),
        torch.autograd.grad(expected.sum(), list(module.parameters())),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


def test_device_is_that_of_the_tensors() -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    module = fastlstm.LSTM(3, 5).to("cuda:1")
    x = torch.randn(4, 2, 3, device="cuda:1")
    assert module(x)[0].device == x.device


def test_mixed_devices_are_named() -> None:
    module = fastlstm.LSTM(3, 5)
    with pytest.raises(RuntimeError, match="device"):
        module(torch.randn(4, 2, 3, device="cuda"))


def test_token_out_of_range_ends_the_launch() -> None:
    code = (
        "import torch, fastlstm\n"
        "fastlstm.LSTM(3, 5, device='cuda')(torch.tensor([[7]], device='cuda'))\n"
        "torch.cuda.synchronize()\n"
    )
    root = Path(fastlstm.__file__).resolve().parent.parent
    result = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert result.returncode != 0 and "CUDA" in result.stderr
