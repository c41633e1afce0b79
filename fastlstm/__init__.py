"""LSTM, GRU and RNN for PyTorch on fused kernels: ``from fastlstm import LSTM`` in place of
``torch.nn.LSTM``, and likewise GRU, RNN, LSTMCell, GRUCell and RNNCell."""

from fastlstm import functional, reference
from fastlstm.cells import GRUCell, LSTMCell, RNNCell
from fastlstm.convert import convert, patch_torch, to_torch
from fastlstm.dispatch.extension import cpu_capability
from fastlstm.modules import GRU, LSTM, RNN
from fastlstm.reference import LSTMStates, RNNStates

__version__ = "0.1.0"

__all__ = [
    "GRU",
    "GRUCell",
    "LSTM",
    "LSTMCell",
    "LSTMStates",
    "RNN",
    "RNNCell",
    "RNNStates",
    "__version__",
    "convert",
    "cpu_capability",
    "functional",
    "patch_torch",
    "reference",
    "to_torch",
]
