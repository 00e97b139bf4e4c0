"""The command `deltaserve`."""
