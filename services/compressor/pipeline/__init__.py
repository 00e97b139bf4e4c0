"""Layer-streaming compression of one fine-tune against its base, as a process of its own, with its quality report."""
