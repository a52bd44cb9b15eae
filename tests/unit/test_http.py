"""The validation of a request's id and of its client's address."""

import re
import uuid
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outbox.http import client_address, request_id

# ---------------------------------------------------------------- request ids


@pytest.mark.parametrize(
    "given", ["a", "abc-123", "8c0c2b6e-1f7b-4a6e-9a53-9a3c3a3e7a11", "Root=1-67a/b+c:d@e", "x" * 128]
)
def test_a_safe_request_id_is_kept(given):
    assert request_id(given) == given


@pytest.mark.parametrize(
    "given", ["", " a", "a b", "a\nb", "a\n", "<script>", "ä", "-x", "x" * 129, "a\0", "a;b"]
)
def test_an_unsafe_request_id_is_replaced(given):
    made = request_id(given)
    assert made != given
    assert uuid.UUID(made)


@given(st.text())
def test_a_request_id_is_always_short_and_printable(given):
    assert re.fullmatch(r"[!-~]{1,128}", request_id(given))


# ---------------------------------------------------------------- the client's address


@pytest.mark.parametrize(
    ("peer", "forwarded", "proxies", "expected"),
    [
        ("203.0.113.9", "", 0, "203.0.113.9"),
        ("203.0.113.9", "198.51.100.1", 0, "203.0.113.9"),
        ("10.0.0.1", "198.51.100.1", 1, "198.51.100.1"),
        ("10.0.0.1", "6.6.6.6, 198.51.100.1", 1, "198.51.100.1"),
        ("10.0.0.1", "6.6.6.6, 198.51.100.1, 10.0.0.2", 2, "198.51.100.1"),
        ("10.0.0.1", "198.51.100.1", 2, "198.51.100.1"),
        ("10.0.0.1", "", 1, "10.0.0.1"),
        ("10.0.0.1", " , ,", 1, "10.0.0.1"),
        ("10.0.0.1", "unknown", 1, "10.0.0.1"),
        ("10.0.0.1", "6.6.6.6, not an address", 1, "10.0.0.1"),
        ("10.0.0.1", "198.51.100.1:4711", 1, "198.51.100.1"),
        ("10.0.0.1", "[2001:db8::1]:4711", 1, "2001:db8::1"),
        ("10.0.0.1", "2001:DB8:0::1", 1, "2001:db8::1"),
        ("::ffff:203.0.113.9", "", 0, "203.0.113.9"),
        ("fe80::1%<script>", "", 0, "fe80::1"),
        ("", "", 0, None),
        ("unix:", "", 1, None),
    ],
)
def test_the_client_address_is_the_one_that_trusted_proxies_report(peer, forwarded, proxies, expected):
    assert client_address(peer, forwarded, proxies) == expected


@given(claimed=st.text(), proxies=st.integers(0, 4))
def test_a_client_cannot_forge_its_address(claimed, proxies):
    """The proxies append the real addresses after any text of the client."""
    appended = ["198.51.100.1", *(f"10.0.0.{n}" for n in range(2, proxies + 1))][:proxies]
    forwarded = ", ".join([claimed, *appended])
    peer = "10.0.0.1" if proxies else "198.51.100.1"
    assert client_address(peer, forwarded, proxies) == "198.51.100.1"


@given(st.text(), st.text(), st.integers(0, 3))
def test_a_client_address_is_an_address_or_none(peer, forwarded, proxies):
    found = client_address(peer, forwarded, proxies)
    assert found is None or str(ip_address(found)) == found
