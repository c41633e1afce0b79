"""A character-level recurrent language model: ``python -m examples.char_lm {train,sample,eval}``."""
