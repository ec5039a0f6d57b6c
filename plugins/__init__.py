"""Built-in plugins: one method = one file = one function, found by name as a third party's are."""
