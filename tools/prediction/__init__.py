"""Detecting in video files: shared by the predict command and `import leantad`."""
