"""What a machine can do: the checks of `doctor`."""
