#!/usr/bin/env python3
"""Rounds a model's weights from f32 to bf16 and writes them as one safetensors file.

    python3 pack.py trained/model.safetensors ../model.safetensors

Round to nearest, ties to even. Needs nothing but Python.
"""

import array
import json
import struct
import sys
from pathlib import Path


def bf16(data: bytes) -> bytes:
    """The upper halves of little-endian f32 values, rounded."""
    words = array.array("I", data)
    if sys.byteorder == "big":
        words.byteswap()
    halves = array.array("H", ((w + 0x7FFF + ((w >> 16) & 1)) >> 16 & 0xFFFF for w in words))
    if sys.byteorder == "big":
        halves.byteswap()
    return halves.tobytes()


def main() -> None:
    """Reads, rounds, writes."""
    source, target = map(Path, sys.argv[1:3])
    raw = source.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + length])
    header.pop("__metadata__", None)
    body, entries, at = bytearray(), {"__metadata__": {"format": "pt"}}, 0
    for name in sorted(header):
        start, end = header[name]["data_offsets"]
        data = raw[8 + length + start : 8 + length + end]
        match header[name]["dtype"]:
            case "F32":
                data = bf16(data)
            case "BF16":
                pass
            case other:
                sys.exit(f"{name} is {other}; F32 and BF16 are understood")
        entries[name] = {"dtype": "BF16", "shape": header[name]["shape"], "data_offsets": [at, at + len(data)]}
        body += data
        at += len(data)
    head = json.dumps(entries, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    target.write_bytes(struct.pack("<Q", len(head)) + head + bytes(body))
    print(f"{target}: {target.stat().st_size} bytes")


if __name__ == "__main__":
    main()
