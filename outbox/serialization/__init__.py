"""Serialization: strict JSON for explicit payloads, and typed JSON for the arguments of signals.

In typed JSON, an object with the key `"$"` represents a value of a type that JSON lacks, such as
`{"$": "decimal", "v": "1.50"}`. Decoding executes nothing: classes are looked up by name, their base class is
checked, and they are never called. The order of a plain dict's keys is lost, since jsonb keeps none.
"""

from .decoding import Missing, decode_arguments, decode_many, decode_value
from .encoding import encode_arguments, encode_value
from .json import MAX_DEPTH, dump_json

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
