"""The kernels of CUDA, on the emulator and, where there is one, on a GPU.

The rule is that of every test: at most twice the error of torch.nn in the same dtype on the same
device, against float64.
"""

import random
from collections.abc import Iterator
from dataclasses import replace

import pytest
import simt_extension
import torch
from cell_kinds import has_c
from cuda_devices import EVERY_DEVICE, Device, below_f64, device, dtypes
from error_rule import assert_error_within, assert_parity, assert_same
from helpers import MODES, Case, Values, cases, modes, plain, solve, torch_modes, with_tokens
from odd_tensors import check as check_odd
from odd_tensors import drawn_case
from torch import Tensor

import fastlstm

SMALL = Case(5, 3, 4, 17)
# In a ring: the order that sorts them is not the one that brings them back.
RAGGED = Case(5, 3, 4, 17, lengths=(3, 0, 5))


@pytest.fixture(params=EVERY_DEVICE)
def dev(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Device]:
    name, kernel = request.param
    monkeypatch.setenv("FASTLSTM_CUDA_KERNEL", kernel)
    with device(name) as found:
        yield found


def check(dev: Device, case: Case, dtype: torch.dtype, **options) -> None:
    if "baseline" not in options and not case.reset:
        options["baseline"] = dev.theirs
    if case.mode == "RNN_RELU" and torch.finfo(dtype).bits == 16:
        case = replace(case, layers=1, H=min(case.H, 7))  # have_same_signs
    # The emulator is slow, and so are the many small launches on a GPU.
    assert_parity(case, dtype, solver=dev.ours, elements=3_000, **options)


@dtypes
@cases(
    SMALL,
    Case(1, 1, 1, 1),
    Case(3, 2, 1, 3, bias=False, state=False),
    Case(2, 5, 7, 130),
    Case(6, 5, 3, 33, bidirectional=True, batch_first=True, layers=2),
    modes=MODES,
)
def test_parity(dev: Device, case: Case, dtype: torch.dtype) -> None:
    check(dev, case, dtype)


@dtypes
@cases(
    RAGGED,
    replace(RAGGED, bidirectional=True, layers=2, batch_first=True),
    Case(5, 4, 4, 17, lengths=(5, 4, 4, 1), packed=True, bidirectional=True),
    modes=MODES,
)
def test_sequences_of_several_lengths(dev: Device, case: Case, dtype: torch.dtype) -> None:
    check(dev, case, dtype)


@pytest.mark.slow
@cases(
    Case(2, 300, 1, 3, lengths=tuple(n % 3 for n in range(300)), bidirectional=True),
    Case(300, 2, 1, 3, lengths=(257, 300), bidirectional=True),
    Case(300, 2, 1, 3, lengths=(300, 257), packed=True),
)
def test_tables_of_rows_in_several_launches(dev: Device, case: Case) -> None:
    """Of more than 256 entries, which one launch can write."""
    check(dev, case, torch.bfloat16)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["f32", "f64"])
@cases(
    replace(SMALL, reset=0.4),
    replace(SMALL, reset=0.4, bidirectional=True),
    replace(RAGGED, reset=0.4, bidirectional=True),
    modes=MODES,
)
def test_reset(dev: Device, case: Case, dtype: torch.dtype) -> None:
    check(dev, case, dtype)


@dtypes
@cases(
    replace(SMALL, proj_size=5),
    replace(SMALL, proj_size=1, bidirectional=True, layers=2, bias=False),
    replace(RAGGED, proj_size=16, bidirectional=True),
)
@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
def test_projection(dev: Device, case: Case, dtype: torch.dtype) -> None:
    check(dev, case, dtype)


def test_projection_with_reset(dev: Device) -> None:
    check(dev, replace(SMALL, proj_size=5, reset=0.4, bidirectional=True), torch.float32)


@pytest.mark.slow
@pytest.mark.parametrize("embedding", [False, True], ids=["one_hot", "embedding"])
@below_f64
@cases(
    Case(5, 3, 9, 17, bidirectional=True),
    Case(5, 3, 9, 17, lengths=(3, 0, 5)),
    Case(5, 3, 9, 17, lengths=(5, 3, 1), packed=True),
    modes=MODES,
)
def test_tokens(dev: Device, case: Case, dtype: torch.dtype, embedding: bool) -> None:
    """Held to the rule of the vectors that they stand for."""
    vocabulary = 7 if embedding else case.I

    def as_tokens(values: Values) -> Values:
        values = with_tokens(case, values, vocabulary)
        if embedding:
            values["embedding"] = torch.randn(vocabulary, case.I).to(dtype)
        return values

    def looked_up(solver_case: Case, values: Values) -> Values:
        table = values.get("embedding")
        if table is None:
            table = torch.eye(case.I, dtype=dtype)
        vectors = torch.nn.functional.embedding(values["x"], table)
        rest = {n: v for n, v in values.items() if n != "embedding"}
        return dev.theirs(solver_case, rest | {"x": vectors})

    check(dev, case, dtype, change=as_tokens, baseline=looked_up)


@modes
def test_layouts(dev: Device, mode: str) -> None:
    """Transposed, expanded and overlapping tensors, as inputs and as weights."""

    def expanded(values: Values) -> Values:
        values["x"] = values["x"][:1, :1].expand(5, 3, 4)
        values["w_ih_0"] = values["w_ih_0"][:1].expand_as(values["w_ih_0"])
        values["w_hh_0"] = values["w_hh_0"].t().contiguous().t()
        values["h0"] = values["h0"][:, :1].expand_as(values["h0"])
        return values

    def strided(values: Values) -> Values:
        wide = torch.randn(5, 6, 9)
        values["x"] = wide[:, ::2, 2:6]
        values["w_hh_0"] = torch.nn.functional.pad(values["w_hh_0"], (3, 1))[:, 3:-1]
        return values

    for change in (expanded, strided):
        check(dev, replace(SMALL, mode=mode), torch.float32, change=change)


@pytest.mark.slow
def test_the_place_of_the_numbers_changes_no_bit(dev: Device) -> None:
    """As test_odd_tensors.py has it for the CPU, which this takes its problems from."""
    draw = random.Random(0)
    for _ in range(40):
        check_odd(draw, *drawn_case(draw), dev.ours)


def test_weights_whose_rows_overlap(dev: Device) -> None:
    """As those of an expanded tensor do. cuBLAS takes none."""
    case = replace(SMALL, proj_size=5, bidirectional=True)
    vectors, cotangents = case.problem(torch.float32), case.cotangents(torch.float32)
    tokens = with_tokens(case, vectors, 7) | {"embedding": torch.randn(7, case.I)}
    for values in (vectors, tokens):
        for name in [n for n, t in values.items() if t.dim() == 2 and n != "x"]:
            rows = values[name][:1].expand_as(values[name])
            found, expected = (
                solve(dev.ours, case, values | {name: t}, cotangents)
                for t in (rows, rows.contiguous())
            )
            assert_same(found, expected)


@modes
def test_only_some_gradients(dev: Device, mode: str) -> None:
    """What is not asked for is not computed, and the rest is the same."""
    case = replace(SMALL, mode=mode, bidirectional=True)
    values, cotangents = case.problem(torch.float32), case.cotangents(torch.float32)
    all_grads = solve(dev.ours, case, values, cotangents)
    for wanted in (["x"], ["h0"], ["w_hh_0"], ["b_ih_1", "x"]):
        some = solve(dev.ours, case, values, cotangents, wanted)
        assert_same(some, {n: all_grads[n] for n in some})
    for name in cotangents:
        check(dev, case, torch.float32, outputs=[name])


@modes
def test_tf32_is_a_switch(dev: Device, mode: str) -> None:
    """Inputs with more than 10 bits of mantissa tell the two apart."""
    case = replace(SMALL, mode=mode)
    values = case.problem(torch.float32)
    found = {}
    for on in (False, True):
        dev.allow_tf32(on)
        found[on] = solve(dev.ours, case, values, None)["output"]
    true = solve(plain, case, {n: v.double() for n, v in values.items()}, None)["output"]
    errors = {on: (f - true).abs().max().item() for on, f in found.items()}
    assert errors[False] < 1e-6 < errors[True] < 1e-2, errors


@pytest.mark.slow
@dtypes
@cases(replace(SMALL, bidirectional=True, layers=2), replace(RAGGED, reset=0.3), modes=MODES)
def test_bitwise_repeat(dev: Device, case: Case, dtype: torch.dtype) -> None:
    values, cotangents = case.problem(dtype), case.cotangents(dtype)
    assert_same(
        solve(dev.ours, case, values, cotangents), solve(dev.ours, case, values, cotangents)
    )


def leaves_on(dev: Device, module: torch.nn.Module, *tensors: Tensor) -> list[Tensor]:
    return [*module.parameters(), *(dev.put(t).requires_grad_() for t in tensors)]


@torch_modes
def test_backward_may_run_many_times(dev: Device, mode: str) -> None:
    """Nothing that forward saved is overwritten; in eval mode as in training."""
    module = module_of(mode).to(dev.torch_device).eval()
    leaves = leaves_on(dev, module, torch.randn(4, 2, 3))
    output = module(leaves[-1])[0].sum()
    first = torch.autograd.grad(output, leaves, retain_graph=True)
    again = torch.autograd.grad(output, leaves)
    assert all(map(torch.equal, first, again))


def module_of(mode: str, **options) -> torch.nn.Module:
    kind, _, nonlinearity = mode.partition("_")
    if nonlinearity:
        options["nonlinearity"] = nonlinearity.lower()
    return getattr(fastlstm, kind)(3, 5, **options)


@pytest.mark.slow
@torch_modes
def test_second_derivatives(dev: Device, mode: str) -> None:
    module = module_of(mode, dtype=torch.float64).to(dev.torch_device)
    x = dev.put(torch.randn(3, 2, 3, dtype=torch.float64)).requires_grad_()
    if mode == "RNN_RELU":
        x = x.detach().abs().requires_grad_()  # away from the kink, where differences mean nothing
    assert torch.autograd.gradgradcheck(lambda x: module(x)[0], x)


@dtypes
@torch_modes
def test_states_of_every_step(dev: Device, mode: str, dtype: torch.dtype) -> None:
    """In the dtype of the input, and with gradients of their own."""
    module = module_of(mode, dtype=dtype).to(dev.torch_device)
    x = dev.put(torch.randn(4, 2, 3).to(dtype)).requires_grad_()
    output, hidden, states = module(x, return_states=True)
    assert {t.dtype for s in states for t in s} == {dtype}
    assert torch.equal(states.h[0], output)
    if has_c(mode):
        assert torch.equal(states.c[0][-1], hidden[1][0])
        states.c[0].float().pow(2).sum().backward()
        assert x.grad.dtype == dtype and x.grad.abs().min() > 0


@torch_modes
def test_nan_stays_in_its_row(dev: Device, mode: str) -> None:
    module = module_of(mode).to(dev.torch_device)
    x = torch.randn(4, 3, 3)
    x[1, 1, 0] = float("nan")
    output = module(dev.put(x))[0].cpu()
    assert output[1:, 1].isnan().all()
    assert output[:, [0, 2]].isfinite().all() and output[0].isfinite().all()


@below_f64
@torch_modes
def test_cells(dev: Device, mode: str, dtype: torch.dtype) -> None:
    """A cell is a layer of one step: held to the rule of torch.nn's cell."""
    kind, _, nonlinearity = mode.partition("_")
    options = {"nonlinearity": nonlinearity.lower()} if nonlinearity else {}
    states = 2 if has_c(mode) else 1
    found: dict[str, list[list[Tensor]]] = {"ours": [], "theirs": [], "true": []}
    for seed in range(20):
        torch.manual_seed(seed)
        theirs = getattr(torch.nn, f"{kind}Cell")(4, 17, **options, dtype=dtype)
        true = getattr(torch.nn, f"{kind}Cell")(4, 17, **options, dtype=torch.float64)
        mine = getattr(fastlstm, f"{kind}Cell")(4, 17, **options, dtype=dtype)
        true.load_state_dict(theirs.state_dict())
        mine.load_state_dict(theirs.state_dict())
        inputs = [torch.randn(3, size).to(dtype) for size in (4, *[17] * states)]
        cotangents = [torch.randn(3, 17).to(dtype) for _ in range(states)]
        for name, cell in (("ours", mine), ("theirs", theirs), ("true", true)):
            own = "cpu" if name == "true" else dev.torch_device
            wide = torch.float64 if name == "true" else dtype
            cell = cell.to(own)
            leaves = [t.to(own, wide).detach().requires_grad_() for t in inputs]
            hx = leaves[1:] if states == 2 else leaves[1]
            outputs = cell(leaves[0], hx)
            outputs = list(outputs) if states == 2 else [outputs]
            grads = torch.autograd.grad(
                outputs, [*leaves, *cell.parameters()], [g.to(own, wide) for g in cotangents]
            )
            found[name].append([t.detach().cpu() for t in (*outputs, *grads)])
    for i, parts in enumerate(
        zip(*(map(torch.stack, zip(*found[n], strict=True)) for n in found), strict=True)
    ):
        assert_error_within(f"result {i}", *parts)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "f16"])
def test_sums_and_state_of_16_bits_are_float32(dev: Device, dtype: torch.dtype) -> None:
    """c grows by 2^-9 a step: in bfloat16, steps as small as that would be lost from 1/2 on."""
    module = fastlstm.LSTM(1, 1, dtype=dtype)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
        module.bias_ih_l0.copy_(torch.tensor([30.0, 30.0, 2**-9, 0.0]))
    _, (_, c_n) = module.to(dev.torch_device)(dev.put(torch.zeros(1000, 1, 1, dtype=dtype)))
    assert c_n.item() == pytest.approx(1000 * 2**-9, rel=2**-8)


@torch_modes
def test_autocast(dev: Device, mode: str) -> None:
    """Everything in autocast's dtype, the gradients of float32 parameters in float32."""
    module = module_of(mode).to(dev.torch_device)
    x = dev.put(torch.randn(4, 2, 3)).requires_grad_()
    with torch.autocast(dev.torch_device, torch.bfloat16):
        output, hidden = module(x)
    rounded = module_of(mode, dtype=torch.bfloat16).to(dev.torch_device)
    rounded.load_state_dict(module.state_dict())
    assert torch.equal(output, rounded(x.detach().bfloat16())[0])
    output.float().sum().backward()
    assert {p.grad.dtype for p in [x, *module.parameters()]} == {torch.float32}


@torch_modes
def test_empty_batch_and_no_steps(dev: Device, mode: str) -> None:
    module = module_of(mode).to(dev.torch_device)
    for T, N in ((3, 0), (0, 2), (0, 0)):
        x = dev.put(torch.randn(T, N, 3))
        leaf = x.requires_grad_()
        output, hidden = module(leaf)
        assert output.shape == (T, N, 5)
        output.sum().backward()
        assert leaf.grad.shape == x.shape
        assert not module.weight_hh_l0.grad.any()


@torch_modes
def test_empty_sequences_keep_their_state(dev: Device, mode: str) -> None:
    module = module_of(mode).to(dev.torch_device)
    h0 = dev.put(torch.randn(1, 2, 5)).requires_grad_()
    hx = (h0, torch.zeros_like(h0)) if has_c(mode) else h0
    output, hidden = module(dev.put(torch.randn(3, 2, 3)), hx, lengths=[0, 0])
    h_n = hidden[0] if has_c(mode) else hidden
    assert torch.equal(h_n, h0) and not output.any()
    (grad,) = torch.autograd.grad(h_n.sum(), h0)
    assert torch.equal(grad, torch.ones_like(h0))


def test_token_out_of_range(dev: Device) -> None:
    if dev.name == "cuda":
        pytest.skip("ends the CUDA context: test_gpu.py has it in a process of its own")
    module = fastlstm.LSTM(3, 5)
    with pytest.raises(RuntimeError, match="token out of range"):
        module(torch.tensor([[0, 1], [3, 2]]))


@pytest.mark.slow
@pytest.mark.parametrize("lengths", [(68,) * 256, (68, *(4,) * 255)], ids=["full", "ragged"])
def test_input_projected_in_several_chunks(
    monkeypatch: pytest.MonkeyPatch, lengths: tuple[int, ...]
) -> None:
    """A batch whose gates take 18 MB, and its halves, which are one chunk of 16 MB each.

    Backwards the first chunk of the ragged one has the fewest rows.
    """
    monkeypatch.setenv("FASTLSTM_CUDA_KERNEL", "stepwise")
    module = fastlstm.LSTM(1, 64, bidirectional=True).requires_grad_(False)
    x, lengths = torch.randn(68, 256, 1), torch.tensor(lengths)
    with device("simt"):
        whole = module(x, lengths=lengths)[0]
        parts = zip(x.chunk(2, dim=1), lengths.chunk(2), strict=True)
        halves = [module(half, lengths=own)[0] for half, own in parts]
    assert torch.equal(whole, torch.cat(halves, dim=1))


@pytest.mark.slow
@modes
def test_random_schedules(mode: str) -> None:
    """Whatever the order in which threads run, the bits are the same."""
    case = replace(SMALL, mode=mode, bidirectional=True)
    values, cotangents = case.problem(torch.float32), case.cotangents(torch.float32)
    with device("simt") as dev:
        first = solve(dev.ours, case, values, cotangents)
        for seed in range(1, 6):
            simt_extension.load().set_seed(seed)
            assert_same(first, solve(dev.ours, case, values, cotangents))
