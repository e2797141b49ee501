"""Operators below the maths: one operator, for each kind of device."""
