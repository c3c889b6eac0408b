"""Results files read back, compared and drawn."""
