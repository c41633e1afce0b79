"""``eval``: the loss of a model on a text."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import time

from ...common.errors import UserError
from ...common.machine import set_up_machine
from ..checkpoint import load_model
from ..data import load_corpus, split
from ..evaluate import bits, evaluate
from ..ngram import Baseline
from ..report import nats_and_bits


def run(options: argparse.Namespace) -> int:
    """Scores ``--text``, or the validation split of the run, and prints the result."""
    device = set_up_machine(options.device, options.threads)
    model, vocabulary, checkpoint = load_model(
        options.model, backend=options.backend, device=device
    )
    config, facts = checkpoint["config"], checkpoint["facts"]
    if options.text:
        corpus = load_corpus(dataclasses.replace(config, text=tuple(options.text)))
        ids = vocabulary.encode(corpus.data)
        what, baseline = corpus.name, None
    else:
        corpus = load_corpus(config)
        if corpus.sha256 != facts["corpus"]["sha256"]:
            raise UserError(f"the text of {options.model} has changed: now {corpus.describe()}")
        _, ids = split(vocabulary.encode(corpus.data), config.val_fraction)
        what = f"the validation split of {corpus.name}"
        baseline = Baseline.from_dict(facts["baseline"])
    began = time.monotonic()
    nats, chars = evaluate(model, ids)
    speed = chars / (time.monotonic() - began)
    uniform = math.log(len(vocabulary))
    if options.json:
        result = {"text": what, "chars": chars, "nats": nats, "bpc": bits(nats)}
        result |= {"uniform_nats": uniform, "chars_per_second": speed}
        result["ngram_nats"] = baseline and baseline.best
        print(json.dumps(result))
        return 0
    print(f"text        {what}, {chars:,} characters scored")
    print(f"loss        {nats_and_bits(nats)}, perplexity {math.exp(nats):.3f}")
    print(f"baselines   {baseline.describe() if baseline else f'uniform {nats_and_bits(uniform)}'}")
    print(f"speed       {speed:,.0f} characters per second")
    return 0
