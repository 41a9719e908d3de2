"""The gate before cold and limited revisions: requests wait here until a pod can take them."""
