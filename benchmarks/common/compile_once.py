"""The first call of a compiled model, once, in a process that bench_compile.py starts for it.

    python benchmarks/common/compile_once.py fastlstm 32 inductor 2 0

PROVIDER T BACKEND THREADS SEED; prints one line of JSON: the seconds of the first call, and what is
wrong with its results.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

sys.path.append(str(Path(__file__).resolve().parents[2]))

from benchmarks.common.equality import compare
from benchmarks.common.providers import CELLS, PROVIDERS

N, I, H = 4, 32, 64  # noqa: E741
LAYERS = 2
COMPILERS = {"inductor": "torch._inductor.compile_fx"}
CELL = replace(CELLS["lstm"], options={"num_layers": LAYERS})


def call(model: nn.Module, forward: Callable, x: Tensor, grad_output: Tensor) -> dict[str, Tensor]:
    """Outputs and every gradient of `forward`, which is `model` or a compiled form of it."""
    output, (h_n, c_n) = forward(x)
    output.backward(grad_output)
    leaves = {"input": x, **dict(model.named_parameters())}
    gradients = {f"grad {name}": leaf.grad for name, leaf in leaves.items()}
    return {
        "output": output.detach(),
        "h_n": h_n.detach(),
        "c_n": c_n.detach(),
        **{name: grad for name, grad in gradients.items() if grad is not None},
    }


def first_call(provider: str, steps: int, backend: str, seed: int) -> tuple[float, list[str]]:
    """Seconds from torch.compile to the last gradient, and a line for each tensor that is wrong."""
    torch.manual_seed(seed)
    model = PROVIDERS[provider].make(CELL, I, H)
    x, grad_output = torch.randn(steps, N, I), torch.randn(steps, N, H)

    def eager_torch(dtype: torch.dtype) -> dict[str, Tensor]:
        layer = PROVIDERS["torch"].make(CELL, I, H).to(dtype)
        layer.load_state_dict(model.state_dict())
        leaf = x.to(dtype, copy=True).requires_grad_()
        return call(layer, layer, leaf, grad_output.to(dtype))

    truth, yardstick = eager_torch(torch.float64), eager_torch(torch.float32)
    # Off the clock: it takes seconds, and is the same for any model.
    importlib.import_module(COMPILERS.get(backend, "torch._dynamo"))
    leaf = x.clone().requires_grad_()
    # torch.nn's own layers are refused otherwise.
    with torch._dynamo.config.patch(allow_rnn=True):
        start = time.perf_counter()
        compiled = torch.compile(model, fullgraph=True, backend=backend)
        found = call(model, compiled, leaf, grad_output)
        seconds = time.perf_counter() - start
    return seconds, compare(truth, yardstick, found, torch.float32)


def main(argv: Sequence[str]) -> int:
    provider, steps, backend, threads, seed = argv
    torch.set_num_threads(int(threads))
    seconds, failures = first_call(provider, int(steps), backend, int(seed))
    print(json.dumps({"seconds": seconds, "failures": failures}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
