"""Which kernels of CUDA are the fastest for a layer: every method, by several plans of each.

plans.py     which plans are tried           jobs.py     one problem, measured; the columns
worker.py    a process that measures, and what asks it and outlives it
"""
