"""Data-parallel training of fastlstm's modules: DDP and FSDP2, two processes over gloo."""

import multiprocessing
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

import fastlstm

PROCESSES = 2
STEPS = 3
# Two processes that import torch beside a busy machine are slow to start, not to work.
TIME_LIMIT = 120

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not dist.is_available() or not dist.is_gloo_available(),
        reason="torch.distributed with gloo is needed: a build of torch with USE_DISTRIBUTED=1",
    ),
]


class Model(nn.Module):
    """Every kind of layer and cell on one path from token ids to a class."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 6)
        self.lstm = fastlstm.LSTM(6, 8, 2, batch_first=True, bidirectional=True, proj_size=3)
        self.gru = fastlstm.GRU(6, 8, batch_first=True)
        self.rnn = fastlstm.RNN(8, 8, batch_first=True)
        self.cells = nn.ModuleList(
            [fastlstm.LSTMCell(8, 8), fastlstm.GRUCell(8, 8), fastlstm.RNNCell(8, 8)]
        )
        self.head = nn.Linear(8, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        y, _ = self.lstm(tokens, embedding=self.embedding.weight)
        y, _ = self.rnn(self.gru(y)[0])
        h, _ = self.cells[0](y[:, -1])
        return self.head(self.cells[2](self.cells[1](h)))


def batch() -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(1)
    return torch.randint(7, (6, 5), generator=g), torch.randint(3, (6,), generator=g)


def train(model: nn.Module, rows: slice = slice(None)) -> dict[str, list[Tensor]]:
    """A few steps on ``rows`` of the batch: the gradients of the first, the weights after all."""
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    tokens, classes = batch()
    for step in range(STEPS):
        optimizer.zero_grad()
        F.cross_entropy(model(tokens[rows]), classes[rows]).backward()
        if step == 0:
            grads = [whole(p.grad).clone() for p in model.parameters()]
        optimizer.step()
    return {"grads": grads, "weights": [whole(p.detach()) for p in model.parameters()]}


def whole(t: Tensor) -> Tensor:
    return t.full_tensor() if hasattr(t, "full_tensor") else t


def model_for_all() -> Model:
    torch.manual_seed(0)
    return Model().double()


def ddp(rows: slice) -> dict:
    return train(nn.parallel.DistributedDataParallel(model_for_all()), rows)


def ddp_after_convert(rows: slice) -> dict:
    """The swap happens under the wrapper, whose hooks sit on the same Parameters."""
    model = nn.parallel.DistributedDataParallel(fastlstm.to_torch(OneHot(model_for_all())))
    fastlstm.convert(model)
    assert type(model.module.model.gru) is fastlstm.GRU
    return train(model, rows)


class OneHot(nn.Module):
    """The model as torch.nn's modules can call it."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor) -> Tensor:
        model = self.model
        y, _ = model.lstm(model.embedding(tokens))
        y, _ = model.rnn(model.gru(y)[0])
        h, _ = model.cells[0](y[:, -1])
        return model.head(model.cells[2](model.cells[1](h)))


def fsdp(rows: slice) -> dict:
    """Each module by itself, then the rest: the modules' own classes are changed as well."""
    from torch.distributed.fsdp import fully_shard

    model = model_for_all()
    for module in (model.lstm, model.gru, *model.cells):
        fully_shard(module)
    fully_shard(model)
    assert isinstance(model.lstm, fastlstm.LSTM) and type(model.lstm) is not fastlstm.LSTM
    assert model.gru.weight_hh_l0.to_local().size(0) == 3 * 8 // PROCESSES
    return train(model, rows)


CHECKS = {check.__name__: check for check in (ddp, ddp_after_convert, fsdp)}


def worker(rank: int, folder: Path) -> None:
    """Run every check; a file each with the results, or with what went wrong."""
    # By a file rather than a port, which another program may take first.
    torch.set_num_threads(1)
    store = dist.FileStore(str(folder / "store"), PROCESSES)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=PROCESSES)
    rows = slice(rank * 3, rank * 3 + 3)
    for name, check in CHECKS.items():
        torch.save(check(rows), folder / f"{name}-{rank}.pt")
    dist.destroy_process_group()


def start(target: Callable, *arguments) -> str | None:
    """Run ``target(rank, *arguments)`` in PROCESSES processes; None, or what went wrong.

    Whatever happens to one of them, none is left and the wait ends.
    """
    context = multiprocessing.get_context("spawn")
    children = [
        context.Process(target=target, args=(rank, *arguments), daemon=True)
        for rank in range(PROCESSES)
    ]
    deadline = time.monotonic() + TIME_LIMIT
    try:
        for child in children:
            child.start()
        while any(child.is_alive() for child in children):
            if any(child.exitcode not in (0, None) for child in children):
                break
            if time.monotonic() > deadline:
                return f"not finished after {TIME_LIMIT} s"
            time.sleep(0.05)
    finally:
        for child in children:
            if child.pid is not None and child.is_alive():
                child.kill()
            if child.pid is not None:
                child.join()
    codes = [child.exitcode for child in children]
    return None if codes == [0] * PROCESSES else f"exit codes {codes}, see the output above"


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("distributed")
    with pytest.MonkeyPatch.context() as patch:
        # gloo asks for the address of the host's name, which a container may not have.
        patch.setenv("GLOO_SOCKET_IFNAME", "lo")
        patch.setenv("OMP_NUM_THREADS", "1")
        problem = start(worker, folder)
    if problem:
        pytest.fail(problem)
    return folder


@pytest.mark.parametrize("name", CHECKS)
def test_two_processes_do_what_one_does(name: str, results: Path) -> None:
    """Gradients of the joint batch, and the same weights after some steps, on both."""
    expected = train(model_for_all())
    assert len(expected["grads"]) == len(list(Model().parameters()))
    for rank in range(PROCESSES):
        found = torch.load(results / f"{name}-{rank}.pt")
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)


def die(rank: int) -> None:
    if rank == 1:
        os._exit(3)
    time.sleep(TIME_LIMIT)


def test_a_process_that_dies_ends_the_wait() -> None:
    began = time.monotonic()
    assert "3" in start(die)
    assert time.monotonic() - began < TIME_LIMIT / 2
