"""What the bench commands measure with."""
