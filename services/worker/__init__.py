"""The worker: serves the base and its fine-tunes' deltas, one front process and one engine process."""
