"""examples/char_lm with every cell, with checkpoints from before there was a choice, and on
several processes."""

import os
import shutil
import signal
import subprocess
import sys

import char_lm_runs
import pytest
import torch
import torch.distributed as dist
from char_lm_runs import SMALL, stopping_when, train
from example_runs import ROOT, assert_same_run, load, metrics_of

from examples.char_lm import compare
from examples.char_lm.__main__ import main
from examples.char_lm.config import Config
from examples.char_lm.model import CharLM
from examples.common.distributed import ALONE, Group

cells = pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])
new_cells = pytest.mark.parametrize("cell", ["gru", "rnn"])
text = char_lm_runs.text


@new_cells
@pytest.mark.parametrize("settings", [{}, {"embedding": 0, "layers": 2, "dropout": 0.5}])
def test_model_is_the_same_with_both_backends(cell, settings):
    models = []
    for backend in ("fastlstm", "torch"):
        torch.manual_seed(0)
        models.append(CharLM(7, Config(cell=cell, backend=backend, hidden=12, **settings)).eval())
    ours, theirs = models
    assert type(theirs.rnn) is getattr(torch.nn, cell.upper())
    assert type(ours.rnn).__module__.startswith("fastlstm")
    for name, value in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], value), name
    tokens, state = torch.randint(7, (9, 3)), None
    for _ in range(2):
        (found, mine), (expected, state) = ours(tokens, state), theirs(tokens, state)
        assert len(mine) == 1 and mine[0].shape == (settings.get("layers", 1), 3, 12)
        torch.testing.assert_close((found, mine), (expected, state))


@new_cells
@pytest.mark.parametrize("backend", ["torch", "fastlstm"])
def test_ten_and_ten_steps_are_twenty(text, tmp_path, monkeypatch, cell, backend):
    arguments = ["--cell", cell, "--steps", 20, "--eval-every", 5, "--layers", 2, "--dropout", 0.2]
    straight, parts = tmp_path / "straight", tmp_path / "parts"
    assert train(text, straight, *arguments, backend=backend) == 0
    with stopping_when(monkeypatch, lambda record: record.step >= 10):
        assert train(text, parts, *arguments, backend=backend) == 0
    assert main(["train", "--resume", str(parts)]) == 0
    assert_same_run(straight, parts)
    assert load(parts / "checkpoint.pt")["config"]["cell"] == cell
    assert len(load(parts / "checkpoint.pt")["state"]) == 1


@cells
def test_hello(tmp_path, capsys, cell):
    """Greedy sampling needs no option to know the cell, and the output names it."""
    path, out = tmp_path / "hello.txt", tmp_path / "run"
    path.write_text("hello\n" * 60)
    arguments = ["--cell", cell, "--steps", 120, "--lr", 0.03]
    assert train(path, out, *arguments, backend="fastlstm") == 0
    assert f"model       {cell.upper()} 1 x 16" in capsys.readouterr().out
    assert metrics_of(out)["val_nats"] < 0.05
    for backend in ("fastlstm", "torch"):
        command = ["sample", str(out), "--prime", "h", "--greedy", "--length", "10"]
        assert main([*command, "--backend", backend]) == 0
        assert capsys.readouterr().out == "hello\nhello"


@new_cells
def test_compare(text, tmp_path, capsys, monkeypatch, cell):
    monkeypatch.setattr(compare, "SECONDS_A_TURN", 0.01)
    assert train(text, tmp_path / "run", "--steps", 3, "--cell", cell, "--compare") == 0
    line = next(s for s in capsys.readouterr().out.splitlines() if s.startswith("speed"))
    assert "fastlstm" in line and "torch" in line and "same loss" in line


def test_the_cell_cannot_change_on_resume_nor_be_unknown(text, tmp_path, capsys):
    out = tmp_path / "run"
    assert train(text, out, "--steps", 2, "--cell", "gru") == 0
    capsys.readouterr()
    assert main(["train", "--resume", str(out), "--steps", "5", "--cell", "rnn"]) == 2
    assert "--cell rnn cannot be changed" in capsys.readouterr().err
    assert train(text, tmp_path / "other", "--cell", "mlp") == 2
    assert "--cell" in capsys.readouterr().err


def test_a_checkpoint_from_before_the_choice_is_an_lstm(text, tmp_path, capsys):
    new, old = tmp_path / "new", tmp_path / "old"
    assert train(text, new, "--steps", 6, "--eval-every", 3) == 0
    shutil.copytree(new, old)
    for name in ("best.pt", "checkpoint.pt"):
        checkpoint = load(old / name)
        del checkpoint["config"]["cell"]
        model = checkpoint["model"]
        checkpoint["model"] = {k.replace("rnn.", "lstm."): v for k, v in model.items()}
        assert "lstm.weight_ih_l0" in checkpoint["model"]
        torch.save(checkpoint, old / name)
    texts = []
    for out in (new, old):
        capsys.readouterr()
        assert main(["sample", str(out), "--length", "30"]) == 0
        texts.append(capsys.readouterr().out)
        assert main(["train", "--resume", str(out), "--steps", "9"]) == 0
    assert texts[0] == texts[1]
    assert_same_run(new, old)


# Several processes


@pytest.mark.parametrize("count", [2, 7, 16])
@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_rows_are_shared_out(count, size):
    parts = [Group(rank, size).part_of(count) for rank in range(size)]
    assert [row for part in parts for row in range(count)[part]] == list(range(count))
    sizes = [part.stop - part.start for part in parts]
    assert max(sizes) - min(sizes) <= 1


def test_one_process_exchanges_nothing():
    x = torch.randn(2, 3)
    ALONE.sum_([x])
    assert ALONE.is_main and ALONE.maximum(1.5, True) == (1.5, True)
    assert ALONE.whole(x, 3, dim=1) is x


def torchrun(*arguments, timeout=120):
    """Two processes of the program; whatever happens, none of them is left."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr"]
    command += ["127.0.0.1", "--nproc-per-node", "2", "-m", "examples.char_lm"]
    # gloo asks for the address of the host's name, which a container may not have.
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [*command, *map(str, arguments)],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        output, errors = process.communicate(timeout=timeout)
    finally:
        if process.poll() is None:
            # Its agent ends the workers, which are in sessions of their own.
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(timeout=40)
            except subprocess.TimeoutExpired:
                process.kill()
    return process.returncode, output, errors


def assert_same_losses(first, second):
    one, two = metrics_of(first), metrics_of(second)
    assert len(one["history"]) == len(two["history"]) > 3
    for a, b in zip(one["history"], two["history"], strict=True):
        assert a["step"] == b["step"] and a["chars"] == b["chars"]
        assert b["val_nats"] == pytest.approx(a["val_nats"], rel=1e-5)
        if a["step"]:
            assert b["train_nats"] == pytest.approx(a["train_nats"], rel=1e-5)
            assert b["grad_norm"] == pytest.approx(a["grad_norm"], rel=1e-4)
    assert two["val_nats"] == pytest.approx(one["val_nats"], rel=1e-5)


@pytest.mark.skipif(
    not dist.is_available() or not dist.is_gloo_available(),
    reason="torch.distributed with gloo is needed: a build of torch with USE_DISTRIBUTED=1",
)
@pytest.mark.slow
def test_two_processes_follow_the_curve_of_one(text, tmp_path):
    """Also after a resume: the streams' states are put together, and shared out again.

    Five rows, so that the processes hold different numbers of them.
    """
    one, two = tmp_path / "one", tmp_path / "two"
    settings = [*SMALL, "--batch", "5", "--cell", "gru", "--eval-every", "2", "--reset", "0.2"]
    settings += ["--text", str(text), "--schedule", "constant", "--steps", "8"]
    assert main(["train", *settings, "--out", str(one)]) == 0
    code, output, errors = torchrun("train", *settings, "--out", two)
    assert code == 0, errors
    assert output.count("model       GRU") == 1 and "2 processes" in output
    assert_same_losses(one, two)
    assert metrics_of(two)["processes"] == 2 and metrics_of(one)["processes"] == 1

    assert main(["train", "--resume", str(one), "--steps", "14"]) == 0
    code, _, errors = torchrun("train", "--resume", two, "--steps", 14)
    assert code == 0, errors
    assert_same_losses(one, two)


@pytest.mark.skipif(
    not dist.is_available(),
    reason="torch.distributed is needed: a build of torch with USE_DISTRIBUTED=1",
)
@pytest.mark.slow
def test_a_mistake_is_told_once_and_ends_all_processes(tmp_path):
    code, output, errors = torchrun("train", "--text", tmp_path / "no.txt", timeout=60)
    assert code != 0 and output == ""
    assert errors.count("error: cannot read") == 1
