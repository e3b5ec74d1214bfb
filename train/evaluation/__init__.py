"""Detections against ground truth: average precision, recall, diagnosis, intervals."""
