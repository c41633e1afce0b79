"""What ``torch.fx.symbolic_trace`` records of a module's call.

Its tracers enter every module that is not torch.nn's, so these record themselves when they are given
a Proxy: as a call of the module where that says it all, else as a call of the function that does the
same, with the weights among its arguments.
"""

from collections.abc import Callable

from torch import nn
from torch.fx import Proxy, Tracer
from torch.fx._symbolic_trace import is_fx_symbolic_tracing
from torch.nn.modules import module as torch_module

__all__ = ["is_fx_symbolic_tracing", "record"]

_PACKAGE = "fastlstm"  # of the modules, whose globals say so


def record(
    module: nn.Module, function: Callable[..., Proxy], args: tuple, options: dict
) -> Proxy | None:
    """Record the call ``module(*args, **options)`` if a tracer looks on, else return None.

    Args:
        function: does the same with operations that are recorded, given the same arguments.
        options: those that are None or False, as they are by default, are left out.
    """
    tracer = _tracer_of(args, options)
    if tracer is None:
        return None
    args = args if args[-1] is not None else args[:-1]
    options = {k: v for k, v in options.items() if v is not None and v is not False}
    path = tracer.path_of_module(module)
    if not path or not _is_all_there_is(module):
        return function(*args, **options)
    return tracer.create_proxy("call_module", path, args, options)


def _is_all_there_is(module: nn.Module) -> bool:
    """Whether the call of ``module`` does what its class here does, and nothing else.

    Hooks, and the forward of a subclass, have been traced on the way to here: to call the module
    would do what they do a second time. The module that is traced itself is no part of its graph.
    """
    hooks = (
        module._forward_pre_hooks,
        module._forward_hooks,
        torch_module._global_forward_pre_hooks,
        torch_module._global_forward_hooks,
    )
    names = getattr(module.forward, "__globals__", {})
    return not any(hooks) and names.get("__package__") == _PACKAGE


def _tracer_of(*values: object) -> Tracer | None:
    """The tracer of a Proxy among ``values``, or in a tuple, list or dict among them."""
    for value in values:
        if isinstance(value, Proxy):
            return value.tracer
        if isinstance(value, dict):
            value = tuple(value.values())
        if isinstance(value, (tuple, list)):
            tracer = _tracer_of(*value)
            if tracer is not None:
                return tracer
    return None
