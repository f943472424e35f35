"""Hand-written passes for eager PyTorch, above all on the CPU: each wins 1.2x in training, or is not here.

The formula beside each operation says what its pass computes; `_function` holds the two together.
"""
