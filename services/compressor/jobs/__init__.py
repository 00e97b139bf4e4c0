"""Compression jobs: their log in the store, who works on which, and the work itself."""
