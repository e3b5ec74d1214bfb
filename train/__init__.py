"""The run: settings, the DeepSpeed engine, the training loop, evaluation and its metrics."""
