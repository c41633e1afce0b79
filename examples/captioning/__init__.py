"""Image captioning with and without attention: ``python -m examples.captioning {train,caption,...}``."""
