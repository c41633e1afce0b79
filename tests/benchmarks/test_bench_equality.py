"""The equality gate of the benchmarks goes red on what is wrong, and on nothing else."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from benchmarks import bench_cells, bench_tokens
from benchmarks.common import csv_rows, equality
from benchmarks.common.equality import Problem
from benchmarks.common.providers import CELLS, PROVIDERS, Provider
from benchmarks.common.shapes import Shape

SMALL = Shape(20, 8, 33, 17)


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class PlantedLSTM(nn.LSTM):
    """nn.LSTM with one tensor off by a thousandth; `planted` names it as the gate does."""

    planted = ""

    def forward(self, input, hx=None):
        def wrong(tensor: torch.Tensor) -> torch.Tensor:
            return 1.001 * tensor

        initial = dict(zip(("h0", "c0"), hx or (), strict=False))
        leaves = {"input": input, **initial}
        for name, leaf in leaves.items():
            if self.planted == f"grad {name}" and leaf.requires_grad:
                leaves[name] = leaf.clone()
                leaves[name].register_hook(wrong)
        if hx is not None:
            hx = (leaves["h0"], leaves["c0"])
        output, (h_n, c_n) = super().forward(leaves["input"], hx)
        found = {"output": output, "h_n": h_n, "c_n": c_n}
        if self.planted in found:
            found[self.planted] = wrong(found[self.planted].detach())
        return found["output"], (found["h_n"], found["c_n"])


def planted_provider(planted: str) -> Provider:
    def make(cell, input_size: int, hidden_size: int) -> nn.Module:
        module = PlantedLSTM(input_size, hidden_size)
        module.planted = planted
        for name, parameter in module.named_parameters():
            if planted == f"grad {name}":
                parameter.register_hook(lambda grad: 1.001 * grad)
        return module

    return Provider("planted", make)


def failing_tensors(lines: list[str]) -> set[str]:
    return {line.partition(":")[0] for line in lines}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("mode", ["infer", "train"])
@pytest.mark.parametrize("cell", CELLS)
def test_gate_is_green_on_an_equal_provider(cell: str, mode: str, dtype: torch.dtype) -> None:
    problem = Problem(CELLS[cell], SMALL, mode, dtype)
    assert equality.check(problem, PROVIDERS["torch-native"]) == ([], [])


@pytest.mark.parametrize("cell", CELLS)
def test_reference_provider_is_equal(cell: str) -> None:
    problem = Problem(CELLS[cell], SMALL, "train", torch.float64)
    assert equality.check(problem, PROVIDERS["reference"]).failures == []


def test_problem_is_rounded_to_the_dtype_before_the_float64_run() -> None:
    problem = Problem(CELLS["gru"], SMALL, "train", torch.bfloat16)
    values = [problem.x, problem.grad_output, *problem.states, *problem.grad_states]
    for value in (*values, *problem.state_dict.values()):
        assert value.dtype == torch.float32
        assert torch.equal(value, value.bfloat16().float())
    wide = Problem(CELLS["gru"], SMALL, "train", torch.float64)
    assert not torch.equal(wide.x, wide.x.bfloat16().float())
    assert torch.equal(problem.x, wide.x.bfloat16().float())


@pytest.mark.parametrize("cell", [name for name in CELLS if name != "lstm"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_gate_is_red_on_one_wrong_gradient_of_every_cell(cell: str, dtype: torch.dtype) -> None:
    def make(cell, input_size: int, hidden_size: int) -> nn.Module:
        module = PROVIDERS["torch"].make(cell, input_size, hidden_size)
        module.weight_hh_l0.register_hook(lambda grad: 1.2 * grad)
        return module

    problem = Problem(CELLS[cell], SMALL, "train", dtype)
    assert failing_tensors(equality.check(problem, Provider("planted", make)).failures) == {
        "grad weight_hh_l0"
    }


GRADIENTS = ("input", "h0", "c0", "weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")


@pytest.mark.parametrize("planted", [f"grad {name}" for name in GRADIENTS])
def test_gate_is_red_on_one_wrong_gradient(planted: str) -> None:
    problem = Problem(CELLS["lstm"], SMALL, "train", torch.float32)
    assert failing_tensors(equality.check(problem, planted_provider(planted)).failures) == {planted}


@pytest.mark.parametrize("planted", ["output", "h_n", "c_n"])
def test_gate_is_red_on_one_wrong_output(planted: str) -> None:
    problem = Problem(CELLS["lstm"], SMALL, "infer", torch.float64)
    assert failing_tensors(equality.check(problem, planted_provider(planted)).failures) == {planted}


def test_compare_is_red_on_nan_shape_dtype_and_names() -> None:
    truth = {"y": torch.ones(3, dtype=torch.float64)}
    good = {"y": torch.ones(3)}

    def red(ours: dict[str, torch.Tensor]) -> str:
        (line,) = equality.compare(truth, good, ours, torch.float32)
        return line

    assert equality.compare(truth, good, good, torch.float32) == []
    assert red({"y": torch.tensor([1.0, math.nan, 1.0])}).startswith("y: error nan")
    assert red({"y": torch.ones(2)}) == "y: expected torch.float32 [3], got torch.float32 [2]"
    assert "got torch.float64" in red({"y": torch.ones(3, dtype=torch.float64)})
    assert red({}) == "y: missing"
    assert red({**good, "z": torch.ones(1)}) == "z: unexpected"


def test_compare_allows_twice_torchs_error_and_a_rounding() -> None:
    eps = torch.finfo(torch.float32).eps
    truth = {"y": torch.full((2,), 1.0, dtype=torch.float64)}
    torch_nn = {"y": torch.tensor([1.0, 1 + 8 * eps])}
    for roundings, lines in ((17, 0), (18, 1)):
        ours = {"y": torch.tensor([1 - roundings * eps, 1.0])}
        assert len(equality.compare(truth, torch_nn, ours, torch.float32)) == lines


def test_compare_holds_bfloat16_to_torchs_bfloat16() -> None:
    eps = torch.finfo(torch.bfloat16).eps
    truth = {"y": torch.full((2,), 1.0, dtype=torch.float64)}
    torch_nn = {"y": torch.tensor([1.0, 1 + 4 * eps], dtype=torch.bfloat16)}
    for roundings, lines in (
        (9, []),
        (10, ["y: error 7.81e-02 above 7.03e-02 (torch.nn bfloat16"]),
    ):
        ours = {"y": torch.tensor([1 + roundings * eps, 1.0], dtype=torch.bfloat16)}
        found = equality.compare(truth, torch_nn, ours, torch.bfloat16)
        assert [line.rsplit(" ", 1)[0] for line in found] == lines


def test_compare_takes_torchs_float64_error_where_it_is_known() -> None:
    eps = torch.finfo(torch.float64).eps
    truth = {"y": torch.ones(2, dtype=torch.float64)}
    near = {"y": torch.tensor([1 + 40 * eps, 1.0], dtype=torch.float64)}
    far = {"y": torch.tensor([1 + 90 * eps, 1.0], dtype=torch.float64)}
    torch_float32 = {"y": torch.ones(2)}
    torch_float64 = {"y": torch.tensor([1.0, 1 - 20 * eps], dtype=torch.float64)}

    def red(ours: dict[str, torch.Tensor], *known: dict[str, torch.Tensor]) -> bool:
        return bool(equality.compare(truth, torch_float32, ours, torch.float64, *known))

    assert red(near)
    assert not red(near, torch_float64)
    assert red(far, torch_float64)


def test_truth_in_parts_is_the_same_problem() -> None:
    problem = Problem(CELLS["lstm"], Shape(6, 21, 5, 7), "train", torch.float64)
    for with_state in (False, True):
        truth = problem.truth(with_state=with_state)
        whole = problem.results(PROVIDERS["torch"], torch.float64, with_state=with_state)
        assert truth.keys() == whole.keys()
        for name in whole:
            torch.testing.assert_close(truth[name], whole[name], rtol=1e-12, atol=1e-12)


def test_long_sums_of_torch_in_float64_do_not_judge() -> None:
    # 2048 rows: torch.nn's own error in grad weight_ih_l0 is far above what is inferred from its
    # float32 error, and above that of fastlstm.
    problem = Problem(CELLS["rnn"], Shape(64, 32, 64, 64), "train", torch.float64)
    for name in ("torch", "fastlstm"):
        assert equality.check(problem, PROVIDERS[name]).failures == []


def test_several_results_are_judged_as_one() -> None:
    results = [{"y": torch.ones(2)}, {"y": torch.zeros(2)}]
    assert torch.equal(equality.stacked(results)["y"], torch.tensor([[1.0, 1.0], [0.0, 0.0]]))


def test_red_check_reports_nothing(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setitem(PROVIDERS, "planted", planted_provider("grad weight_hh_l0"))
    path = tmp_path / "rows.csv"
    argv = "--shape 20,8,33,17 --cells lstm --mode train --seconds 0.01 --threads 1"
    argv += " --providers torch,planted"
    assert bench_cells.main([*argv.split(), "--csv", str(path)]) == 1
    out = capsys.readouterr().out
    assert "RED  planted: grad weight_hh_l0: error" in out
    assert "no summary" in out
    assert "geometric mean" not in out
    assert not path.exists()


def test_every_provider_starts_from_the_same_weights() -> None:
    random_state = torch.random.get_rng_state()
    problem = Problem(CELLS["lstm"], SMALL, "train", torch.float32, seed=3)
    again = Problem(CELLS["lstm"], SMALL, "train", torch.float32, seed=3)
    other = Problem(CELLS["lstm"], SMALL, "train", torch.float32, seed=4)
    assert torch.equal(random_state, torch.random.get_rng_state())
    weight = problem.model(PROVIDERS["torch"]).weight_hh_l0
    assert torch.equal(weight, again.model(PROVIDERS["torch-native"]).weight_hh_l0)
    assert not torch.equal(weight, other.model(PROVIDERS["torch"]).weight_hh_l0)


class TokenLSTM(nn.LSTM):
    """torch.nn.LSTM that takes tokens as fastlstm.LSTM does."""

    def forward(self, input, hx=None, *, embedding=None):
        if embedding is not None:
            input = F.embedding(input, embedding)
        elif not input.is_floating_point():
            input = F.one_hot(input, self.input_size).to(self.weight_ih_l0.dtype)
        return super().forward(input, hx)


class DetachedTableLSTM(TokenLSTM):
    def forward(self, input, hx=None, *, embedding=None):
        embedding = None if embedding is None else 1.001 * embedding.detach() - 0.001 * embedding
        return super().forward(input, hx, embedding=embedding)


@pytest.fixture
def few_tokens(monkeypatch) -> None:
    for name, size in {"T": 6, "N": 4, "H": 16, "V": 7}.items():
        monkeypatch.setattr(bench_tokens, name, size)


def test_tokens_are_measured_where_equal(few_tokens, tmp_path: Path, capsys) -> None:
    path = tmp_path / "rows.csv"
    argv = ["--seconds", "0.02", "--threads", "1", "--csv", str(path)]
    assert bench_tokens.main(argv, TokenLSTM) == 0
    assert "RED" not in capsys.readouterr().out
    baselines = [r["baseline"] for r in csv_rows.read_rows(path)]
    assert baselines == ["fastlstm one-hot", "fastlstm embedding"]


def test_tokens_with_a_wrong_table_gradient_are_red(few_tokens, tmp_path: Path, capsys) -> None:
    path = tmp_path / "rows.csv"
    argv = ["--seconds", "0.02", "--threads", "1", "--csv", str(path)]
    assert bench_tokens.main(argv, DetachedTableLSTM) == 1
    out = capsys.readouterr().out
    assert "RED  token_and_table_input: grad table: error" in out
    assert [r["baseline"] for r in csv_rows.read_rows(path)] == ["fastlstm one-hot"]


def test_missed_token_targets_decide_the_exit_code_on_request(few_tokens, monkeypatch) -> None:
    one_hot, _ = bench_tokens.COMPARISONS
    argv = ["--seconds", "0.02", "--threads", "1"]
    for target, code in ((1e9, 1), (1e-9, 0)):
        comparison = bench_tokens.Comparison(
            "one-hot", target, None, one_hot.baseline, one_hot.contender
        )
        monkeypatch.setattr(bench_tokens, "COMPARISONS", (comparison,))
        assert bench_tokens.main([*argv, "--enforce-targets"], TokenLSTM) == code
        assert bench_tokens.main(argv, TokenLSTM) == 0
