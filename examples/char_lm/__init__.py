"""A character-level LSTM language model: ``python -m examples.char_lm {train,sample,eval}``."""
