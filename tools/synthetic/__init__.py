"""What the built-in videos show, and how it is drawn."""
