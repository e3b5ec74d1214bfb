"""What is in a data set, and which settings fit it: parts of `inspect` and `make-shards`."""
