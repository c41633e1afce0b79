"""examples/char_lm samples from a run, and scores texts with it."""

import json
import os
import subprocess
import sys

import char_lm_runs
import pytest
from example_runs import ROOT, metrics_of

from examples.char_lm.__main__ import main
from examples.char_lm.commands import sample as sample_command

text, run = char_lm_runs.text, char_lm_runs.run


def sampled(capsys, *arguments):
    capsys.readouterr()
    assert main(["sample", *map(str, arguments)]) == 0
    return capsys.readouterr().out


def test_sample_follows_its_options(run, capsys, monkeypatch):
    text = sampled(capsys, run, "--length", 80, "--prime", "the ")
    assert len(text) == 84 and text.startswith("the ")
    assert text == sampled(capsys, run, "--length", 80, "--prime", "the ", "--no-stream")
    assert text == sampled(capsys, run / "best.pt", "--length", 80, "--prime", "the ")
    assert text != sampled(capsys, run, "--length", 80, "--prime", "the ", "--seed", 1)
    greedy = sampled(capsys, run, "--length", 80, "--greedy")
    assert greedy == sampled(capsys, run, "--length", 80, "--greedy", "--seed", 5)
    assert greedy == sampled(capsys, run, "--length", 80, "--temperature", 0)
    assert greedy == sampled(capsys, run, "--length", 80, "--top-k", 1)
    assert greedy == sampled(capsys, run, "--length", 80, "--top-p", 1e-6)
    assert sampled(capsys, run, "--length", 9, "--count", 3).count("-" * 78) == 3


def test_prime_from_a_file(run, tmp_path, capsys):
    prime = tmp_path / "prime.txt"
    prime.write_text("the cat ")
    assert sampled(capsys, run, "--prime-file", prime, "--length", 5) == sampled(
        capsys, run, "--prime", "the cat ", "--length", 5
    )


def test_sample_streams(run, capsys, monkeypatch):
    pieces = []
    monkeypatch.setattr(sample_command, "_write", pieces.append)
    assert main(["sample", str(run), "--length", "30"]) == 0
    assert [len(piece) for piece in pieces if piece] == [1] * 30
    pieces.clear()
    assert main(["sample", str(run), "--length", "30", "--no-stream"]) == 0
    assert [len(piece) for piece in pieces if piece] == [30]


def test_sample_into_a_closed_pipe_is_quiet(run):
    reader, writer = os.pipe()
    os.close(reader)
    process = subprocess.run(
        [sys.executable, "-m", "examples.char_lm", "sample", str(run), "--length", "5"],
        cwd=ROOT,
        stdout=writer,
        stderr=subprocess.PIPE,
    )
    os.close(writer)
    assert process.returncode == 0 and process.stderr == b""


def test_eval_repeats_the_validation(run, text, tmp_path, capsys):
    capsys.readouterr()
    assert main(["eval", str(run), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["nats"] == pytest.approx(metrics_of(run)["val_nats"], rel=1e-6)
    assert result["ngram_nats"] == metrics_of(run)["baseline"]["best"]
    other = tmp_path / "other.txt"
    other.write_text(text.read_text()[3600:])
    assert main(["eval", str(run), "--text", str(other)]) == 0
    assert f"{result['nats']:.3f} nats" in capsys.readouterr().out


def test_eval_is_the_same_with_both_backends(run, capsys):
    results = []
    for backend in ("torch", "fastlstm"):
        capsys.readouterr()
        assert main(["eval", str(run), "--json", "--backend", backend]) == 0
        results.append(json.loads(capsys.readouterr().out)["nats"])
    assert results[0] == pytest.approx(results[1], rel=1e-5)
