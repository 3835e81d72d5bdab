"""The socket of our own server."""

import socket

from llama_serving.server.fronts.binding import bound_socket


def test_what_is_sent_goes_at_once() -> None:
    with bound_socket("127.0.0.1", 0) as listening:
        listening.listen()
        with socket.create_connection(listening.getsockname()), listening.accept()[0] as connection:
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
