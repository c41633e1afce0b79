"""``sample``: text on stdout, and nothing else."""

from __future__ import annotations

import argparse
import os
import sys

import torch

from ...common.errors import UserError
from ...common.machine import set_up_machine
from ..checkpoint import load_model
from ..data import Vocabulary, decode, read_file
from ..report import default_prime, printable
from ..sampling import Sampler, SamplingOptions


def run(options: argparse.Namespace) -> int:
    """Writes ``--count`` samples, each the prime and ``--length`` characters after it."""
    sampling = SamplingOptions(
        temperature=options.temperature,
        top_k=options.top_k,
        top_p=options.top_p,
        greedy=options.greedy,
    )
    for name in ("length", "count"):
        if getattr(options, name) < 1:
            raise UserError(f"--{name} must be at least 1, got {getattr(options, name)}")
    device = set_up_machine(options.device, options.threads)
    model, vocabulary, _ = load_model(options.model, backend=options.backend, device=device)
    prime = _prime(options, vocabulary)
    start = vocabulary.encode(prime or default_prime(vocabulary))
    try:
        for number in range(options.count):
            generator = torch.Generator().manual_seed(options.seed + number)
            sampler = Sampler(model, sampling, generator)
            sampler.read(start)
            _write(("\n" if number else "") + "-" * 78 + "\n" if options.count > 1 else "")
            _write(prime)
            tokens = sampler.generate(options.length)
            for piece in ([token] for token in tokens) if options.stream else [list(tokens)]:
                _write(vocabulary.decode(piece))
        if sys.stdout.isatty():
            _write("\n")
    except BrokenPipeError:
        # The reader (head, less) has seen enough. Python would complain again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _prime(options: argparse.Namespace, vocabulary: Vocabulary) -> str | bytes:
    """What a sample starts with, and is printed first; empty if nothing was asked for."""
    if options.prime_file is not None:
        raw = read_file(options.prime_file)
        return raw if vocabulary.symbols is None else decode(raw, "utf-8", options.prime_file)
    prime = options.prime or ""
    return os.fsencode(prime) if vocabulary.symbols is None else prime


def _write(data: str | bytes) -> None:
    """To stdout, at once; bytes as they are into a file or pipe, readable on a terminal."""
    if isinstance(data, bytes) and not sys.stdout.isatty():
        sys.stdout.flush()
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
        return
    text = data.decode("utf-8", "replace") if isinstance(data, bytes) else data
    sys.stdout.write(printable(text) if sys.stdout.isatty() else text)
    sys.stdout.flush()
