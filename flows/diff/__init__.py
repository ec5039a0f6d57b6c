"""What changed between two rounds, of one run or of two."""
