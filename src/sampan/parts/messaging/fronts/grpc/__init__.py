"""The gRPC front: the API of the 5.x clients over the broker's core."""
