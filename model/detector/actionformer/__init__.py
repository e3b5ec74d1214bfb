"""ActionFormer's detector: a pyramid of local attention, and scores and distances at every point of it."""
