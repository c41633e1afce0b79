"""c of another dtype than h and the weights, as torch.nn takes it for a bfloat16 LSTM."""

import pytest
import torch
from error_rule import assert_error_within
from torch import nn

import fastlstm

NARROW = (torch.bfloat16, torch.float16, torch.float32)


@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("layers", [1, 2])
def test_a_bfloat16_lstm_takes_a_float32_c(layers: int, steps: int) -> None:
    theirs = nn.LSTM(4, 17, layers)
    x, h, c = torch.randn(steps, 3, 4), torch.randn(layers, 3, 17), torch.randn(layers, 3, 17)
    x, h = x.bfloat16(), h.bfloat16()
    theirs = theirs.bfloat16()
    ours = fastlstm.LSTM(4, 17, layers, dtype=torch.bfloat16)
    ours.load_state_dict(theirs.state_dict())
    output, (h_n, c_n) = ours(x, (h, c))
    assert (output.dtype, h_n.dtype, c_n.dtype) == (h.dtype, h.dtype, torch.float32)
    # Without oneDNN's kernels for bfloat16, torch refuses or promotes this mixture of dtypes.
    is_taken = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    expected = theirs(x, (h, c if is_taken else c.bfloat16()))
    true = theirs.double()(x.double(), (h.double(), c.double()))
    assert_error_within("output", output, expected[0], true[0])
    assert_error_within("h_n", h_n, expected[1][0], true[1][0])
    assert_error_within("c_n", c_n, expected[1][1].float(), true[1][1])


def test_a_float32_c_is_rounded_neither_on_the_way_in_nor_on_the_way_out() -> None:
    """With gates of 1 for what is kept and 0 for what is new, c goes through as it is."""
    m = fastlstm.LSTM(1, 1, dtype=torch.bfloat16)
    with torch.no_grad():
        for p in m.parameters():
            p.zero_()
        m.bias_ih_l0.copy_(torch.tensor([-200.0, 200.0, 0.0, 0.0]))
    c = torch.full((1, 1, 1), 1 + 2.0**-20)
    _, (_, c_n) = m(torch.zeros(2, 1, 1, dtype=torch.bfloat16), (c.bfloat16() * 0, c))
    assert torch.equal(c_n, c)


@pytest.mark.parametrize("given", NARROW)
@pytest.mark.parametrize("weight", NARROW)
def test_the_last_c_has_the_dtype_of_the_first(weight: torch.dtype, given: torch.dtype) -> None:
    m = fastlstm.LSTM(4, 5, dtype=weight)
    x, h = torch.randn(3, 2, 4).to(weight), torch.randn(1, 2, 5).to(weight)
    c = torch.randn(1, 2, 5).to(given).requires_grad_()
    output, (h_n, c_n) = m(x, (h, c))
    assert (output.dtype, h_n.dtype, c_n.dtype) == (weight, weight, given)
    (grad,) = torch.autograd.grad(c_n.sum(), c)
    assert grad.dtype == given and grad.any()
    expected = m(x, (h, c.to(weight)))
    torch.testing.assert_close(output, expected[0], rtol=2e-2, atol=2e-2)

    cell = fastlstm.LSTMCell(4, 5, dtype=weight)
    for row in (slice(None), 0):
        new_h, new_c = cell(x[0][row], (h[0][row], c[0][row]))
        assert (new_h.dtype, new_c.dtype) == (weight, given)


def test_a_float64_lstm_widens_c() -> None:
    m = fastlstm.LSTM(4, 5, dtype=torch.float64)
    x, h = torch.randn(3, 2, 4).double(), torch.zeros(1, 2, 5).double()
    assert m(x, (h, h.float()))[1][1].dtype == torch.float64
    assert nn.LSTM(4, 5, dtype=torch.float64)(x, (h, h.float()))[1][1].dtype == torch.float64


def test_a_wider_c_is_refused() -> None:
    m, h = fastlstm.LSTM(4, 5), torch.zeros(1, 2, 5)
    with pytest.raises(
        RuntimeError, match="c0 must have dtype torch.float32, or .* got torch.float64"
    ):
        m(torch.randn(3, 2, 4), (h, h.double()))
    with pytest.raises(RuntimeError, match="h0 must have dtype"):
        m(torch.randn(3, 2, 4), (h.bfloat16(), h))


def test_compiled() -> None:
    m = fastlstm.LSTM(4, 5, dtype=torch.bfloat16)
    x, h = torch.randn(3, 2, 4).bfloat16(), torch.zeros(1, 2, 5).bfloat16()
    compiled = torch.compile(m, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(x, (h, h.float()))[1][1], m(x, (h, h.float()))[1][1])
