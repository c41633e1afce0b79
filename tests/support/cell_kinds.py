"""The cells that there are, and what the tests ask of them: gates, and whether they have a c."""

from fastlstm.dispatch.traits import CELL_TRAITS

GATES = {mode: traits.gates for mode, traits in CELL_TRAITS.items()}
MODES = tuple(GATES)
# What has a public function, and a counterpart in torch.nn. A build with FASTLSTM_TEST_CELLS=1 has
# more in MODES.
TORCH_MODES = ("LSTM", "GRU", "RNN_TANH", "RNN_RELU")


def has_c(mode: str) -> bool:
    """Whether a cell carries a c beside its h: states are pairs then."""
    return CELL_TRAITS[mode].has_c
