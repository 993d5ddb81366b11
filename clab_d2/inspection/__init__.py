"""Looking into a detector: what it attends to, what it costs, how its training went.

Nothing here is part of detection: what a detector computes on the way is observed from outside, by
PyTorch's hooks, and taken off again.
"""
