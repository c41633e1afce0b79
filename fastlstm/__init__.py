"""LSTM for PyTorch on fused kernels: ``from fastlstm import LSTM`` in place of ``torch.nn.LSTM``."""

from fastlstm import functional, reference
from fastlstm._extension import cpu_capability
from fastlstm.modules import LSTM, LSTMStates

__version__ = "0.1.0"

__all__ = ["LSTM", "LSTMStates", "__version__", "cpu_capability", "functional", "reference"]
