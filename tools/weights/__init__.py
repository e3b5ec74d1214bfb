"""Other projects' checkpoints: reading the files, and whose names are whose."""
