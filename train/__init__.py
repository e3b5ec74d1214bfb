"""Training and evaluation: settings, the DeepSpeed engine, the training loop, metrics and the report."""
