"""The `millrace` command and what it runs; the top layer."""
