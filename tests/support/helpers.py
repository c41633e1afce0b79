"""What the tests share: problems, and who solves them: fastlstm, torch.nn, and an oracle."""

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from types import ModuleType

import pytest
import torch
from cell_kinds import GATES, MODES, TORCH_MODES, has_c
from oracle import long_double_oracle
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

import fastlstm
from fastlstm import reference
from fastlstm.dispatch.stack import run_stack
from fastlstm.reference import CallOptions

OUTPUTS = ("output", "h_n", "c_n")  # of an LSTM; the other modes have no c_n
Values = dict[str, Tensor]


@dataclass(frozen=True)
class Case:
    """The sizes and options of one problem."""

    T: int
    N: int
    I: int  # noqa: E741
    H: int
    layers: int = 1
    bidirectional: bool = False
    bias: bool = True
    state: bool = True
    batch_first: bool = False
    scale: float = 1.0
    mode: str = "LSTM"
    proj_size: int = 0
    lengths: tuple[int, ...] | None = None  # one a row
    packed: bool = False  # x and output are the data of a PackedSequence of rows of these lengths
    reset: float = 0.0  # probability that a new sequence begins at a step

    def __str__(self) -> str:
        words = [] if self.mode == "LSTM" else [self.mode]
        words += [f"T{self.T}-N{self.N}-I{self.I}-H{self.H}"]
        words += [f"P{self.proj_size}"] if self.proj_size else []
        words += [f"layers{self.layers}"] if self.layers > 1 else []
        words += ["bidirectional"] if self.bidirectional else []
        words += [] if self.bias else ["nobias"]
        words += [] if self.state else ["nostate"]
        words += ["batch_first"] if self.batch_first else []
        words += [f"scale{self.scale:g}"] if self.scale != 1.0 else []
        if self.lengths is not None:
            words += ["packed" if self.packed else "lengths"]
            words += [",".join(map(str, self.lengths))] if self.N < 8 else []
        words += [f"reset{self.reset:g}"] if self.reset else []
        return "-".join(words)

    @property
    def directions(self) -> int:
        return 2 if self.bidirectional else 1

    @property
    def P(self) -> int:
        """Width of h."""
        return self.proj_size or self.H

    @property
    def outputs(self) -> tuple[str, ...]:
        return OUTPUTS if has_c(self.mode) else OUTPUTS[:2]

    @property
    def state_names(self) -> list[str]:
        return [] if not self.state else ["h0", "c0"] if has_c(self.mode) else ["h0"]

    @property
    def weight_names(self) -> list[str]:
        kinds = ["w_ih", "w_hh"] + (["b_ih", "b_hh"] if self.bias else [])
        kinds += ["w_hr"] if self.proj_size else []
        return [f"{kind}_{k}" for k in range(self.layers * self.directions) for kind in kinds]

    @property
    def size(self) -> tuple[int, ...]:
        """The dimensions of x and output but the last."""
        if self.packed:
            return (sum(self.lengths),)
        return (self.N, self.T) if self.batch_first else (self.T, self.N)

    @property
    def padding(self) -> Tensor:
        """Which steps of x are past the end of their row: True there, in the layout of x."""
        assert self.lengths is not None and not self.packed
        padding = torch.arange(self.T)[:, None] >= torch.tensor(self.lengths)
        return padding.t() if self.batch_first else padding

    def problem(self, dtype: torch.dtype, seed: int = 0) -> Values:
        """Random values for every input, of the size that torch.nn starts with."""
        g = torch.Generator().manual_seed(seed)
        bound = self.H**-0.5

        def weight(*shape: int) -> Tensor:
            return torch.empty(shape, dtype=torch.float64).uniform_(-bound, bound, generator=g)

        def normal(*shape: int) -> Tensor:
            return self.scale * torch.randn(shape, dtype=torch.float64, generator=g)

        values = {"x": normal(*self.size, self.I)}
        for name in self.state_names:
            width = self.P if name == "h0" else self.H
            values[name] = normal(self.layers * self.directions, self.N, width)
        rows = GATES[self.mode] * self.H
        for name in self.weight_names:
            kind, k = name[:4], int(name[5:])
            below = self.I if k < self.directions else self.directions * self.P
            shapes = {"w_ih": (rows, below), "w_hh": (rows, self.P), "w_hr": (self.P, self.H)}
            values[name] = weight(*shapes.get(kind, (rows,)))
        values = {name: v.to(dtype) for name, v in values.items()}
        if self.packed:
            lengths = torch.tensor(self.lengths)
            values["batch_sizes"] = (lengths > torch.arange(self.T)[:, None]).sum(1)
        elif self.lengths is not None:
            values["lengths"] = torch.tensor(self.lengths)
        if self.reset:
            values["reset"] = torch.rand(self.size, generator=g) < self.reset
        return values

    def cotangents(self, dtype: torch.dtype, seed: int = 0) -> Values:
        g = torch.Generator().manual_seed(seed + 12345)
        state = (self.layers * self.directions, self.N)
        shapes = {"output": (*self.size, self.directions * self.P)}
        shapes |= {"h_n": (*state, self.P), "c_n": (*state, self.H)}
        return {name: torch.randn(shapes[name], generator=g).to(dtype) for name in self.outputs}

    def weights(self, values: Values) -> list[tuple[Tensor, ...]]:
        """The weights grouped by layer and direction, as fastlstm.functional.lstm takes them."""
        names = self.weight_names
        step = len(names) // (self.layers * self.directions)
        return [
            tuple(values[name] for name in names[k : k + step]) for k in range(0, len(names), step)
        ]


def with_tokens(
    case: Case, values: Values, vocabulary: int, dtype: torch.dtype = torch.int64
) -> Values:
    """``values`` with token ids for x."""
    tokens = torch.randint(vocabulary, case.size).to(dtype)
    # Both ends of the range, and a token that occurs more than once.
    tokens.view(-1)[:3] = torch.tensor([0, vocabulary - 1, 0])
    return values | {"x": tokens}


def cases(*rows: Case, modes: Iterable[str] = ()) -> pytest.MarkDecorator:
    """Parametrise ``case``; with ``modes``, each of ``rows`` in each of them."""
    rows = tuple(replace(row, mode=mode) for mode in modes for row in rows) or rows
    return pytest.mark.parametrize("case", rows, ids=str)


dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["f32", "f64"])
modes = pytest.mark.parametrize("mode", MODES)
torch_modes = pytest.mark.parametrize("mode", TORCH_MODES)  # of modules, and of torch.nn's

Solver = Callable[[Case, Values], Values]


def ours(case: Case, values: Values) -> Values:
    return named(case, call(fastlstm.functional, case, values))


def plain(case: Case, values: Values) -> Values:
    """The reference loop in the dtype of ``values``."""
    return named(case, call(reference, case, values))


def call(module: ModuleType, case: Case, values: Values, **options):
    """Call lstm, gru or rnn of ``module``, which is fastlstm.functional or fastlstm.reference."""
    function = {"LSTM": module.lstm, "GRU": module.gru}.get(case.mode, module.rnn)
    if case.mode not in TORCH_MODES:
        function = partial(_call_unnamed, module, case.mode)
    elif function is module.rnn:
        options["nonlinearity"] = case.mode[4:].lower()
    for name in ("embedding", "lengths", "reset", "batch_sizes"):
        if name in values:
            options[name] = values[name]
    hx = values.get("h0")
    if has_c(case.mode) and hx is not None:
        hx = (hx, values["c0"])
    return function(
        values["x"],
        hx,
        case.weights(values),
        batch_first=case.batch_first,
        bidirectional=case.bidirectional,
        **options,
    )


def _call_unnamed(module: ModuleType, mode: str, input, hx, weights, **given):
    """What the functions of ``module`` call, for a cell that has none of its own."""
    options = inspect.signature(module.gru).parameters.values()
    defaults = {p.name: p.default for p in options if p.kind is p.KEYWORD_ONLY}
    run = reference._stack if module is reference else run_stack
    results = run(mode, input, hx, weights, CallOptions(**(defaults | given)))
    return tuple(r for r in results if r is not None)


def named(case: Case, results: tuple) -> Values:
    """The results of ``call`` by name, those of every step as ``h0`` ... and ``c0`` ..., by layer."""
    output, hidden, *states = results
    hidden = hidden if has_c(case.mode) else (hidden,)
    values = dict(zip(case.outputs, (output, *hidden), strict=True))
    for field in states[0]._fields if states else ():
        values |= {f"{field}{k}": s for k, s in enumerate(getattr(states[0], field))}
    return values


def theirs(case: Case, values: Values) -> Values:
    """What torch.nn calls; rows of different lengths packed, and each result back in its place.

    The reference loop for a cell that torch.nn does not have.
    """
    if case.mode not in TORCH_MODES:
        return plain(case, values)
    if "reset" in values:
        raise ValueError("torch.nn has no reset; the baseline is `plain`")
    if "lengths" in values:
        return _theirs_packed(case, values)
    x = values["x"]
    batch = case.N if case.packed else x.size(0 if case.batch_first else 1)
    states = case.layers * case.directions
    hx = [
        values.get("h0", x.new_zeros(states, batch, case.P)),
        values.get("c0", x.new_zeros(states, batch, case.H)),
    ]
    function = getattr(torch, case.mode.lower())
    flat = [values[name] for name in case.weight_names]
    sizes = (values["batch_sizes"],) if "batch_sizes" in values else ()
    layout = () if sizes else (case.batch_first,)
    results = function(
        x, *sizes, hx if has_c(case.mode) else hx[0],
        flat, case.bias, case.layers, 0.0, True, case.bidirectional, *layout,
    )  # fmt: skip
    return dict(zip(case.outputs, results, strict=True))


def _theirs_packed(case: Case, values: Values) -> Values:
    # A PackedSequence has no rows of length 0: these are left out, and their state is unchanged.
    lengths = values["lengths"]
    rows = torch.argsort(lengths, descending=True, stable=True)
    rows = rows[lengths[rows] > 0]
    x = values["x"].transpose(0, 1) if case.batch_first else values["x"]
    states = case.layers * case.directions
    hx = {
        "h0": values.get("h0", x.new_zeros(states, case.N, case.P)),
        "c0": values.get("c0", x.new_zeros(states, case.N, case.H)),
    }
    data, batch_sizes, *_ = pack_padded_sequence(x[:, rows], lengths[rows])
    inner = {n: v for n, v in values.items() if n != "lengths"}
    inner |= {"x": data, "batch_sizes": batch_sizes} | {n: v[:, rows] for n, v in hx.items()}
    found = theirs(replace(case, packed=True, batch_first=False, N=len(rows)), inner)
    rows = rows.to(x.device)  # lengths are on the CPU, whatever the device
    output, _ = pad_packed_sequence(
        PackedSequence(found["output"], batch_sizes), total_length=case.T
    )
    output = x.new_zeros(case.T, case.N, output.size(2)).index_copy(1, rows, output)
    results = {"output": output.transpose(0, 1) if case.batch_first else output}
    for name in case.outputs[1:]:
        results[name] = hx[f"{name[0]}0"].index_copy(1, rows, found[name])
    return results


def solve(
    solver: Solver,
    case: Case,
    values: Values,
    cotangents: Values | None,
    wanted: Iterable[str] | None = None,
) -> Values:
    """Return the outputs and, as ``"grad x"`` ..., the gradients of ``wanted`` (default: all)."""
    wanted = [n for n, v in values.items() if v.is_floating_point()] if wanted is None else wanted
    if cotangents is None:
        with torch.no_grad():
            return solver(case, values)
    leaves = {n: v.detach().requires_grad_(n in wanted) for n, v in values.items()}
    results = solver(case, leaves)
    grads = torch.autograd.grad(
        [results[name] for name in cotangents],
        [leaves[name] for name in wanted],
        list(cotangents.values()),
        materialize_grads=True,
    )
    results = {name: r.detach() for name, r in results.items()}
    return results | {f"grad {name}": g for name, g in zip(wanted, grads, strict=True)}


def wide(named: Values) -> Values:
    """Floating-point tensors in float64, others as they are."""
    return {n: v.double() if v.is_floating_point() else v for n, v in named.items()}


def oracle(case: Case, values: Values, cotangents: Values | None) -> Values:
    """The same problem solved in float64, or in long double where it is given in float64."""
    if values["w_ih_0"].dtype == torch.float64:
        return long_double_oracle(case, values, cotangents)
    return solve(plain, case, wide(values), cotangents and wide(cotangents))


def stacked(results: list[Values]) -> Values:
    return {name: torch.stack([each[name] for each in results]) for name in results[0]}


def oracles(case: Case, problems: list[tuple[Values, Values | None]]) -> Values:
    """``oracle`` of several problems of one case, the results of each name stacked."""
    values, cotangents = problems[0]
    if values["w_ih_0"].dtype == torch.float64 or cotangents is None:
        return stacked([oracle(case, *problem) for problem in problems])
    # All at once, which saves most of the time of many small problems.
    shared = {n: values[n] for n in ("lengths", "batch_sizes") if n in values}

    def one(own: Values, cotangents: Values) -> Values:
        leaves = {n: v for n, v in own.items() if v.is_floating_point()}
        results, pull_back = torch.func.vjp(lambda v: plain(case, shared | own | v), leaves)
        (grads,) = pull_back(
            {
                n: cotangents[n] if n in cotangents else torch.zeros_like(r)
                for n, r in results.items()
            }
        )
        return results | {f"grad {name}": g for name, g in grads.items()}

    own = [{n: v for n, v in wide(values).items() if n not in shared} for values, _ in problems]
    return torch.vmap(one)(stacked(own), stacked([wide(g) for _, g in problems]))
