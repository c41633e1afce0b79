"""What only a GPU can be measured with: check.py runs all of it, methods and exchange are its benchmarks."""
