"""Rows and files: the lake, its tables and lineage. Knows no model and no method."""
