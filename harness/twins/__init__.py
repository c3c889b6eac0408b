"""Synthetic twins: data and models made up that cost a machine the same work as the real ones."""
