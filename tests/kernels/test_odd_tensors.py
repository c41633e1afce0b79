"""Tensors that lie anywhere in memory, and tensors that are not what their memory says.

The numbers of a call are drawn, laid out at random, and the call must give the bits that it gives for
the same numbers in fresh contiguous tensors. What lies around them is NaN, or a wrong id or length.
"""

import random
from collections.abc import Callable

import pytest
import torch
from cell_kinds import GATES, has_c
from error_rule import assert_same
from helpers import TORCH_MODES, Case, Values, call, named
from odd_tensors import check, drawn_case
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.testing._internal.two_tensor import TwoTensor

import fastlstm

CASES, CASES_A_TEST = 2000, 100
CLASSES = {"LSTM": fastlstm.LSTM, "GRU": fastlstm.GRU}
CELLS = {"LSTM": fastlstm.LSTMCell, "GRU": fastlstm.GRUCell}
PARAMETERS = {"w_ih": "weight_ih", "w_hh": "weight_hh", "b_ih": "bias_ih", "b_hh": "bias_hh"}
PARAMETERS |= {"w_hr": "weight_hr"}


def of_function(case: Case, values: Values) -> Values:
    return named(case, call(fastlstm.functional, case, values, return_states=True))


def of_module(case: Case, values: Values) -> Values:
    options = {"proj_size": case.proj_size} if case.mode == "LSTM" else {}
    if case.mode.startswith("RNN"):
        options["nonlinearity"] = case.mode[4:].lower()
    module = CLASSES.get(case.mode, fastlstm.RNN)(
        case.I, case.H, case.layers, bias=case.bias, batch_first=case.batch_first,
        bidirectional=case.bidirectional, dtype=values["w_ih_0"].dtype, **options,
    )  # fmt: skip
    for name in case.weight_names:
        layer, direction = divmod(int(name[5:]), case.directions)
        parameter = f"{PARAMETERS[name[:4]]}_l{layer}{'_reverse' if direction else ''}"
        delattr(module, parameter)
        setattr(module, parameter, values[name])  # with its history, so that gradients reach it
    x, hx = values["x"], values.get("h0")
    if case.packed:
        x = PackedSequence(x, values["batch_sizes"])
    if hx is not None and has_c(case.mode):
        hx = hx, values["c0"]
    names = [n for n in ("lengths", "reset", "embedding") if n in values]
    output, hidden, *states = module(
        x, hx, return_states=True, **{name: values[name] for name in names}
    )
    if case.packed:
        output = output.data
        states = [type(s)(*(tuple(p.data for p in layer) for layer in s)) for s in states]
    return named(case, (output, hidden, *states))


@pytest.mark.parametrize("seed", range(CASES // CASES_A_TEST))
def test_the_place_of_the_numbers_changes_no_bit(seed: int) -> None:
    draw = random.Random(seed)
    for k in range(CASES_A_TEST):
        state = draw.getstate()
        case, values = drawn_case(draw)
        solver = draw.choice([of_function, of_module])
        try:
            check(draw, case, values, solver)
        except Exception as error:
            error.add_note(f"case {k} of seed {seed}: {case}, {solver.__name__}, {state[1][-1]}")
            raise


def of_cell(mode: str, values: Values) -> Values:
    options = {"nonlinearity": mode[4:].lower()} if mode.startswith("RNN") else {}
    rows, width = values["w_ih"].shape
    module = CELLS.get(mode, fastlstm.RNNCell)(
        width, values["w_hh"].size(1), bias="b_ih" in values, **options
    )
    for name, parameter in PARAMETERS.items():
        if name in values:
            delattr(module, parameter)
            setattr(module, parameter, values[name])
    h = module(values["x"], (values["h"], values["c"]) if has_c(mode) else values["h"])
    return dict(zip("hc", h if has_c(mode) else (h,), strict=False))


@pytest.mark.parametrize("seed", range(5))
def test_the_place_of_the_numbers_of_a_cell(seed: int) -> None:
    draw = random.Random(seed)
    for _ in range(CASES_A_TEST):
        mode = draw.choice(TORCH_MODES)
        N, I, H = (draw.choice([1, 1, 2, 3]) for _ in range(3))  # noqa: E741
        N, gates = draw.choice([0, N, N, N]), GATES[mode]
        shapes = {"x": (N, I), "h": (N, H), "w_ih": (gates * H, I), "w_hh": (gates * H, H)}
        shapes |= {"c": (N, H)} if has_c(mode) else {}
        shapes |= {"b_ih": (gates * H,), "b_hh": (gates * H,)} if draw.random() < 0.8 else {}
        dtype = draw.choice([torch.float32, torch.float64])
        values = {n: torch.randn(shape, dtype=dtype) for n, shape in shapes.items()}
        if N and draw.random() < 0.2:  # without a batch
            values |= {n: values[n][0] for n in ("x", "h", "c") if n in values}
        check(draw, mode, values, of_cell)


KINDS: dict[str, Callable[[Tensor], Tensor]] = {
    "sparse": lambda t: t.to_sparse(),
    "mkldnn": lambda t: t.to_mkldnn(),
    "quantized": lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.quint8),
    "nested": lambda t: torch.nested.nested_tensor(list(t)),
    "functional": torch._to_functional_tensor,
    "two": lambda t: TwoTensor(t, t.clone()),
    "subclass": lambda t: t.as_subclass(Subclass),
    "meta": lambda t: t.to("meta"),
}


class Subclass(Tensor):
    pass


def plain_numbers(t: Tensor) -> Tensor:
    if isinstance(t, TwoTensor):
        return t.a
    if torch._is_functional_tensor(t):
        return torch._from_functional_tensor(t)
    return t.as_subclass(Tensor)


@pytest.mark.filterwarnings("ignore:.*nested tensors:UserWarning")
@pytest.mark.parametrize("grad", [False, True], ids=["no_grad", "grad"])
@pytest.mark.parametrize("name", ["x", "h0", "w_ih_0", "w_hh_0", "b_ih_0"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", ["LSTM", "GRU"])
def test_another_kind_of_tensor_is_computed_or_refused(
    mode: str, kind: str, name: str, grad: bool
) -> None:
    """Never read as if its memory were that of a plain tensor."""
    case = Case(3, 2, 4, 5, mode=mode)
    values = case.problem(torch.float32)
    expected = of_module(case, values)
    values["b_hh_0"].requires_grad_(grad)
    with torch.set_grad_enabled(grad):
        try:
            found = of_module(case, values | {name: KINDS[kind](values[name])})
        except (RuntimeError, ValueError, TypeError, NotImplementedError) as error:
            # What torch.nn refuses as well, and tensors without numbers.
            assert kind in ("mkldnn", "quantized", "nested", "meta"), error
            assert "Internal error" not in str(error) and len(str(error)) < 500
            return
    found = {n: plain_numbers(t).detach() for n, t in found.items()}
    assert_same(found, {n: t.detach() for n, t in expected.items()})


def test_lazy_lengths_and_sizes() -> None:
    """Integers without memory of their own, too."""
    m, x = fastlstm.GRU(2, 3), torch.randn(4, 2, 2)
    output, h_n = m(x, lengths=torch._efficientzerotensor((2,), dtype=torch.int64))
    assert not output.any() and not h_n.any()
    tokens = torch._efficientzerotensor((4, 2), dtype=torch.int64)
    assert torch.equal(m(tokens)[0], m(torch.zeros(4, 2, dtype=torch.int64))[0])
    reset = torch._efficientzerotensor((4, 2), dtype=torch.bool)
    assert torch.equal(m(x, reset=reset)[0], m(x)[0])


@pytest.mark.parametrize("cls", [fastlstm.LSTM, fastlstm.GRU, fastlstm.RNN])
def test_one_row_of_a_padded_batch_reads_its_own_steps(cls: type[nn.Module]) -> None:
    """A batch of one row in batch-first layout: a stride of 5 between rows that do not exist."""
    m, x = cls(5, 7, batch_first=True), torch.randn(1, 6, 5)
    expected = m(x[:, :3])[0]
    assert torch.equal(m(x, lengths=[3])[0][:, :3], expected)
    compiled = torch.compile(lambda x: m(x, lengths=torch.tensor([3]))[0], backend="aot_eager")
    assert torch.equal(compiled(x)[:, :3], expected)
    each = torch.vmap(lambda x: m(x, lengths=torch.tensor([3]))[0])(x.unsqueeze(0))
    assert torch.equal(each[0][:, :3], expected)


def test_a_long_row_is_not_read_past_its_end() -> None:
    m = fastlstm.RNN(512, 4, batch_first=True)
    output, _ = m(torch.randn(1, 3000, 512), lengths=[2999])
    assert output.isfinite().all()


def test_a_negative_view_is_what_it_stands_for() -> None:
    v = torch.randn(5, 2, 1, dtype=torch.complex64).conj().imag
    assert v.is_neg()
    m = fastlstm.LSTM(1, 4)
    assert torch.equal(m(v)[0], m(v.clone())[0])
