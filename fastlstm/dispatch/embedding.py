"""What ``embedding=`` may be: a table, or the :class:`torch.nn.Embedding` that holds it."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook


def opened(embedding: Tensor | nn.Embedding) -> tuple[Tensor | None, nn.Embedding | None]:
    """Return the table, and the module if there is one.

    The table is None where there is more to the module than a table and a ``padding_idx``: then only
    calling it finds the vectors of tokens.

    Raises:
        TypeError: ``embedding`` is something else.
    """
    if isinstance(embedding, Tensor):
        return embedding, None
    if not isinstance(embedding, nn.Embedding):
        raise TypeError(
            f"embedding must be a Tensor or nn.Embedding, got {type(embedding).__name__}"
        )
    is_table = not (
        _option_of(embedding)
        or type(embedding).forward is not nn.Embedding.forward
        or "forward" in embedding.__dict__
        or embedding._forward_pre_hooks
        or embedding._forward_hooks
        or embedding._backward_pre_hooks
        or embedding._backward_hooks
        or _has_any_global_hook()
    )
    # Through the module: a parametrization computes the weight when it is read.
    return embedding.weight if is_table else None, embedding


def _option_of(module: nn.Embedding) -> str | None:
    """The name of an option by which looking a row up does something to it or to its gradient."""
    if module.max_norm is not None:
        return f"max_norm={module.max_norm}"
    if module.scale_grad_by_freq:
        return "scale_grad_by_freq=True"
    return "sparse=True" if module.sparse else None


def filler_of(module: nn.Embedding | None) -> int:
    """Return the token that stands past the length of a row."""
    if module is None:
        return 0
    if module.padding_idx is not None:
        return module.padding_idx
    option = _option_of(module)
    if option is not None:
        raise ValueError(
            f"embedding with {option} needs a padding_idx, which is looked up past the length of a"
            " row, got None: give it one, or the vectors themselves: input=embedding(input)"
        )
    return 0


def looked_up(
    tokens: Tensor, table: Tensor | None, module: nn.Embedding | None, width: int, layout
) -> Tensor:
    """Return the vectors ``[T, N, width]`` of ``tokens``.

    Args:
        layout: what undoes and does the change from the caller's layout, which a module that is
            called may know of.
    """
    if table is None:
        x = layout.enter(called(module, layout.leave(tokens)))
        if x.shape != (*tokens.shape, width):
            raise RuntimeError(
                f"embedding must return shape {[*tokens.shape, width]}, got {list(x.shape)}"
            )
        return x
    try:
        return F.embedding(tokens, table, None if module is None else module.padding_idx)
    except IndexError as error:
        raise _no_such_token(error, tokens, table.size(0)) from None


def called(module: nn.Embedding, tokens: Tensor) -> Tensor:
    """Return what ``module`` returns."""
    try:
        return module(tokens)
    except IndexError as error:
        raise _no_such_token(error, tokens, module.num_embeddings) from None


def _no_such_token(error: IndexError, tokens: Tensor, size: int) -> IndexError:
    bad = tokens[(tokens < 0) | (tokens >= size)]
    if not len(bad):
        return error
    return IndexError(f"input must hold token ids in [0, {size}), got {bad[0].item()}")


def without_gradient_of_padding(table: Tensor, module: nn.Embedding | None) -> Tensor:
    """Return ``table`` with a row ``padding_idx`` that no gradient goes to."""
    row = None if module is None else module.padding_idx
    if row is None or not (table.requires_grad and torch.is_grad_enabled()):
        return table
    return torch.select_scatter(table, table[row].detach(), 0, row)
