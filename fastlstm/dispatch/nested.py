"""Jagged nested tensors: ``lengths`` in other clothes. Their rows are padded, and come back jagged."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastlstm.dispatch import stack
from fastlstm.dispatch.embedding import called, opened
from fastlstm.dispatch.stack import StackResult
from fastlstm.reference import CallOptions, Weights


def is_nested(input: object) -> bool:
    return isinstance(input, Tensor) and input.is_nested


def is_tokens(input: Tensor) -> bool:
    return not (input.is_floating_point() or input.is_complex())


def refuse_strided(name: str, t: Tensor) -> None:
    """Raise if ``t`` is nested in torch's older way, whose rows have no offsets."""
    if is_nested(t) and t.layout != torch.jagged:
        raise RuntimeError(
            f"a nested {name} must have layout torch.jagged, got {t.layout}:"
            f" torch.nested.as_nested_tensor({name}.unbind(), layout=torch.jagged) converts it"
        )


def run_stack(mode: str, input: Tensor, hx, weights: Weights, options: CallOptions) -> StackResult:
    """:func:`fastlstm.dispatch.stack.run_stack`, of nested input too."""
    if not is_nested(input):
        return stack.run_stack(mode, input, hx, weights, options)
    if options.batch_sizes is not None:
        raise ValueError("batch_sizes go with packed input, not with a nested tensor")

    def run(x: Tensor, embedding, lengths: Tensor, reset: Tensor | None) -> StackResult:
        changed = options._replace(embedding=embedding, lengths=lengths, reset=reset)
        return stack.run_stack(mode, x, hx, weights, changed)

    return StackResult(
        *run_padded(
            run, input, options.embedding, options.lengths, options.reset, options.batch_first
        )
    )


def run_padded(
    run: Callable,
    input: Tensor,
    embedding: Tensor | nn.Embedding | None,
    lengths: Tensor | Sequence[int] | None,
    reset: Tensor | None,
    batch_first: bool,
) -> tuple:
    """Run the rows of a nested ``input``.

    Args:
        run: from ``(x, embedding, lengths, reset)``, padded, to ``(output, hidden)`` or
            ``(output, hidden, states)``.
        input: ``[N, j, I]``, or tokens ``[N, j]``.
        embedding: for tokens, or None.
        lengths: None, or else an error: the input has its own.
        reset: bool ``[N, j]``, as jagged as the input, or None.
        batch_first: the layout that ``run`` takes.

    Returns:
        What ``run`` does, with an output and states like ``input``: ``[N, j, ...]``.
    """
    refuse_strided("input", input)
    if lengths is not None:
        raise ValueError(
            "lengths go with padded input, not with a nested tensor, which has its own"
        )
    rows = _Rows("input", input)
    values = rows.values
    if embedding is not None and is_tokens(input) and opened(embedding)[0] is None:
        # As of a packed sequence, the module sees the tokens and none that stand for padding.
        values, embedding = called(embedding, values), None
    x = rows.padded(values)
    reset = None if reset is None else _padded_reset(reset, rows)
    if batch_first:
        x, reset = x.transpose(0, 1), None if reset is None else reset.transpose(0, 1)
    output, hidden, *rest = run(x, embedding, rows.lengths, reset)

    def jagged(t: Tensor) -> Tensor:
        return rows.jagged(t.transpose(0, 1) if batch_first else t)

    states = rest[0] if rest else None
    if states is None:
        return jagged(output), hidden, *rest
    states = type(states)(*(tuple(map(jagged, layers)) for layers in states))
    return states.h[-1], hidden, states


class _Rows:
    """Where the rows of a jagged tensor are, and where they are as ``[T, N, ...]``.

    Attributes:
        lengths: int64 ``[N]`` on the CPU.
    """

    def __init__(self, name: str, t: Tensor) -> None:
        dim, expected = t.dim(), 3 - is_tokens(t)
        if dim != expected:
            raise RuntimeError(f"a nested {name} must have {expected} dimensions, got {dim}")
        if t._ragged_idx != 1:
            raise RuntimeError(
                f"a nested {name} must be ragged in dimension 1, as [N, j, I], got dimension"
                f" {t._ragged_idx}"
            )
        self.tensor, self.values = t, t.values()
        offsets, total = t.offsets().long(), self.values.size(0)
        starts, known = offsets[:-1], offsets.cpu()
        self.batch = starts.size(0)
        self.lengths = known.diff() if t.lengths() is None else t.lengths().long().cpu()
        # A graph being captured knows no numbers: there the tensor has to know T itself, and there
        # may be values that belong to no row.
        if torch.compiler.is_compiling():
            self.steps, has_holes = t._get_max_seqlen(), True
        else:
            _check_rows(name, known[:-1], self.lengths, total)
            self.steps = int(self.lengths.max()) if self.batch else 0
            has_holes = int(self.lengths.sum()) != total
        row = torch.arange(total, device=starts.device)
        # The number of the row a value is in, from 1 on; 0 before the first.
        n = torch.searchsorted(starts, row, right=True)
        step = row - F.pad(starts, (1, 0))[n]
        self.place = step * self.batch + n - 1
        # What belongs to no row goes to one place more.
        self.spare = int(has_holes)
        if has_holes:
            is_own = step < F.pad(self.lengths, (1, 0)).to(n.device)[n]
            self.place = torch.where(is_own, self.place, self.steps * self.batch)

    def padded(self, values: Tensor) -> Tensor:
        """Return ``values`` as ``[T, N, ...]``, zero past the length of a row."""
        count, rest = self.steps * self.batch, values.shape[1:]
        flat = values.new_zeros(count + self.spare, *rest).index_copy_(0, self.place, values)
        return flat[:count].view(self.steps, self.batch, *rest)

    def jagged(self, t: Tensor) -> Tensor:
        """Return ``t``, ``[T, N, ...]``, as a tensor of the same ragged dimension as the given one."""
        flat = t.flatten(0, 1)
        if self.spare:
            flat = F.pad(flat, (0, 0, 0, 1))
        return torch.nested.nested_tensor_from_jagged(
            # index_select would add the rows up one by one in its backward.
            flat[self.place],
            self.tensor.offsets(),
            self.tensor.lengths(),
            # Not min_seqlen too: a graph would serve only one.
            max_seqlen=self.steps,
        )


def _check_rows(name: str, starts: Tensor, lengths: Tensor, total: int) -> None:
    """Raise if rows overlap or are not there: torch does not look at offsets."""
    ends = starts + lengths
    if (lengths < 0).any() or (starts < F.pad(ends, (1, 0))[:-1]).any() or (ends > total).any():
        raise RuntimeError(
            f"the rows of a nested {name} must lie one after the other within its {total} values,"
            f" got starts {starts.tolist()} and lengths {lengths.tolist()}"
        )


def _padded_reset(reset: Tensor, rows: _Rows) -> Tensor:
    if not is_nested(reset):
        kind = f"shape {list(reset.shape)}" if isinstance(reset, Tensor) else type(reset).__name__
        raise TypeError(f"reset must be a nested tensor, as the input is, got {kind}")
    if reset.dtype != torch.bool:
        raise TypeError(f"reset must have dtype torch.bool, got {reset.dtype}")
    refuse_strided("reset", reset)
    own = _Rows("reset", reset)
    if not torch.compiler.is_compiling() and not torch.equal(own.lengths, rows.lengths):
        raise RuntimeError(
            f"reset must have rows of lengths {rows.lengths.tolist()}, got {own.lengths.tolist()}"
        )
    return own.padded(own.values)
