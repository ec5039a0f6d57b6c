"""A selection of the lake written for other programs to read."""
