"""The patch languages and server-side apply, as pure functions."""
