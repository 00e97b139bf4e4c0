"""One worker's memory for deltas, simulated: what eviction and prefetch policies make of a trace."""
