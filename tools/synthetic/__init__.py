"""The content of the built-in videos: scenarios, and how they are drawn."""
