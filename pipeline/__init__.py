"""Bytes on disk to a Batch of tensors: annotations, shards, order, decoding, loading."""
