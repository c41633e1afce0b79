"""Programs built on fastlstm, meant to be copied. Each runs as ``python -m examples.<name>``."""
