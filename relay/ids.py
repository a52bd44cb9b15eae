"""Ids of messages: UUIDs as text, made of what a delivery is, without the objects in between."""

from __future__ import annotations

from binascii import hexlify
from hashlib import sha1
from struct import Struct

# The digits of a hash that a UUID takes: all but the one of the version, and the last eight of 40.
_FIELDS = Struct("8s 4s x3s c3s 12s 8x")
# What becomes of the digit whose two highest bits are to be 10.
_VARIANTS = {b"%x" % digit: b"%x" % (digit & 3 | 8) for digit in range(16)}


def message_id_for(event_id: str, handler: str) -> str:
    """Return `str(uuid5(UUID(event_id), handler))`."""
    return hashed_uuid(uuid_octets(event_id) + handler.encode(), version=5)


def uuid_octets(text: str) -> bytes:
    """Return the 16 bytes of a UUID."""
    return bytes.fromhex(text.replace("-", ""))


def hashed_uuid(name: bytes, *, version: int) -> str:
    """Return the SHA-1 of a name as a UUID, its version and variant set as RFC 9562 has them."""
    digest = sha1(name, usedforsecurity=False).digest()
    # Bytes and not text, as they are taken apart and put together in half the time.
    low, mid, high, variant, clock, node = _FIELDS.unpack(hexlify(digest))
    return (b"%b-%b-%d%b-%b%b-%b" % (low, mid, version, high, _VARIANTS[variant], clock, node)).decode()
