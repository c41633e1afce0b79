"""Which kernels of CUDA are the fastest for a layer: every method, by several plans of each.

plans.py     which plans are tried            choices.py   what the library would take
jobs.py      one problem, measured            rows.py      the columns of the results
worker.py    a process that measures          process.py   what asks it, and outlives it
"""
