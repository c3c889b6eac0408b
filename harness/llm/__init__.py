"""Language models: what their experiments have in common."""
