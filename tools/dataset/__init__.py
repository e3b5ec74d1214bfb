"""What is in a data set, and which settings fit it: the parts of `inspect` and `make-shards`."""
