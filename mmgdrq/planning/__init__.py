"""Which layer gets which bits, and why."""
