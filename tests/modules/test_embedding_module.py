"""``embedding=`` given the ``nn.Embedding`` itself: what comes out is that of its vectors as input."""

from collections.abc import Callable

import pytest
import torch
from error_rule import assert_errors_within, assert_same
from helpers import (
    TORCH_MODES,
    Case,
    Values,
    cases,
    modes,
    ours,
    solve,
    stacked,
    theirs,
    wide,
    with_tokens,
)
from module_pairs import build
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.utils import parametrizations, parametrize, prune
from torch.nn.utils.rnn import pack_sequence

import fastlstm

SMALL, LARGE = 5, 200  # a table of fewer rows than there are tokens, and of more
tables = pytest.mark.parametrize("V", [SMALL, LARGE])
OPTIONS = {
    "plain": {},
    "padding_idx": {"padding_idx": 1},
    "max_norm": {"max_norm": 0.7},
    "scale_grad_by_freq": {"scale_grad_by_freq": True},
    "all": {"padding_idx": -1, "max_norm": 0.7, "norm_type": 1.0, "scale_grad_by_freq": True},
}


def module_of(table: Tensor, **options) -> nn.Embedding:
    """An nn.Embedding whose weight is ``table`` itself, so that gradients arrive there."""
    module = nn.Embedding(*table.shape, device="meta", **options)
    del module.weight
    module.weight = table
    return module


def ours_on_module(options: dict) -> Callable[[Case, Values], Values]:
    return lambda case, v: ours(case, v | {"embedding": module_of(v["embedding"], **options)})


def theirs_on_vectors(options: dict) -> Callable[[Case, Values], Values]:
    return lambda case, v: theirs(case, v | {"x": module_of(v["embedding"], **options)(v["x"])})


def cloned(values: Values) -> Values:
    return {name: v.clone() for name, v in values.items()}


def model(kind: str = "LSTM", V: int = SMALL, **options) -> nn.Module:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(V, 4, **options)
            self.rnn = build(fastlstm, kind, 4, 6)

        def forward(self, tokens: Tensor, lengths: Tensor | None = None) -> Tensor:
            return self.rnn(tokens, embedding=self.table, lengths=lengths)[0]

    return Model()


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@tables
@cases(
    Case(6, 3, 4, 17),
    Case(6, 3, 4, 17, layers=2, bidirectional=True, batch_first=True),
    Case(6, 4, 4, 17, lengths=(6, 3, 3, 1), packed=True),
    modes=TORCH_MODES,
)
def test_values_and_gradients_of_a_module(case: Case, V: int, options: dict) -> None:
    mine, base, true = [], [], []
    for seed in range(8):
        values = with_tokens(case, case.problem(torch.float32, seed), SMALL)
        values["embedding"] = torch.randn(V, 4)
        cotangents = case.cotangents(torch.float32, seed)
        mine.append(solve(ours_on_module(options), case, cloned(values), cotangents))
        base.append(solve(theirs_on_vectors(options), case, cloned(values), cotangents))
        true.append(solve(theirs_on_vectors(options), case, wide(values), wide(cotangents)))
    assert_errors_within(*map(stacked, (mine, base, true)))


@tables
@cases(
    Case(6, 4, 4, 17, bidirectional=True),
    Case(6, 4, 4, 17, batch_first=True, lengths=(2, 6, 0, 1)),
    Case(6, 4, 4, 17, lengths=(6, 3, 3, 1), packed=True),
    modes=TORCH_MODES,
)
@pytest.mark.parametrize("padding_idx", [None, 0, 3])
def test_same_bits_as_with_the_bare_weight(case: Case, V: int, padding_idx: int | None) -> None:
    values = with_tokens(case, case.problem(torch.float32), SMALL)
    values["embedding"] = torch.randn(V, 4)
    cotangents = case.cotangents(torch.float32)
    expected = solve(ours, case, values, cotangents)
    if padding_idx is not None:
        expected["grad embedding"][padding_idx] = 0
    found = solve(ours_on_module({"padding_idx": padding_idx}), case, values, cotangents)
    assert_same(found, expected)


@tables
@pytest.mark.parametrize("options", ["padding_idx", "all"])
def test_the_row_of_padding_has_no_gradient_whatever_comes_in(V: int, options: str) -> None:
    m = model(V=V, **OPTIONS[options])
    tokens = torch.full((3, 2), m.table.padding_idx)
    for seed in (1.0, float("nan")):
        (found,) = torch.autograd.grad(m(tokens) * seed, m.table.weight, torch.ones(3, 2, 6))
        assert torch.equal(found[m.table.padding_idx], torch.zeros(4))


@modes
@tables
def test_padding_under_transforms(mode: str, V: int) -> None:
    """Second derivatives, and gradients of each sample."""
    m = model(mode, V, padding_idx=1).double()
    tokens = torch.tensor([[1, 2, 0], [4, 1, 1], [3, 3, 2]])
    parameters = dict(m.named_parameters())

    def loss(p: dict[str, Tensor], tokens: Tensor) -> Tensor:
        return functional_call(m, p, (tokens,)).sin().sum()

    def on_vectors(p: dict[str, Tensor], tokens: Tensor) -> Tensor:
        vectors = torch.nn.functional.embedding(tokens, p["table.weight"], 1)
        own = {n[4:]: v for n, v in p.items() if n.startswith("rnn.")}
        return functional_call(m.rnn, own, (vectors,))[0].sin().sum()

    torch.testing.assert_close(grad(loss)(parameters, tokens), grad(on_vectors)(parameters, tokens))
    samples = tokens.t().unsqueeze(2)
    found = vmap(grad(loss), (None, 0))(parameters, samples)
    torch.testing.assert_close(found, vmap(grad(on_vectors), (None, 0))(parameters, samples))
    assert (found["table.weight"][:, 1] == 0).all()

    def second(of: Callable) -> tuple[Tensor, ...]:
        first = torch.autograd.grad(of(parameters, tokens), m.parameters(), create_graph=True)
        assert (first[0][1] == 0).all()
        return torch.autograd.grad(sum(g.cos().sum() for g in first), m.parameters())

    found = second(loss)
    torch.testing.assert_close(found, second(on_vectors))
    assert (found[0][1] == 0).all()


@tables
def test_max_norm_changes_the_rows_that_are_looked_up(V: int) -> None:
    m = model(V=V, max_norm=0.5)
    before = m.table.weight.detach().clone()
    tokens = torch.tensor([[0, 3], [3, 2]])
    expected = nn.Embedding.from_pretrained(before.clone(), max_norm=0.5)
    expected(tokens)
    # More than one forward before a backward, which torch.nn.Embedding allows.
    loss = m(tokens).sum() + m(tokens).sum()
    loss.backward()
    assert torch.equal(m.table.weight, expected.weight)
    assert torch.equal(m.table.weight[[1, 4]], before[[1, 4]])
    assert not torch.equal(m.table.weight[[0, 2, 3]], before[[0, 2, 3]])


@tables
def test_sparse_gradient(V: int) -> None:
    tokens = torch.randint(SMALL, (4, 3))
    m = model(V=V, sparse=True)
    m(tokens).sum().backward()
    found = m.table.weight.grad
    assert found.is_sparse and found._nnz() == tokens.numel()
    m.table.sparse, m.table.weight.grad = False, None
    m(tokens).sum().backward()
    torch.testing.assert_close(found.to_dense(), m.table.weight.grad)


@tables
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("filler", [-100, 2])
def test_whatever_pads_a_row_is_padding(V: int, options: dict, filler: int) -> None:
    """It is not looked up: it counts for no frequency, and is not renormalised."""
    options = {"padding_idx": 1} | options
    lengths = torch.tensor([4, 0, 2])
    past = torch.arange(4)[:, None] >= lengths
    tokens = torch.randint(SMALL, (4, 3)).masked_fill(past, options["padding_idx"] % V)
    m = model(V=V, **options)
    before = {n: v.clone() for n, v in m.state_dict().items()}

    def gradients(forward: Callable[[], Tensor]) -> tuple[Tensor, ...]:
        m.load_state_dict(before)
        output = forward()
        grads = torch.autograd.grad(output.sin().sum(), list(m.parameters()))
        return output, m.table.weight.clone(), *grads

    expected = gradients(lambda: m.rnn(m.table(tokens), lengths=lengths)[0])
    found = gradients(lambda: m(tokens.masked_fill(past, filler), lengths))
    torch.testing.assert_close(found, expected)
    assert torch.equal(found[1], expected[1])


@pytest.mark.parametrize(
    "options", [{"max_norm": 1.0}, {"scale_grad_by_freq": True}, {"sparse": True}], ids=str
)
def test_no_token_for_the_padding(options: dict) -> None:
    m = model(**options)
    name = next(iter(options))
    with pytest.raises(ValueError, match=rf"embedding with {name}=.*padding_idx.*got None"):
        m(torch.tensor([[0, 1], [1, 2]]), torch.tensor([2, 1]))


class Scaled(nn.Embedding):
    def forward(self, tokens: Tensor) -> Tensor:
        return 2 * super().forward(tokens)


class Timed(nn.Embedding):
    """One whose vectors depend on where in the row a token is: of ``[N, T]``."""

    def forward(self, tokens: Tensor) -> Tensor:
        return super().forward(tokens) + torch.arange(tokens.size(1)).view(-1, 1)


def with_forward(table: nn.Embedding) -> nn.Embedding:
    table.forward = lambda tokens: -nn.functional.embedding(tokens, table.weight)
    return table


def with_hook(kind: str) -> Callable[[nn.Embedding], nn.Embedding]:
    def hooked(table: nn.Embedding) -> nn.Embedding:
        hooks = {
            "forward": lambda module, args, out: 3 * out,
            "forward_pre": lambda module, args: (args[0].flip(0),),
            "full_backward_pre": lambda module, grads: (5 * grads[0],),
        }
        getattr(table, f"register_{kind}_hook")(hooks[kind])
        return table

    return hooked


class Doubled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


def parametrized(table: nn.Embedding) -> nn.Embedding:
    parametrize.register_parametrization(table, "weight", Doubled())
    return table


KINDS_OF_MODULES: dict[str, Callable[[int], nn.Embedding]] = {
    "subclass": lambda V: type("Mine", (nn.Embedding,), {})(V, 4),
    "own_forward": lambda V: Scaled(V, 4),
    "own_forward_of_places": lambda V: Timed(V, 4),
    "forward_replaced": lambda V: with_forward(nn.Embedding(V, 4)),
    "forward_hook": lambda V: with_hook("forward")(nn.Embedding(V, 4)),
    "forward_pre_hook": lambda V: with_hook("forward_pre")(nn.Embedding(V, 4)),
    "backward_pre_hook": lambda V: with_hook("full_backward_pre")(nn.Embedding(V, 4)),
    "parametrized": lambda V: parametrized(nn.Embedding(V, 4, padding_idx=2)),
    "weight_norm": lambda V: parametrizations.weight_norm(nn.Embedding(V, 4)),
    "pruned": lambda V: prune.l1_unstructured(nn.Embedding(V, 4), "weight", amount=0.4),
    "frozen": lambda V: nn.Embedding.from_pretrained(torch.randn(V, 4), padding_idx=1),
    "bfloat16": lambda V: nn.Embedding(V, 4, dtype=torch.bfloat16),
}


@pytest.mark.filterwarnings("ignore:Full backward hook is firing:UserWarning")
@tables
@pytest.mark.parametrize("kind", KINDS_OF_MODULES)
def test_kinds_of_modules(kind: str, V: int) -> None:
    table = KINDS_OF_MODULES[kind](V)
    rnn = fastlstm.GRU(4, 6, 2, batch_first=True, dtype=table.weight.dtype)
    tokens = torch.randint(SMALL, (3, 7))
    wanted = [p for p in (*rnn.parameters(), *table.parameters()) if p.requires_grad]
    results = []
    for output, h_n in (rnn(tokens, embedding=table), rnn(table(tokens))):
        loss = output.sin().sum() + h_n.cos().sum()
        results.append((output, h_n, *torch.autograd.grad(loss, wanted)))
    rtol, atol = (0.02, 0.02) if kind == "bfloat16" else (1e-5, 1e-5)
    torch.testing.assert_close(*results, rtol=rtol, atol=atol)
    assert torch.equal(results[0][0], results[1][0])


def test_a_hook_for_all_modules() -> None:
    m, seen = model(), []
    handle = nn.modules.module.register_module_forward_hook(
        lambda module, args, out: seen.append(module)
    )
    try:
        m(torch.zeros(3, 2, dtype=torch.int64))
    finally:
        handle.remove()
    assert m.table in seen


@tables
def test_packed_and_unbatched_tokens_and_states_of_every_step(V: int) -> None:
    m = model(V=V, padding_idx=2)
    rows = [torch.randint(SMALL, (n,)) for n in (5, 3, 3)]
    packed = pack_sequence(rows)
    output, _, states = m.rnn(packed, embedding=m.table, return_states=True)
    expected = m.rnn(packed._replace(data=m.table(packed.data)))[0]
    assert torch.equal(output.data, expected.data) and states.h[0].data is output.data
    assert torch.equal(m(rows[0]), m.rnn(m.table(rows[0]))[0])


@tables
def test_under_autocast(V: int) -> None:
    m, tokens = model(V=V, padding_idx=2, max_norm=1.0), torch.randint(SMALL, (4, 3))
    with torch.autocast("cpu", torch.bfloat16):
        found, expected = m(tokens), m.rnn(m.table(tokens))[0]
    assert found.dtype == torch.bfloat16 and torch.equal(found, expected)


NOT_AN_EMBEDDING = {
    "EmbeddingBag": lambda: nn.EmbeddingBag(5, 4),
    "Linear": lambda: nn.Linear(4, 4),
    "ndarray": lambda: torch.randn(5, 4).numpy(),
    "list": lambda: [[1.0] * 4] * 5,
    "type": lambda: nn.Embedding,
}


@pytest.mark.parametrize("kind", NOT_AN_EMBEDDING)
def test_something_else(kind: str) -> None:
    lstm, tokens, wrong = fastlstm.LSTM(4, 6), torch.zeros(3, 2).long(), NOT_AN_EMBEDDING[kind]()
    expected = f"embedding must be a Tensor or nn.Embedding, got {kind}$"
    with pytest.raises(TypeError, match=expected):
        lstm(tokens, embedding=wrong)
    with pytest.raises(TypeError, match=expected):
        fastlstm.functional.lstm(tokens, None, [tuple(lstm.parameters())], embedding=wrong)


@pytest.mark.parametrize("options", [{}, {"max_norm": 1.0, "padding_idx": 0}], ids=str)
@pytest.mark.parametrize(
    ("made", "error", "message"),
    [
        ({"embedding_dim": 3}, RuntimeError, r"embedding must \w+ shape \[.*4\], got \[.*3\]"),
        ({"dtype": torch.float64}, RuntimeError, "embedding must have dtype .*32, got .*64"),
        ({"device": "meta"}, RuntimeError, "embedding must be on device cpu, got meta"),
    ],
    ids=["width", "dtype", "device"],
)
def test_a_module_that_does_not_fit(made, error, message: str, options: dict) -> None:
    table = nn.Embedding(**{"num_embeddings": 5, "embedding_dim": 4} | made | options)
    with pytest.raises(error, match=message):
        fastlstm.GRU(4, 6)(torch.zeros(3, 2).long(), embedding=table)


def test_a_module_goes_with_tokens_only() -> None:
    for options in ({}, {"max_norm": 1.0}):
        with pytest.raises(TypeError, match="embedding goes with integer input"):
            model(**options)(torch.randn(3, 2, 4))


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@tables
@pytest.mark.parametrize("bad", [-1, LARGE])
def test_a_token_that_the_module_does_not_have(bad: int, V: int, options: dict) -> None:
    with pytest.raises(IndexError, match=rf"(?s)input.*{bad}"):
        model(V=V, **options)(torch.full((3, 2), bad))


def test_converted_and_patched_models() -> None:
    tokens, table = torch.randint(SMALL, (4, 3)), nn.Embedding(SMALL, 4, padding_idx=1)
    converted = fastlstm.convert(nn.LSTM(4, 6))
    with fastlstm.patch_torch():
        patched = nn.LSTM(4, 6)
    patched.load_state_dict(converted.state_dict())
    output = converted(tokens, embedding=table)[0]
    assert torch.equal(output, patched(tokens, embedding=table)[0])
    assert torch.equal(output, converted(table(tokens))[0])
