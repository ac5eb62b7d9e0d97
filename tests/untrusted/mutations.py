"""Seeded damage to files: bytes that flip, move and go missing, and JSON with hostile values."""

import copy
import json
import random
import re
import struct

HUGE = 2**62
VALUES = (
    None, True, False, 0, 1, -1, 2, 7, 2**31, 2**63, -(2**63), HUGE, 10**400, 0.5, -0.0, 1e308,
    float("nan"), float("inf"), "", "x", "../../etc/passwd", "a\0b", "\ud800", "x" * 100_000,
    [], [[]], {}, [None], ["x"] * 5000, {"content": 3}, {"content": "x", "special": "yes"},
    {"type": "Sequence", "normalizers": []}, {"__class__": "os.system"},
)  # fmt: skip
KEYS = ("", "\0", "../x", "auto_map", "__proto__", "id", "x" * 1000, "vocab_size", "0")


def mutate(name: str, content: bytes, rng: random.Random) -> bytes:
    """Damages a file in the ways that its kind has."""
    if name.endswith(".json"):
        return mutate_json(content, rng)
    if name.endswith(".safetensors") and rng.random() < 0.6:
        return mutate_safetensors(content, rng)
    if name.endswith(".model") and rng.random() < 0.6:
        return mutate_message(content, rng)
    return mutate_bytes(content, rng)


def mutate_bytes(content: bytes, rng: random.Random) -> bytes:
    """Damages a file in one to four places, mostly where there are names."""
    data = bytearray(content)
    names = [match.start() for match in re.finditer(rb"[ -~]{4,}", content)]
    for _ in range(rng.choice((1, 1, 2, 4))):
        at = rng.randrange(len(data) + 1)
        if names and rng.random() < 0.7:
            at = max(0, rng.choice(names) + rng.randrange(-12, 24))
        at, size = min(at, len(data)), rng.choice((1, 2, 8, 100))
        kind = rng.randrange(7)
        if kind == 0 and at < len(data):
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            data[at : at + size] = rng.randbytes(size)
        elif kind == 2:
            data[at:at] = rng.randbytes(size)
        elif kind == 3:
            del data[at : at + size]
        elif kind == 4 and rng.random() < 0.3:
            del data[at:]
        elif kind == 5:
            data[at : at + 4096] = bytes(len(data[at : at + 4096]))
        else:
            data[at : at + 8] = rng.choice((HUGE, 2**64 - 1, len(data), 0)).to_bytes(8, "little")
    return bytes(data)


def mutate_safetensors(content: bytes, rng: random.Random) -> bytes:
    """Damages what the header says, and keeps the header whole."""
    size = int.from_bytes(content[:8], "little")
    header = mutate_json(content[8 : 8 + size], rng)
    return len(header).to_bytes(8, "little") + header + content[8 + size :]


def mutate_message(content: bytes, rng: random.Random) -> bytes:
    """Damages, drops, repeats and swaps fields of a protocol buffer, and keeps it one."""
    fields = list(_fields(content))
    for _ in range(rng.choice((1, 2, 8))):
        at, other = rng.randrange(len(fields)), rng.randrange(len(fields))
        if rng.random() < 0.3:  # the settings behind the pieces
            at = rng.randrange(max(0, len(fields) - 3), len(fields))
        tag, value = fields[at]
        kind = rng.randrange(5)
        if kind == 0:
            fields[at] = (tag, mutate_bytes(value, rng))
        elif kind == 1 and len(fields) > 1:
            del fields[at]
        elif kind == 2:
            fields.insert(other, (tag, value))
        elif kind == 3:
            fields[at], fields[other] = fields[other], fields[at]
        else:
            score = struct.pack("<f", rng.choice((float("nan"), float("inf"), -1e38, 0.0)))
            fields[at] = (tag, value + b"\x15" + score + b"\x18" + bytes([rng.randrange(8)]))
    return b"".join(tag + _varint(len(value)) + value for tag, value in fields)


def _fields(content: bytes):
    """The fields of a message that has only fields of bytes."""
    at = 0
    while at < len(content):
        tag, at, size, shift = content[at : at + 1], at + 1, 0, 0
        while True:
            byte, at = content[at], at + 1
            size |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                break
        yield tag, content[at : at + size]
        at += size


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])


def mutate_json(content: bytes, rng: random.Random) -> bytes:
    """Puts hostile values in place of one to three others, or damages the text itself."""
    if rng.random() < 0.15:
        return mutate_bytes(content, rng)
    value = json.loads(content)
    for _ in range(rng.choice((1, 1, 2, 3))):
        value = _mutated(value, rng)
    if rng.random() < 0.02:
        return b'{"a":' * 100_000
    return json.dumps(value, ensure_ascii=rng.random() < 0.9).encode("utf-8", "surrogatepass")


def _mutated(value, rng):
    """Walks down to some place and changes it."""
    if isinstance(value, dict | list) and value and rng.random() < 0.85:
        keys = list(value) if isinstance(value, dict) else range(len(value))
        key = rng.choice(keys)
        if rng.random() < 0.75:
            value[key] = _mutated(value[key], rng)
        elif rng.random() < 0.5:
            del value[key]
        elif isinstance(value, dict):
            value[rng.choice(KEYS)] = copy.deepcopy(value[key])
        else:
            value.append(copy.deepcopy(value[key]))
        return value
    if type(value) is int and rng.random() < 0.5:
        return value + rng.choice((-1, 1, 1000, 10**6))
    if isinstance(value, str) and rng.random() < 0.5:
        return value[:1] + rng.choice(("", "\0", "x", value))
    return copy.deepcopy(rng.choice(VALUES))
