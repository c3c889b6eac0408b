"""What experiments share so that their numbers compare; imports neither utils nor reporting."""

PROJECT_VERSION = "0.2.0"  # of the collection; rows compare by their experiment's own
