"""One trainer for every objective, in a process of its own."""
