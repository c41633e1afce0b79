"""What the tests of torch.compile and torch.export share: sizes, and what becomes of a layer."""

import pytest
import torch
from torch import Tensor

T, N, I, H = 5, 3, 4, 6
two_kinds = pytest.mark.parametrize("kind", ["LSTM", "GRU"])

# Of torch's own code, while it compiles and exports.
MARKS = pytest.mark.filterwarnings(
    "ignore:.*LeafSpec.*:FutureWarning", "ignore:.*torch.jit.script.*:DeprecationWarning"
)


@pytest.fixture(autouse=True)
def fresh_compiler():
    """A test module takes this fixture by giving it its name."""
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def tokens(steps: int = T) -> Tensor:
    return torch.randint(I, (steps, N))


def operators(graph: torch.fx.GraphModule) -> list[str]:
    """Names of this package's operators in a graph."""
    names = [str(node.target) for node in graph.graph.nodes if node.op == "call_function"]
    return [name for name in names if name.startswith("fastlstm")]
