"""Finds residual blocks in a network of any source, by torch.fx, and the order in which they are called.

`residual.py` tells whether a block is residual: `graph.py` traces it into the operations of `operations.py`,
`branches.py` finds the residual branches among them, `segments.py` those in a part, `traced_block.py` runs
these. `chain.py` tells which block follows which, by tracing; `observe.py` by running the network once.
`install.py` rewires the blocks.
"""
