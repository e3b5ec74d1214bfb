"""Parts of `leantad ablate`: the grid of runs, running them, the table and the plot of their results."""
