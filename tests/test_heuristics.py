"""Which kernels CUDA takes: a pure function, asked without a GPU."""

import pytest
import simt_extension

FITS = 50_000


def uses_block(
    wanted: str = "block",
    projected: bool = False,
    block_shared_bytes: int = FITS,
    shared_bytes: int = 2 * FITS,
) -> bool:
    return simt_extension.load().uses_block(projected, block_shared_bytes, shared_bytes, wanted)


def test_a_kernel_that_is_asked_for_is_taken() -> None:
    assert uses_block()
    assert uses_block(shared_bytes=FITS)
    assert not uses_block("stepwise")


def test_what_has_not_been_measured_is_not_taken_by_itself() -> None:
    assert not uses_block("auto")


@pytest.mark.parametrize(
    "problem",
    [{"projected": True}, {"block_shared_bytes": 0}, {"shared_bytes": FITS - 1}],
    ids=["projected", "not_taken", "too_large"],
)
def test_what_it_does_not_take_goes_step_by_step(problem: dict) -> None:
    assert not uses_block(**problem)


def test_another_word_is_an_error() -> None:
    with pytest.raises(ValueError, match="must be auto, stepwise or block, got fast"):
        uses_block("fast")
