"""The cells that there are, and what the tests ask of them: gates, and whether they have a c."""

GATES = {"LSTM": 4, "GRU": 3, "RNN_TANH": 1, "RNN_RELU": 1}
WITH_C = {"LSTM"}
MODES = tuple(GATES)


def has_c(mode: str) -> bool:
    """Whether a cell carries a c beside its h: states are pairs then."""
    return mode in WITH_C
