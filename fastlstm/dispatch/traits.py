"""The cells there are, and what Python has to know of each: read from csrc/cells, which says it."""

from typing import NamedTuple

from fastlstm.dispatch.extension import _C


class CellTraits(NamedTuple):
    """One cell. Sizes are in units of H.

    Attributes:
        mode: its name, torch.nn's where that has it: ``"LSTM"``, ``"RNN_TANH"``, ...
        gates: G, rows of w_ih, w_hh and the biases.
        reserve: numbers of a step that forward keeps for backward, beside its states.
        dgates: numbers of a step that backward computes.
        separate: gates, the last ones, that keep the biases of input and hidden state apart.
        has_c: has a cell state beside h.
        has_carry: passes a gradient to the step before beside that through W_hh.
        fwd_reads_state: a step reads the state before it, beside W_hh: c, or h of a cell without.
        bwd_reads_state: backward of a step reads the state after it.
        bwd_reads_prev_state: backward of a step reads the state before it.
    """

    mode: str
    gates: int
    reserve: int
    dgates: int
    separate: int
    has_c: bool
    has_carry: bool
    fwd_reads_state: bool
    bwd_reads_state: bool
    bwd_reads_prev_state: bool


CELL_TRAITS = {
    cell.mode: CellTraits(*(getattr(cell, name) for name in CellTraits._fields))
    for cell in _C.cells()
}
