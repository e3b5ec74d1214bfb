"""The checks of `leantad doctor`."""
