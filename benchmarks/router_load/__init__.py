"""What stands around a router that is measured: a worker that costs nothing, clients that cost little, its process."""
