"""Other projects' checkpoints: reading the files, renaming the tensors, matching them with a backbone."""
