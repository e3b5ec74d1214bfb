"""The detector: neck, boundary head, proposals, cascaded stages, losses."""
