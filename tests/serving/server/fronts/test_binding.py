"""Where the server listens, and how it says so."""

import fcntl
import os
import socket
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from ipaddress import IPv6Address
from pathlib import Path
from threading import Barrier

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_serving.errors import SetupError
from llama_serving.server.fronts import unix_socket
from llama_serving.server.fronts.binding import Binding, bound_socket, listening, permissions, port_number
from tests.support.carriers import has_ipv6


def link_local() -> list[str]:
    """The machine's link-local addresses, each with its zone."""
    try:
        lines = Path("/proc/net/if_inet6").read_text(encoding="ascii").splitlines()
    except OSError:
        return []
    fields = [line.split() for line in lines]
    return [f"{IPv6Address(bytes.fromhex(each[0]))}%{each[5]}" for each in fields if each[3] == "20"]


needs_ipv6 = pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")


@pytest.mark.parametrize(
    ("binding", "tls", "prefix", "told"),
    [
        (Binding(), False, "", "http://127.0.0.1:8453"),
        (Binding("localhost", 1), True, "/llama", "https://localhost:1/llama"),
        (Binding("::1", 80), False, "", "http://[::1]:80"),
        (Binding("[::1]", 80), False, "", "http://[::1]:80"),
        (Binding("fe80::1%eth0", 80), False, "", "http://[fe80::1%25eth0]:80"),
        (Binding("0.0.0.0", 80), False, "", "http://127.0.0.1:80 and at all IPv4 addresses of this machine"),
        (Binding("::", 80), True, "", "https://[::1]:80 and at all IPv4 and IPv6 addresses of this machine"),
        (Binding(uds="a.sock"), False, "/b", "http://localhost/b on the Unix socket a.sock"),
    ],
)
def test_addresses_are_told_as_urls(binding: Binding, tls: bool, prefix: str, told: str) -> None:
    assert binding.told(tls=tls, prefix=prefix) == told


@needs_ipv6
@pytest.mark.parametrize("client", ["127.0.0.1", "::1"])
def test_the_wildcard_of_ipv6_takes_ipv4_too(client: str) -> None:
    with bound_socket("::", 0) as own:
        own.listen()
        with socket.create_connection((client, own.getsockname()[1])), own.accept()[0]:
            pass


@needs_ipv6
def test_an_ipv6_address_that_is_taken_is_told_with_brackets() -> None:
    with bound_socket("::1", 0) as taken:
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(SetupError, match=rf"^\[::1\]:{port} can't be listened on: Address already in use"):
            bound_socket("::1", port)


@pytest.mark.parametrize(
    "host", ["nowhere.invalid", "a b", "a" * 300, "1.2.3", "203.0.113.1", "2001:db8::1", ""]
)
def test_what_is_no_address_of_this_machine_is_a_sentence(host: str) -> None:
    with pytest.raises(SetupError, match=r"can't be listened on: .*Give another --port or --host"):
        bound_socket(host, 1 if not host else 0).close()


@needs_ipv6
@pytest.mark.skipif(not link_local(), reason="this machine has no link-local address")
def test_a_link_local_address_is_listened_on() -> None:
    host = link_local()[0]
    with bound_socket(host, 0) as own:
        own.listen()
        address = own.getsockname()
        assert address[3] == socket.if_nametoindex(host.partition("%")[2])
        with socket.socket(socket.AF_INET6) as client:
            client.connect(address)


@pytest.mark.parametrize("host", ["fe80::1%nowhere", "fe80::1", "fe80::1%"])
def test_a_zone_that_is_none_is_a_sentence(host: str) -> None:
    with pytest.raises(SetupError, match="can't be listened on"):
        bound_socket(host, 0).close()


@given(st.integers().filter(lambda port: not 0 <= port <= 65535))
def test_what_is_no_port_is_a_sentence(port: int) -> None:
    with pytest.raises(SetupError, match=rf"^--port {port} can't be used: it must be from 1 to 65535"):
        bound_socket("127.0.0.1", port).close()
    with pytest.raises(ValueError, match="is no port"):
        port_number(str(port))


# --- Unix sockets -----------------------------------------------------------------------------------


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "llama.sock"


def at(place: Path, mode: int = 0o660) -> Binding:
    return Binding(uds=str(place), uds_mode=mode)


def stale(place: Path) -> None:
    """Leave a socket behind, as a server does that was killed."""
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(place))


@pytest.mark.parametrize("mode", [0o600, 0o660, 0o666])
def test_a_socket_has_its_mode_whatever_the_umask_and_is_gone_at_the_end(place: Path, mode: int) -> None:
    before = os.umask(0o177)
    try:
        with listening(at(place, mode)):
            assert stat.S_IMODE(place.stat().st_mode) == mode
    finally:
        os.umask(before)
    assert list(place.parent.iterdir()) == []


def test_a_stale_socket_is_replaced(place: Path) -> None:
    stale(place)
    with listening(at(place)), socket.socket(socket.AF_UNIX) as client:
        client.connect(str(place))


def test_a_socket_that_somebody_listens_on_stays_theirs(place: Path) -> None:
    with listening(at(place)) as theirs:
        with (
            pytest.raises(SetupError, match=r"llama\.sock has a server that listens already\. Stop it"),
            listening(at(place)),
        ):
            pass
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(place))
            theirs.accept()[0].close()


def test_one_whose_queue_is_full_is_listened_on(place: Path) -> None:
    with ExitStack() as crowd, socket.socket(socket.AF_UNIX) as busy:
        busy.bind(str(place))
        busy.listen(0)
        for _ in range(2):
            waiting = crowd.enter_context(socket.socket(socket.AF_UNIX))
            waiting.setblocking(False)
            waiting.connect_ex(str(place))
        with pytest.raises(SetupError, match="listens already"), listening(at(place)):
            pass


@pytest.mark.parametrize("kind", ["file", "folder", "link", "dangling", "pipe"])
def test_no_other_file_is_removed(place: Path, kind: str) -> None:
    other = place.parent / "other"
    if kind == "file":
        place.write_text("kept")
    elif kind == "folder":
        place.mkdir()
    elif kind == "pipe":
        os.mkfifo(place)
    else:
        if kind == "link":
            stale(other)
        place.symlink_to(other)
    before = place.lstat()
    with pytest.raises(SetupError, match="something else than a socket"), listening(at(place)):
        pass
    assert place.lstat().st_ino == before.st_ino


def test_a_file_that_took_the_sockets_place_stays(place: Path) -> None:
    with listening(at(place)):
        place.unlink()
        place.write_text("kept")
    assert place.read_text() == "kept"


def test_of_many_that_start_together_one_listens(place: Path) -> None:
    stale(place)
    number = 8
    together, tried = Barrier(number), Barrier(number)

    def start(_: int) -> bool:
        together.wait()
        try:
            with listening(at(place)):
                tried.wait()
                return True
        except SetupError:
            tried.wait()
            return False

    with ThreadPoolExecutor(number) as pool:
        assert sum(pool.map(start, range(number))) == 1


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the folder's lock."""
    other = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(other, fcntl.LOCK_EX)
        yield
    finally:
        os.close(other)


def test_another_that_starts_in_the_same_folder_is_waited_for(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unix_socket, "LOCK_S", 0.1)
    stale(place)
    with (
        locked(place.parent),
        pytest.raises(SetupError, match=r"holds a lock on the folder /.*Give the socket a folder of its own"),
        listening(at(place)),
    ):
        pass
    assert place.exists()
    with listening(at(place)):
        pass


def test_a_lock_that_somebody_holds_keeps_no_file_at_the_end(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unix_socket, "LOCK_S", 0.1)
    with ExitStack() as held:
        with listening(at(place)):
            held.enter_context(locked(place.parent))
        assert not place.exists()


def test_the_end_of_a_server_leaves_its_successors_socket(place: Path) -> None:
    """A server that drains has closed its socket. On ext4 and tmpfs the next file can have the same number."""
    for _ in range(20):
        with ExitStack() as before:
            before.enter_context(listening(at(place))).close()
            with listening(at(place)), socket.socket(socket.AF_UNIX) as client:
                before.close()
                client.connect(str(place))


def test_nothing_is_left_open(place: Path) -> None:
    def descriptors() -> list[str]:
        return sorted(each.name for each in Path("/proc/self/fd").iterdir())

    before = descriptors()
    with listening(at(place)):
        pass
    with pytest.raises(SetupError), listening(at(place.parent / ("a" * 200))):
        pass
    assert descriptors() == before


@pytest.mark.parametrize("path", ["/nowhere/llama.sock", "a" * 200, "/proc/llama.sock", "a\0b", ""])
def test_a_path_that_cant_be_used_is_a_sentence(path: str) -> None:
    with pytest.raises(SetupError, match="--uds"), listening(Binding(uds=path)):
        pass


def test_the_path_is_that_of_the_start(place: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    with listening(Binding(uds="llama.sock")):
        monkeypatch.chdir("/")
    assert not place.exists()


@pytest.mark.parametrize(("text", "mode"), [("600", 0o600), ("0660", 0o660), ("666", 0o666), ("777", 0o777)])
def test_permissions(text: str, mode: int) -> None:
    assert permissions(text) == mode


@pytest.mark.parametrize("text", ["", "8", "abc", "060", "1777", "-600", "0o660", "rw", "6_6_0"])
def test_what_are_no_permissions(text: str) -> None:
    with pytest.raises(ValueError, match="mode of a socket"):
        permissions(text)
