"""ETAD's detector as its authors released it, and what we add to it as settings."""
