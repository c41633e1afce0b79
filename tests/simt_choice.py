"""What the CUDA kernels would be for a problem, asked of the emulator's module."""

import simt_extension

MODES = ("LSTM", "GRU", "RNN_TANH", "RNN_RELU")
ELEMENT_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4, "float64": 8}


def cuda_choice(
    *,
    mode: str,
    backward: bool,
    T: int,
    N: int,
    H: int,
    directions: int,
    dtype: str,
    tf32: bool,
    wanted: str,
) -> dict:
    """The choice of csrc/cuda/heuristics.h for a layer on the emulated device, an H100 at first.

    dtype: as torch names it. wanted: as FASTLSTM_CUDA_KERNEL has it.
    """
    simt = simt_extension.load()
    cell, size = MODES.index(mode), ELEMENT_BYTES[dtype]
    block = simt.block_shared_bytes(
        cell=cell, backward=backward, H=H, element_bytes=size, tf32=tf32
    )
    return simt.choose(
        cell=cell,
        backward=backward,
        T=T,
        N=N,
        H=H,
        directions=directions,
        element_bytes=size,
        is_bfloat16=dtype == "bfloat16",
        tf32=tf32,
        projected=False,
        block_shared_bytes=block,
        device=simt.device_properties(),
        wanted=wanted,
    )
