"""What events carry: strict JSON for explicit payloads, and typed JSON for the arguments of signals.

Typed JSON is plain JSON in which a dict with the key `"$"` stands for a value that JSON has no word for, such
as `{"$": "decimal", "v": "1.50"}`. Nothing in it is executed: classes are looked up by name, checked for what
they should be, and never called. The order of a plain dict's keys is lost, since jsonb keeps none.
"""

from outbox.serialization.decoding import Missing, decode_arguments, decode_many, decode_value
from outbox.serialization.encoding import encode_arguments, encode_value
from outbox.serialization.json import MAX_DEPTH, dump_json

__all__ = [
    "MAX_DEPTH",
    "Missing",
    "decode_arguments",
    "decode_many",
    "decode_value",
    "dump_json",
    "encode_arguments",
    "encode_value",
]
