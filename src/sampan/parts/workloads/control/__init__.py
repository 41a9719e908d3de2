"""One controller a file."""
