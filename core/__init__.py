"""The contract and the machinery of a round. Names no method."""
