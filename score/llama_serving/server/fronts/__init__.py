"""How requests reach the server: sockets, TLS, proxies in front of it, and the path prefix that these add."""
