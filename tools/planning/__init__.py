"""The memory of a training step, estimated without a GPU, and settings that fit."""
