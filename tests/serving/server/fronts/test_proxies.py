"""Whose headers are believed, and which of the addresses in them is the client's."""

from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_serving.server.fronts.proxies import MOST_HOPS, Reported, TrustedProxies

NETWORKS = ("10.0.0.0/8", "192.168.1.7", "fd00::/8")
PROXIES = TrustedProxies(NETWORKS)
proxies = st.one_of(
    st.ip_addresses(network="10.0.0.0/8"),
    st.just(ip_address("192.168.1.7")),
    st.ip_addresses(network="fd00::/8"),
)
clients = st.ip_addresses().filter(
    lambda one: (
        not any(one in ip_network(name) for name in NETWORKS) and (one.version == 4 or one.ipv4_mapped is None)
    )
)
claims = st.text(st.characters(exclude_characters=",", max_codepoint=255), max_size=30)
"""What a client wrote into the header itself."""


@st.composite
def written(draw: st.DrawFn, address: st.SearchStrategy[object]) -> str:
    """An address as proxies write it: alone, with a port, IPv6 in brackets or not."""
    found = draw(address)
    port = draw(st.sampled_from(("", ":1", ":65535")))
    if getattr(found, "version", 4) == 4:
        return f"{found}{port}"
    return f"[{found}]{port}" if port or draw(st.booleans()) else str(found)


def split(items: list[str], header_of: list[bool]) -> list[str]:
    """The items as the values of one header or of several."""
    values: list[str] = []
    for item, begins in zip(items, header_of, strict=True):
        if begins or not values:
            values.append(item)
        else:
            values[-1] += f", {item}"
    return values


@given(st.data(), proxies, st.lists(claims, max_size=4), clients, st.integers(0, 4))
def test_the_client_is_the_last_that_no_trusted_proxy_is(
    data: st.DataObject, peer: object, claimed: list[str], client: object, between: int
) -> None:
    hops = [
        *claimed,
        data.draw(written(st.just(client))),
        *(data.draw(written(proxies)) for _ in range(between)),
    ]
    values = split(hops, data.draw(st.lists(st.booleans(), min_size=len(hops), max_size=len(hops))))
    assert PROXIES.read(str(peer), values, (), ()).client == str(client)


@given(clients, st.tuples(*[st.lists(claims | st.just("10.0.0.1"))] * 3))
def test_who_is_not_trusted_changes_nothing(
    peer: object, headers: tuple[list[str], list[str], list[str]]
) -> None:
    assert PROXIES.read(str(peer), *headers) == Reported()
    assert TrustedProxies(()).read(str(peer), *headers) == Reported()
    assert PROXIES.read(None, *headers) == Reported()


@given(proxies, st.tuples(*[st.lists(st.text())] * 3))
def test_any_headers_are_read_or_left_alone(
    peer: object, headers: tuple[list[str], list[str], list[str]]
) -> None:
    told = PROXIES.read(str(peer), *headers)
    assert told.client is None or ip_address(told.client)
    assert told.scheme in (None, "http", "https")
    assert told.host is None or told.host.isascii()


@pytest.mark.parametrize(
    "unknown", ["unknown", "_hidden", "", "1.2.3", "1.2.3.4:x", "[::1", "fe80::1%eth0", "a.example"]
)
def test_behind_what_is_no_address_nobody_is_known(unknown: str) -> None:
    assert PROXIES.read("10.0.0.1", [f"203.0.113.9, {unknown}"], (), ()).client is None
    assert PROXIES.read("10.0.0.1", [f"203.0.113.9, {unknown}, 10.0.0.2"], (), ()).client == "10.0.0.2"


def test_where_all_are_trusted_the_first_is_the_client() -> None:
    assert PROXIES.read("10.0.0.1", ["10.0.0.3, 10.0.0.2"], (), ()).client == "10.0.0.3"


def test_a_chain_without_end_is_followed_for_a_while() -> None:
    chain = ["10.0.0.9", *["10.0.0.2"] * MOST_HOPS]
    assert PROXIES.read("10.0.0.1", [",".join(chain)], (), ()).client == "10.0.0.2"


@pytest.mark.parametrize("peer", ["10.1.2.3", "::ffff:10.1.2.3", "fd00::1", "fd00::1%eth0", "192.168.1.7"])
def test_peers_are_known_in_each_form(peer: str) -> None:
    assert PROXIES.trust(peer)


@pytest.mark.parametrize(
    "peer", ["11.0.0.1", "::ffff:11.0.0.1", "::10.1.2.3", "192.168.1.8", "fe80::1", "", "x", None]
)
def test_others_are_not(peer: str | None) -> None:
    assert not PROXIES.trust(peer)


def test_peers_on_a_unix_socket_are_trusted_by_name() -> None:
    told = TrustedProxies(["unix"]).read(None, ["203.0.113.9"], ["https"], ["models.example.org"])
    assert told == Reported("203.0.113.9", "https", "models.example.org")
    assert not TrustedProxies(["unix"]).trust("127.0.0.1")
    assert (
        TrustedProxies(["unix", "10.0.0.1"]).read(None, ["203.0.113.9, 10.0.0.1"], (), ()).client
        == "203.0.113.9"
    )


def test_a_mapped_network_is_one_of_ipv4() -> None:
    assert TrustedProxies(["::ffff:10.0.0.0/104"]).trust("10.9.9.9")


@pytest.mark.parametrize(
    ("proto", "hops", "scheme"),
    [
        (["https"], "203.0.113.9", "https"),
        (["HTTPS"], "203.0.113.9", "https"),
        (["http, https"], "evil, 203.0.113.9", "https"),
        (["https, http"], "203.0.113.9, 10.0.0.2", "https"),  # one for each hop
        (["https, http"], "evil, 203.0.113.9, 10.0.0.2", "http"),  # (what is not is the nearest proxy's)
        (["https", "http"], "203.0.113.9", "http"),
        (["gopher"], "203.0.113.9", None),
        ([""], "203.0.113.9", None),
        ([], "203.0.113.9", None),
    ],
)
def test_the_scheme_is_that_of_the_clients_hop(proto: list[str], hops: str, scheme: str | None) -> None:
    assert PROXIES.read("10.0.0.1", [hops], proto, ()).scheme == scheme


@pytest.mark.parametrize(
    "host", ["a.example.org", "a.example.org:8443", "127.0.0.1:80", "[::1]:8453", "localhost"]
)
def test_hosts(host: str) -> None:
    assert PROXIES.read("10.0.0.1", (), (), [f"evil.example, {host}"]).host == host


@pytest.mark.parametrize("host", ["", "a b", "a/b", "a@b", "<script>", "[::1", "a:b", "é.example", "-a", ".a"])
def test_what_is_no_host_is_left_alone(host: str) -> None:
    assert PROXIES.read("10.0.0.1", (), (), [host]).host is None
