"""The agent: makes the pods bound to this node real, and tells what became of them."""
