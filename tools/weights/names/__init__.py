"""Published checkpoints -> our names, one file per family: pure functions on dicts of tensors."""
