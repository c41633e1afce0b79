"""float16, bfloat16 and autocast: computed in float32, rounded once."""

import copy

import pytest
import torch
import torch.nn.functional as F
from cell_kinds import has_c
from error_rule import assert_error_within
from module_pairs import build, flat, ids, kinds, pair, results_and_grads, state_for
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import fastlstm

half_dtypes = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "f16"])
options = pytest.mark.parametrize(
    "options",
    [{}, {"num_layers": 2, "bidirectional": True}, {"bias": False, "batch_first": True}],
    ids=ids,
)


def cast(tree, dtype: torch.dtype):
    """A tensor, a pair of them or a PackedSequence in another dtype."""
    if isinstance(tree, (Tensor, PackedSequence)):
        return tree.to(dtype)
    return tuple(t.to(dtype) for t in tree)


def noise(like: Tensor | PackedSequence, dtype: torch.dtype):
    if isinstance(like, PackedSequence):
        return like._replace(data=noise(like.data, dtype))
    return torch.randn(like.shape).to(dtype)


def assert_error(kind: str, dtype: torch.dtype, options: dict, x: Tensor, batch: int) -> None:
    """Hold outputs and gradients to the error rule: at most twice the error of torch.nn."""
    rows = []
    for seed in range(4):
        torch.manual_seed(seed)
        mine, theirs = pair(kind, 5, 17, dtype=dtype, **options)
        true = build(nn, kind, 5, 17, dtype=torch.float64, **options)
        true.load_state_dict(theirs.state_dict())
        own, hx = noise(x, dtype), state_for(mine, batch)
        found, base = results_and_grads(mine, own, hx), results_and_grads(theirs, own, hx)
        wide = results_and_grads(true, cast(own, torch.float64), cast(hx, torch.float64))
        rows.append(list(zip(found, base, wide, strict=True)))
    for i, triples in enumerate(zip(*rows, strict=True)):
        parts = (torch.stack(part) for part in zip(*triples, strict=True))
        assert_error_within(f"result {i}", *parts)


@kinds
@half_dtypes
@options
def test_error(kind: str, dtype: torch.dtype, options: dict) -> None:
    assert_error(kind, dtype, options, torch.zeros(9, 3, 5), 9 if "batch_first" in options else 3)


@kinds
@half_dtypes
def test_error_of_packed(kind: str, dtype: torch.dtype) -> None:
    packed = pack_padded_sequence(torch.zeros(9, 3, 5), [4, 1, 9], enforce_sorted=False)
    assert_error(kind, dtype, {"bidirectional": True}, packed, 3)


@half_dtypes
@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
def test_error_of_a_projection(dtype: torch.dtype) -> None:
    assert_error("LSTM", dtype, {"proj_size": 6, "num_layers": 2}, torch.zeros(9, 3, 5), 3)


@kinds
@half_dtypes
def test_states_and_lengths(kind: str, dtype: torch.dtype) -> None:
    module = build(fastlstm, kind, 5, 17, 2, dtype=dtype)
    x, lengths = torch.randn(9, 3, 5).to(dtype), [4, 1, 9]
    output, hidden, states = module(x, state_for(module, 3), lengths=lengths, return_states=True)
    assert {t.dtype for t in flat((output, hidden, tuple(states)))} == {dtype}
    assert torch.equal(states.h[1], output)
    assert torch.equal(flat(hidden)[0][1, 0], output[3, 0])
    assert not output[4:, 0].any()


@kinds
def test_float16_is_computed_in_float32(kind: str) -> None:
    """Rounding between layers or steps would show: the last layer's output is rounded alone."""
    module = build(fastlstm, kind, 5, 17, 2, dtype=torch.float16)
    x = torch.randn(30, 3, 5).half()
    single = copy.deepcopy(module).float()
    for found, expected in zip(flat(module(x)), flat(single(x.float())), strict=True):
        assert torch.equal(found, expected.half())


def test_cell_state_of_bfloat16_is_kept_in_float32() -> None:
    """It grows by 2^-9 a step: in bfloat16, steps as small as that would be lost from 1/2 on."""
    module = fastlstm.LSTM(1, 1, dtype=torch.bfloat16)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
        module.bias_ih_l0.copy_(torch.tensor([30.0, 30.0, 2**-9, 0.0]))
    _, (_, c_n) = module(torch.zeros(1000, 1, 1, dtype=torch.bfloat16))
    assert c_n.item() == pytest.approx(1000 * 2**-9, rel=2**-8)


@kinds
def test_gradients_of_bfloat16_are_summed_in_float32(kind: str) -> None:
    """2048 equal terms: in bfloat16 the sum would stop growing after 256 of them."""
    module = build(fastlstm, kind, 1, 1, dtype=torch.bfloat16)
    x = torch.ones(2048, 1, dtype=torch.bfloat16)[None]
    output = module(x)[0]
    output.float().sum().backward()
    gradient = module.bias_ih_l0.grad.clone()
    module.zero_grad()
    module(x[:, :1])[0].float().sum().backward()
    torch.testing.assert_close(gradient, 2048 * module.bias_ih_l0.grad)


has_bfloat16_products = pytest.mark.skipif(
    fastlstm.cpu_capability() != "AVX512" or not torch.cpu._is_avx512_bf16_supported(),
    reason="without AVX512-BF16, operands are not rounded",
)


@has_bfloat16_products
def test_bfloat16_operands_are_rounded_to_nearest_even() -> None:
    """With W_hh the identity, and no input, h of a second step is the first one as an operand."""
    H = 37
    module = fastlstm.RNN(H, H, nonlinearity="relu", bias=False, dtype=torch.bfloat16)
    x = torch.zeros(2, 9, H, dtype=torch.bfloat16)
    x[0] = torch.rand(9, H)
    x[0, 0] = 1.0
    with torch.no_grad():
        module.weight_hh_l0.copy_(torch.eye(H))
        module.weight_ih_l0.uniform_()
        # In the middle between two numbers: the first goes down, the second up.
        module.weight_ih_l0[:2] = 0.0
        module.weight_ih_l0[:2, 0] = 1.0
        module.weight_ih_l0[:2, 1] = torch.tensor([2**-8, 3 * 2**-8])
        output, _ = module(x)
    assert torch.equal(output[0, 0, :2], torch.tensor([1.0, 1 + 2**-6]).bfloat16())
    assert torch.equal(output[1], output[0])
    sums = x[0].float() @ module.weight_ih_l0.float().T
    assert (cut(sums) != output[0]).float().mean() > 0.3


@has_bfloat16_products
def test_bfloat16_gradients_of_gates_are_rounded_to_nearest_even() -> None:
    """The sum of two cotangents, in the products for dx and for dW_ih; x of each is an identity."""
    H = 37
    module = fastlstm.RNN(H, H, nonlinearity="relu", bias=False, dtype=torch.bfloat16)
    cotangents = torch.rand(2, H, H).bfloat16()
    sums = cotangents.float().sum(0)
    assert (cut(sums) != sums.bfloat16()).float().mean() > 0.3
    eye, positive = torch.eye(H), 0.5 + torch.rand(H, H)
    for w_ih, first in ((eye, positive), (positive, eye)):
        with torch.no_grad():
            module.weight_hh_l0.copy_(eye)
            module.weight_ih_l0.copy_(w_ih)
        x = torch.stack([first, torch.zeros(H, H)]).bfloat16().requires_grad_()
        output, _ = module(x)
        dx, dw_ih = torch.autograd.grad(output, [x, module.weight_ih_l0], cotangents)
        if first is eye:
            assert torch.equal(dw_ih, sums.bfloat16().T)
        else:
            assert torch.equal(dx[0], sums.bfloat16())


def cut(t: Tensor) -> Tensor:
    """float32 as bfloat16 by leaving off the last bits."""
    return (t.view(torch.int32) & -65536).view(torch.float32).bfloat16()


@kinds
def test_tokens(kind: str) -> None:
    module = build(fastlstm, kind, 5, 17, dtype=torch.bfloat16)
    tokens, table = torch.randint(5, (9, 3)), torch.randn(5, 5, dtype=torch.bfloat16)
    one_hot = F.one_hot(tokens, 5).bfloat16()
    torch.testing.assert_close(module(tokens)[0], module(one_hot)[0])
    embedded = module(tokens, embedding=table)[0]
    assert embedded.dtype == torch.bfloat16
    torch.testing.assert_close(embedded, module(table[tokens])[0])
    large = torch.randn(50, 5, dtype=torch.bfloat16)
    torch.testing.assert_close(module(tokens, embedding=large)[0], module(large[tokens])[0])


@kinds
@half_dtypes
@options
def test_autocast(kind: str, dtype: torch.dtype, options: dict) -> None:
    """As if operands had been rounded to autocast's dtype; results in it, whatever the kind."""
    module = build(fastlstm, kind, 5, 17, **options)
    narrow = copy.deepcopy(module).to(dtype)
    x = torch.randn(9, 3, 5)
    hx = state_for(module, 9 if "batch_first" in options else 3)
    for grad in (False, True):
        with torch.set_grad_enabled(grad):
            with torch.autocast("cpu", dtype):
                found = flat(module(x, hx))
            assert all(t.dtype == dtype for t in found)
            assert all(map(torch.equal, found, flat(narrow(x.to(dtype), cast(hx, dtype)))))
    sum(t.float().sum() for t in found).backward()
    assert {p.grad.dtype for p in module.parameters()} == {torch.float32}


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")
@kinds
def test_derivatives_under_autocast(kind: str) -> None:
    """The loop that computes them rounds where the kernels do, whatever autocast would do to it."""
    module = build(fastlstm, kind, 5, 17, bidirectional=True)
    narrow = copy.deepcopy(module).bfloat16()
    x, t = torch.randn(2, 9, 3, 5).bfloat16()

    def derivatives(module: nn.Module, x: Tensor, t: Tensor) -> list[Tensor]:
        def loss(x: Tensor) -> Tensor:
            return sum(out.float().sin().sum() for out in flat(module(x)))

        def gradient(x: Tensor) -> Tensor:
            return torch.func.grad(loss)(x)

        found = [
            torch.func.jvp(lambda x: flat(module(x))[0], (x,), (t,))[1],
            torch.func.jvp(gradient, (x,), (t,))[1],
            torch.func.vjp(gradient, x)[1](t)[0],
        ]
        return [d.float() for d in found]

    expected = derivatives(narrow, x, t)
    with torch.autocast("cpu", torch.bfloat16):
        found = derivatives(module, x.float(), t.float())
    for mine, other in zip(found, expected, strict=True):
        assert torch.equal(mine, other)


@kinds
def test_autocast_takes_input_of_any_narrow_dtype(kind: str) -> None:
    module = build(fastlstm, kind, 5, 17)
    x = torch.randn(9, 3, 5)
    with torch.autocast("cpu", torch.bfloat16):
        expected, found = module(x)[0], module(x.bfloat16())[0]
        assert torch.equal(found, expected)
        with pytest.raises(RuntimeError, match="input must have a dtype that autocast casts"):
            module(x.double())
    with torch.autocast("cpu", torch.bfloat16, enabled=False):
        assert module(x)[0].dtype == torch.float32


@kinds
@pytest.mark.parametrize("cell", [False, True], ids=["layer", "cell"])
def test_autocast_of_another_device_changes_nothing(kind: str, cell: bool) -> None:
    module = build(fastlstm, kind, 5, 17, cell=cell)
    x = torch.randn(3, 5)
    expected = flat(module(x))
    torch.set_autocast_enabled("cuda", True)
    try:
        assert all(map(torch.equal, flat(module(x)), expected))
        assert all(t.dtype == torch.float32 for t in flat(module(x)))
    finally:
        torch.set_autocast_enabled("cuda", False)


@kinds
def test_autocast_leaves_float64_alone(kind: str) -> None:
    mine, theirs = pair(kind, 5, 4)
    x = torch.randn(9, 3, 5, dtype=torch.float64)
    with torch.autocast("cpu", torch.bfloat16):
        assert mine(x)[0].dtype == theirs(x)[0].dtype == torch.float64


@kinds
@pytest.mark.parametrize("what", ["h0", "embedding", "w_hh"])
def test_no_cast_unasked(kind: str, what: str) -> None:
    """Outside of autocast a tensor of another dtype is an error, as it is in float32."""
    module = build(fastlstm, kind, 5, 4, dtype=torch.bfloat16)
    with pytest.raises(RuntimeError, match=f"{what} must have dtype torch.bfloat16, got torch.fl"):
        if what == "h0":
            hx = torch.zeros(1, 3, 4)
            module(torch.zeros(9, 3, 5).bfloat16(), (hx, hx) if has_c(kind) else hx)
        elif what == "embedding":
            module(torch.zeros(9, 3, dtype=torch.int64), embedding=torch.zeros(7, 5))
        else:
            module.weight_hh_l0 = nn.Parameter(module.weight_hh_l0.float())
            module(torch.zeros(9, 3, 5).bfloat16())


def test_the_state_that_is_wrong_is_named() -> None:
    module, x = build(fastlstm, "LSTM", 5, 4, dtype=torch.bfloat16), torch.zeros(9, 3, 5).bfloat16()
    narrow, wide = torch.zeros(1, 3, 4).bfloat16(), torch.zeros(1, 3, 4).double()
    for name, hx in (("h0", (wide, narrow)), ("c0", (narrow, wide))):
        with pytest.raises(
            RuntimeError, match=f"{name} must have dtype torch.bfloat16.* got torch"
        ):
            module(x, hx)


@kinds
@pytest.mark.parametrize(("N", "H"), [(1, 300), (5, 130), (33, 64)], ids=["N1", "N5", "N33"])
@pytest.mark.alone
def test_bfloat16_is_bitwise_the_same_for_any_number_of_threads(kind: str, N: int, H: int) -> None:
    module = build(fastlstm, kind, 40, H, bidirectional=True, dtype=torch.bfloat16)
    x = torch.randn(6, N, 40).bfloat16()
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        module.zero_grad()
        outputs = flat(module(x))
        sum(t.float().sin().sum() for t in outputs).backward()
        results.append([t.detach() for t in outputs] + [p.grad for p in module.parameters()])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))
