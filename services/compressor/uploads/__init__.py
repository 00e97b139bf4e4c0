"""Resumable uploads: what a client declares, what has arrived, and whether it may be compressed."""
