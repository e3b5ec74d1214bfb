"""What unprepared modules compute, proven by torch.fx: is a block residual, and which follows which.

Read `residual.py` and `chain.py` first; `graph.py` records, `steps.py` and `sums.py` take the record apart,
`run.py` runs the branches found, `watch.py` sees what cannot be proven.
"""
