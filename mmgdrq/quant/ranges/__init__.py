"""Rules that choose a range."""
