"""Models as other people write them: torch.nn's names, and every habit a drop-in has to survive.

Nothing here knows of fastlstm. Each builder returns a model and a function that computes its loss,
so that the model can be built, converted or patched by whoever uses it.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

Loss = Callable[[nn.Module], Tensor]


def randn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def randint(high: int, *shape: int) -> Tensor:
    return torch.randint(high, shape, generator=torch.Generator().manual_seed(4))


class AttentionSeq2Seq(nn.Module):
    """Bidirectional encoder over packed sentences, one cell a step with additive attention."""

    def __init__(self) -> None:
        super().__init__()
        self.source, self.target = nn.Embedding(11, 6), nn.Embedding(9, 6)
        self.encoder = nn.GRU(6, 5, num_layers=2, batch_first=True, bidirectional=True, dropout=0.2)
        self.bridge = nn.Linear(10, 8)
        self.cell = nn.LSTMCell(6 + 10, 8)
        self.query, self.key, self.score = nn.Linear(8, 7), nn.Linear(10, 7), nn.Linear(7, 1)
        self.out = nn.Linear(8 + 10, 9)

    def forward(self, source: Tensor, lengths: Tensor, target: Tensor) -> Tensor:
        packed = pack_padded_sequence(
            self.source(source), lengths, batch_first=True, enforce_sorted=False
        )
        packed, last = self.encoder(packed)
        memory, _ = pad_packed_sequence(packed, batch_first=True)
        mask = torch.arange(memory.size(1)) >= lengths.unsqueeze(1)
        h = torch.tanh(self.bridge(torch.cat([last[-2], last[-1]], dim=-1)))
        c = torch.zeros_like(h)
        context, logits = memory.mean(1), []
        for word in self.target(target).unbind(1):
            h, c = self.cell(torch.cat([word, context], dim=-1), (h, c))
            scores = self.score(torch.tanh(self.query(h).unsqueeze(1) + self.key(memory)))
            weights = scores.squeeze(-1).masked_fill(mask, -torch.inf).softmax(-1)
            context = torch.einsum("nt,ntd->nd", weights, memory)
            logits.append(self.out(torch.cat([h, context], dim=-1)))
        return torch.stack(logits, dim=1)


def attention_seq2seq() -> tuple[nn.Module, Loss]:
    source, target = randint(11, 4, 7), randint(9, 4, 6)
    lengths = torch.tensor([5, 7, 1, 6])

    def loss(model: nn.Module) -> Tensor:
        logits = model(source, lengths, target[:, :-1])
        return F.cross_entropy(logits.flatten(0, 1), target[:, 1:].flatten())

    return AttentionSeq2Seq(), loss


class Pyramid(nn.Module):
    """A listener for speech: each level joins two frames into one, so that time halves."""

    def __init__(self) -> None:
        super().__init__()
        self.levels = nn.ModuleList(
            nn.LSTM(size, 5, bidirectional=True, batch_first=True, proj_size=3)
            for size in (8, 12, 12)
        )
        self.top = nn.RNN(6, 7, nonlinearity="relu", batch_first=True)
        self.head = nn.Linear(7, 5)
        self.apply(self.initialize)

    @staticmethod
    def initialize(module: nn.Module) -> None:
        for name, parameter in module.named_parameters(recurse=False):
            if name.startswith("weight_hh"):
                nn.init.orthogonal_(parameter)

    def forward(self, frames: Tensor) -> Tensor:
        for level in self.levels:
            level.flatten_parameters()
            frames, _ = level(frames)
            pairs = frames.size(1) // 2
            if level is not self.levels[-1]:
                frames = frames[:, : 2 * pairs].reshape(frames.size(0), pairs, -1)
        return self.head(self.top(frames)[0]).log_softmax(-1)


def pyramid() -> tuple[nn.Module, Loss]:
    frames, labels = randn(3, 22, 8), 1 + randint(4, 3, 3)

    def loss(model: nn.Module) -> Tensor:
        log_probs = model(frames).transpose(0, 1)
        steps = torch.full((3,), log_probs.size(0))
        return F.ctc_loss(log_probs, labels, steps, torch.tensor([2, 3, 1]))

    return Pyramid(), loss


class WeightDrop(nn.Module):
    """AWD-LSTM's wrapper: the recurrent weight deleted, and set anew before every call."""

    def __init__(self, module: nn.Module, dropout: float) -> None:
        super().__init__()
        self.module, self.dropout = module, dropout
        if issubclass(type(module), nn.RNNBase):
            module.flatten_parameters = lambda: None
        raw = module.weight_hh_l0
        del module._parameters["weight_hh_l0"]
        module.register_parameter("weight_hh_l0_raw", nn.Parameter(raw.data))

    def forward(self, *arguments):
        raw = self.module.weight_hh_l0_raw
        self.module.weight_hh_l0 = F.dropout(raw, self.dropout, self.training)
        return self.module.forward(*arguments)


class WordModel(nn.Module):
    """A language model that chooses its recurrence by name, and repackages its state."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.encoder = kind, nn.Embedding(10, 6)
        if kind in ("LSTM", "GRU"):
            self.rnn = getattr(nn, kind)(6, 6, 2, dropout=0.3)
        else:
            nonlinearity = {"RNN_TANH": "tanh", "RNN_RELU": "relu"}[kind]
            self.rnn = nn.RNN(6, 6, 2, nonlinearity=nonlinearity, dropout=0.3)
        self.decoder = nn.Linear(6, 10)
        self.decoder.weight = self.encoder.weight

    def init_hidden(self, batch: int):
        weight = next(self.parameters())
        h = weight.new_zeros(2, batch, 6)
        return (h, weight.new_zeros(2, batch, 6)) if self.kind == "LSTM" else h

    def forward(self, tokens: Tensor, hidden):
        output, hidden = self.rnn(self.encoder(tokens), hidden)
        return self.decoder(output), hidden


def repackage(hidden):
    if isinstance(hidden, Tensor):
        return hidden.detach()
    return tuple(repackage(h) for h in hidden)


def word_model(kind: str) -> tuple[nn.Module, Loss]:
    tokens = randint(10, 13, 4)

    def loss(model: nn.Module) -> Tensor:
        hidden, total = model.init_hidden(4), 0.0
        for begin in (0, 6):
            hidden = repackage(hidden)
            logits, hidden = model(tokens[begin : begin + 6], hidden)
            total = total + F.cross_entropy(
                logits.flatten(0, 1), tokens[begin + 1 : begin + 7].flatten()
            )
        return total

    return WordModel(kind), loss


def weight_drop() -> tuple[nn.Module, Loss]:
    x = randn(6, 3, 5)
    return WeightDrop(nn.LSTM(5, 4), 0.4), lambda model: model(x)[0].square().sum()


class Captioner(nn.Module):
    """Shrinking batches: sorted captions, of which each step takes those that go on."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.start = nn.Embedding(9, 5), nn.Linear(6, 7)
        self.decode_step = nn.LSTMCell(5 + 6, 7, bias=True)
        self.language = nn.LSTMCell(7, 7)
        self.polish = nn.GRUCell(7, 7, bias=False)
        self.last = nn.RNNCell(7, 7, nonlinearity="relu")
        self.core = nn.LSTM(7, 7, 1, bias=False, dropout=0.0)
        self.fc = nn.Linear(7, 9)

    def forward(self, image: Tensor, captions: Tensor, lengths: list[int]) -> Tensor:
        h = c = self.start(image)
        h2, c2 = torch.zeros_like(h), torch.zeros_like(h)
        state, total = None, 0.0
        for t in range(max(lengths) - 1):
            n = sum(length - 1 > t for length in lengths)
            x = torch.cat([self.embedding(captions[:n, t]), image[:n]], dim=1)
            h, c = self.decode_step(x, (h[:n], c[:n]))
            h2, c2 = self.language(h, (h2[:n], c2[:n]))
            state = None if state is None else tuple(s[:, :n] for s in state)
            y, state = self.core(self.last(self.polish(h2)).unsqueeze(0), state)
            total = total + F.cross_entropy(self.fc(y[0]), captions[:n, t + 1], reduction="sum")
        return total


def captioner() -> tuple[nn.Module, Loss]:
    image, captions = randn(3, 6), randint(9, 3, 6)
    return Captioner(), lambda model: model(image, captions, [6, 4, 2])


class RowReader(nn.Module):
    """An image read row by row, and two sentences compared by keyword arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = nn.LSTM(input_size=6, hidden_size=8, num_layers=1, batch_first=True)
        self.words = nn.LSTM(
            input_size=8, hidden_size=4, num_layers=2, dropout=0.1, bidirectional=True
        )
        self.out = nn.Linear(8 + 16, 3)

    def forward(self, image: Tensor) -> Tensor:
        rows, (h_n, _) = self.rows(image, None)
        batch = image.size(0)
        h0 = c0 = rows.new_zeros(4, batch, 4)
        _, (ht, _) = self.words(rows.transpose(0, 1), (h0, c0))
        both = ht.transpose(0, 1).contiguous().view(batch, -1)
        return self.out(torch.cat([h_n[-1], both], dim=1))


def row_reader() -> tuple[nn.Module, Loss]:
    image, classes = randn(5, 6, 6), randint(3, 5)
    return RowReader(), lambda model: F.cross_entropy(model(image), classes)


class Waves(nn.Module):
    """Cells stepped by hand, in and beyond the data, as for LBFGS."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm1, self.lstm2 = nn.LSTMCell(1, 5), nn.LSTMCell(5, 5)
        self.linear = nn.Linear(5, 1)

    def forward(self, input: Tensor, future: int = 2) -> Tensor:
        zeros = torch.zeros(input.size(0), 5, dtype=torch.double)
        h, c, h2, c2, outputs = zeros, zeros, zeros, zeros, []
        for x in [*input.split(1, dim=1), *[None] * future]:
            h, c = self.lstm1(outputs[-1] if x is None else x, (h, c))
            h2, c2 = self.lstm2(h, (h2, c2))
            outputs.append(self.linear(h2))
        return torch.cat(outputs, dim=1)


def waves() -> tuple[nn.Module, Loss]:
    data = torch.sin(torch.arange(10.0, dtype=torch.float64) / 2 + torch.arange(3.0).unsqueeze(1))
    return Waves(), lambda model: F.mse_loss(model(data[:, :-3]), data[:, 1:])


class Names(nn.Module):
    """One character at a time, without a batch, the state carried by the caller."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(7, 6)
        self.out = nn.Linear(6, 7)

    def forward(self, letter: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        output, hidden = self.rnn(letter.view(1, 1, -1), hidden)
        return self.out(output[0]), hidden


def names() -> tuple[nn.Module, Loss]:
    letters = F.one_hot(randint(7, 8), 7).double()

    def loss(model: nn.Module) -> Tensor:
        hidden, total = torch.zeros(1, 1, 6, dtype=torch.double), 0.0
        for letter, following in zip(letters[:-1], letters[1:], strict=True):
            logits, hidden = model(letter, hidden)
            total = total + F.cross_entropy(logits, following.argmax().view(1))
        return total

    return Names(), loss


MODELS: dict[str, Callable[[], tuple[nn.Module, Loss]]] = {
    "attention_seq2seq": attention_seq2seq,
    "pyramid": pyramid,
    "weight_drop": weight_drop,
    **{
        f"word_model_{k}": lambda k=k: word_model(k)
        for k in ("LSTM", "GRU", "RNN_TANH", "RNN_RELU")
    },
    "captioner": captioner,
    "row_reader": row_reader,
    "waves": waves,
    "names": names,
}
