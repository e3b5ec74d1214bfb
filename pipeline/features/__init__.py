"""Feature files: what an encoder made of the videos of a data set, in place of their frames."""
