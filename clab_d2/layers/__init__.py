"""Operators of which there are several backends, one folder each.

A folder's ``__init__`` is the operator: one interface, which takes the fastest backend that can do
what is asked, and gives the same result (to rounding) with any of them. The backends stand beside
it: ``pytorch`` (everywhere), ``numba`` (compiled loops on a CPU, optional), ``triton`` (kernels on
a GPU, optional); ``common`` holds what they take and give.
"""
