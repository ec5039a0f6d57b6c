"""The SQL console of the command line: one-shot and interactive."""
