"""What `leantad gpu-check` measures on a GPU, row by row."""
