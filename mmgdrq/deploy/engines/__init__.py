"""What each engine computes, and how it is opened."""
