"""What the benchmarks share: problems and who solves them, proof, timing, tables and files."""
