"""Rollouts that others sampled, read into the lake as an imported run; one file format = one module here."""
