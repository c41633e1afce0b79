"""What carries a call to the kernels, in the order in which the call of a layer passes it:

``modules.LSTM`` (base.py) or ``functional.lstm``, for users, one folder up
    -> nested: rows of a jagged input are padded, and come back jagged
    -> stack: the arguments are checked, then the layers run one after the other; with precision
       (dtypes), embedding (tokens) and, in place of autograd, per_sample
    -> autograd: one of three routes to the kernels, for a layer or a cell
       1. straight to them, differentiated once by ``Recurrence``
       2. transforms: under torch.func and forward-mode AD
       3. ops: as operators, which graphs hold and flops counts
       derivatives: where a backward pass is differentiated itself, by the loop of reference.py
    -> kernels: a layer and a cell as functions of a flat tuple of tensors
    -> extension: the compiled ``fastlstm._C``

A cell, ``cells.LSTMCell`` or ``functional.lstm_cell``, enters at autograd, or without a gradient at
extension. On the side: plain (which calls are everyday ones, and words for bad arguments), tracing
(what torch.fx records of a module).
"""
