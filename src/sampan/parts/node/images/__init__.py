"""The node's images: found, built, kept."""
