"""The router: the one address clients need; resolves models, picks workers, passes streams on. Free of torch."""
