"""Models of fastlstm as ONNX: through to_torch, since exporters know torch.nn's classes only.

What torch 2.13 exports of them: with dynamo=True every layer and cell, a batch of any size where
the states are inputs of the model, and T as in the example; with dynamo=False also any T. Neither
exporter has proj_size.
"""

import copy
import io

import pytest
import torch
from torch import Tensor, nn

import fastlstm

NEEDED = "needed to export and run the model: pip install -r requirements-dev.txt"
onnxruntime = pytest.importorskip("onnxruntime", reason=f"onnxruntime is {NEEDED}")
pytest.importorskip("onnxscript", reason=f"onnxscript is {NEEDED}")

# The exporters announce changes of their own, some of them once for each parameter.
pytestmark = pytest.mark.filterwarnings("ignore")


class Tagger(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 6)
        self.lstm = fastlstm.LSTM(6, 8, 2, batch_first=True, bidirectional=True, forget_bias=1.0)
        self.gru = fastlstm.GRU(16, 8, batch_first=True, bias=False)
        self.rnn = fastlstm.RNN(8, 8, batch_first=True, nonlinearity="relu")

    def forward(self, tokens: Tensor) -> tuple[Tensor, ...]:
        y, (h, c) = self.lstm(self.embedding(tokens))
        y, h_gru = self.gru(y)
        y, h_rnn = self.rnn(y)
        return y, h, c, h_gru, h_rnn


class Decoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cells = nn.ModuleList(
            [fastlstm.LSTMCell(5, 6), fastlstm.GRUCell(6, 6), fastlstm.RNNCell(6, 6, bias=False)]
        )

    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, ...]:
        g, r, outputs = h, h, []
        for x_t in x.unbind(1):
            h, c = self.cells[0](x_t, (h, c))
            g = self.cells[1](h, g)
            r = self.cells[2](g, r)
            outputs.append(r)
        return torch.stack(outputs, dim=1), h, c


class Streaming(nn.Module):
    """States go in and out, so that a sequence can be fed in parts."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = fastlstm.LSTM(5, 6)
        self.gru = fastlstm.GRU(6, 6)

    def forward(self, x: Tensor, h: Tensor, c: Tensor, g: Tensor) -> tuple[Tensor, ...]:
        y, (h, c) = self.lstm(x, (h, c))
        y, g = self.gru(y, g)
        return y, h, c, g


def exported(model: nn.Module, example: tuple[Tensor, ...], dynamic=None):
    theirs = fastlstm.to_torch(copy.deepcopy(model))
    program = torch.onnx.export(theirs, example, dynamo=True, verbose=False, dynamic_shapes=dynamic)
    return program.model_proto.SerializeToString()


def assert_runs_alike(model: nn.Module, saved: bytes, *inputs: Tensor) -> None:
    """onnxruntime on the exported file, and fastlstm's modules on their kernels."""
    providers = ["CPUExecutionProvider"]
    session = onnxruntime.InferenceSession(saved, providers=providers)
    feed = dict(zip((i.name for i in session.get_inputs()), map(Tensor.numpy, inputs), strict=True))
    found = [torch.from_numpy(value) for value in session.run(None, feed)]
    with torch.no_grad():
        torch.testing.assert_close(found, list(model(*inputs)), rtol=1e-5, atol=1e-6)
    assert all(type(m).__module__.startswith("fastlstm") for m in model.children() if is_rnn(m))


def is_rnn(module: nn.Module) -> bool:
    return isinstance(module, (nn.RNNBase, nn.RNNCellBase))


@pytest.mark.slow
def test_layers() -> None:
    model, tokens = Tagger().eval(), torch.randint(7, (3, 5))
    assert_runs_alike(model, exported(model, (tokens,)), tokens)


@pytest.mark.slow
def test_cells() -> None:
    model, x, state = Decoder().eval(), torch.randn(3, 4, 5), torch.randn(3, 6)
    assert_runs_alike(model, exported(model, (x, state, -state)), x, state, -state)


@pytest.mark.slow
def test_any_batch_and_state() -> None:
    model, batch = Streaming().eval(), {1: torch.export.Dim.DYNAMIC}

    def inputs(n: int) -> tuple[Tensor, ...]:
        shapes = ((4, n, 5), (1, n, 6), (1, n, 6), (1, n, 6))
        return tuple(torch.randn(shape) for shape in shapes)

    saved = exported(model, inputs(3), (batch,) * 4)
    for n in (3, 1, 8):
        assert_runs_alike(model, saved, *inputs(n))


@pytest.mark.slow
def test_any_length_with_the_older_exporter() -> None:
    model, saved = Tagger().eval(), io.BytesIO()
    torch.onnx.export(
        fastlstm.to_torch(copy.deepcopy(model)),
        (torch.randint(7, (3, 5)),),
        saved,
        dynamo=False,
        input_names=["tokens"],
        dynamic_axes={"tokens": {0: "N", 1: "T"}},
    )
    for shape in ((3, 5), (1, 9), (4, 1)):
        assert_runs_alike(model, saved.getvalue(), torch.randint(7, shape))
