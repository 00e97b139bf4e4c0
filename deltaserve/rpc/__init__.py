"""gRPC set-up shared by services and clients: channels, servers, and errors as statuses."""
