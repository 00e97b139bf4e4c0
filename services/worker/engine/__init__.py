"""The engine process: everything with tensors, one step after the other."""
