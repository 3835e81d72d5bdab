"""What reaching a server takes: its address, its key, and why a connection failed."""
