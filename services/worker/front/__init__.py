"""The front process of a worker: gRPC, text, disk cache and supervision; everything but tensors."""
