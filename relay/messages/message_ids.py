"""Message ids: the text of UUIDs, computed from a delivery without UUID objects."""

from __future__ import annotations

from binascii import hexlify
from hashlib import sha1
from struct import Struct

# The digits of a hash that a UUID uses: not the digit of the version, and not the last eight of 40.
_FIELDS = Struct("8s 4s x3s c3s 12s 8x")
# Each hexadecimal digit, with its two highest bits set to 10 as the variant requires.
_VARIANTS = {b"%x" % digit: b"%x" % (digit & 3 | 8) for digit in range(16)}


def message_id_for(event_id: str, handler: str) -> str:
    """Return `str(uuid5(UUID(event_id), handler))`."""
    return hashed_uuid(uuid_octets(event_id) + handler.encode(), version=5)


def uuid_octets(text: str) -> bytes:
    """Return the 16 bytes of a UUID."""
    return bytes.fromhex(text.replace("-", ""))


def hashed_uuid(name: bytes, *, version: int) -> str:
    """Return the SHA-1 of a name as a UUID, with version and variant set as in RFC 9562."""
    digest = sha1(name, usedforsecurity=False).digest()
    # Bytes are split and joined in half the time of text.
    low, mid, high, variant, clock, node = _FIELDS.unpack(hexlify(digest))
    return (b"%b-%b-%d%b-%b%b-%b" % (low, mid, version, high, _VARIANTS[variant], clock, node)).decode()
