"""Rules that choose a range, one a file."""
