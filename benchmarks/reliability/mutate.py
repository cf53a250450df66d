"""Makes files that are almost right: bytes, JSON, YAML and safetensors headers, changed at a few places.

Everything follows from a NumPy generator, so a seed and a number give the same file again.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import yaml

DEEP = 100_000  # levels: far more than Python's recursion
# What stands where something else is expected.
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 3, 2**16, 2**31, 2**63, 10**400, 0.5, -0.0, 1e308, float("nan"), float("inf")),
    *("", "x", "x" * 10_000, "\x1b[2J\x1b[31m", "a\nb\r\n---\n- c", "'\"`|<b>", "\u202e\u2028", "../../etc/passwd"),
    *("/etc/passwd", "/dev/zero", "hf-hub:someone/else", "http://127.0.0.1:9/x", "{{ 1/0 }}", "\ud800", "nan"),
    *([], [[]], [0], [-1, 2, 3], [2**20] * 3, ["a", None], list(range(1000))),
    *({}, {"": {}}, {"a": 1}, {"\x1b[31m": None}),
)
KEYS = ("", "__class__", "url", "file", "hf_hub_id", "custom_load", "pretrained_cfg", "\x1b[31m", "a\nb")
YAML_LINES = (
    '!!python/object/apply:os.system ["touch executed"]',
    "x: !!python/name:os.system",
    "a: &a [*a, *a]",
    "a: &a {<<: *a}",
    "bomb: [&a [0,0,0,0,0,0,0,0,0], &b [*a,*a,*a,*a,*a,*a,*a,*a,*a], &c [*b,*b,*b,*b,*b,*b,*b,*b,*b],"
    " &d [*c,*c,*c,*c,*c,*c,*c,*c,*c], &e [*d,*d,*d,*d,*d,*d,*d,*d,*d], &f [*e,*e,*e,*e,*e,*e,*e,*e,*e],"
    " &g [*f,*f,*f,*f,*f,*f,*f,*f,*f], &h [*g,*g,*g,*g,*g,*g,*g,*g,*g], &i [*h,*h,*h,*h,*h,*h,*h,*h,*h]]",
    "? [1, 2]\n: 3",
    "2001-01-01: 0o17",
    "--- second",
    "\t- x",
    "=: =",
)


def of_bytes(data: bytes, rng: np.random.Generator) -> bytes:
    """Bytes flipped, cut out, repeated, inserted, or cut off, at one to eight places."""
    changed = bytearray(data)
    for _ in range(int(rng.integers(1, 9))):
        start = (
            int(rng.integers(len(changed) + 1)) if rng.random() < 0.7 else int(rng.integers(min(len(changed), 64) + 1))
        )
        stop = start + int(rng.integers(1, 17))
        kind = rng.integers(6)
        if kind == 0:
            changed[start:stop] = rng.bytes(stop - start)
        elif kind == 1:
            del changed[start : start + int(rng.integers(1, len(changed) // 4 + 2))]
        elif kind == 2:
            changed[start:start] = changed[start:stop] * int(rng.integers(1, 100))
        elif kind == 3:
            changed[start:stop] = bytes([int(rng.choice([0, 1, 0x7F, 0x80, 0xFF]))]) * (stop - start)
        elif kind == 4 and start < len(changed):
            changed[start] ^= 1 << int(rng.integers(8))
        elif rng.random() < 0.2:
            del changed[start:]
    return bytes(changed)


def of_json(data: bytes, rng: np.random.Generator) -> bytes:
    """A JSON text with other values, keys or structure; some also, or only, with other bytes."""
    kind = rng.random()
    if kind < 0.15:
        return of_bytes(data, rng)
    if kind < 0.18:
        return data[:-2] + b',"deep":' + b"[" * DEEP + b"]" * DEEP + b"}"
    return json.dumps(_of_tree(json.loads(data), rng)).encode("utf-8", "surrogatepass")


def of_json_lines(data: bytes, rng: np.random.Generator) -> bytes:
    """The same for a text with a JSON value per line; mostly the last one counts."""
    lines = data.splitlines()
    number = int(rng.integers(len(lines))) if rng.random() < 0.2 else len(lines) - 1
    lines[number] = of_json(lines[number], rng)
    return b"\n".join(lines) if rng.random() < 0.95 else b""


def of_yaml(data: bytes, rng: np.random.Generator) -> bytes:
    """The same for a YAML text; some with tags, anchors and aliases."""
    kind = rng.random()
    if kind < 0.15:
        return of_bytes(data, rng)
    if kind < 0.4:
        lines = data.decode().splitlines()
        at = int(rng.integers(len(lines) + 1))
        lines[at:at] = [str(rng.choice(YAML_LINES))]
        if rng.random() < 0.5:
            name = lines[at - 1].partition(":")[0] if at else "x"
            lines[at - 1 : at + 1] = [f"{name}: {lines[at]}"]
        return "\n".join(lines).encode()
    if kind < 0.43:
        return data + b"deep: " + b"[" * 2000 + b"]" * 2000
    return yaml.dump(_of_tree(yaml.safe_load(data), rng), sort_keys=False).encode("utf-8", "surrogatepass")


def of_safetensors(data: bytes, rng: np.random.Generator) -> bytes:
    """A safetensors file with another header, or with other bytes."""
    if rng.random() < 0.3:
        return of_bytes(data[: 4096 if rng.random() < 0.5 else None], rng)
    (length,) = struct.unpack("<Q", data[:8])
    header = of_json(data[8 : 8 + length], rng)
    said = len(header) if rng.random() < 0.9 else int(rng.choice([0, 1, len(header) - 1, 2**32, 2**63]))
    return struct.pack("<Q", said) + header + data[8 + length :]


def _of_tree(tree: Any, rng: np.random.Generator) -> Any:
    for _ in range(int(rng.integers(1, 4))):
        tree = _once(tree, rng)
    return tree


def _once(tree: Any, rng: np.random.Generator) -> Any:
    """One value replaced, removed, renamed, added or moved, anywhere in a tree of dictionaries and lists."""
    if not isinstance(tree, (dict, list)) or not tree or rng.random() < 0.1:
        return _value(rng)
    keys = list(tree) if isinstance(tree, dict) else list(range(len(tree)))
    key: Any = keys[int(rng.integers(len(keys)))]
    if isinstance(tree[key], (dict, list)) and rng.random() < 0.7:
        tree[key] = _once(tree[key], rng)
        return tree
    kind = rng.integers(6)
    if kind == 0:
        del tree[key]
    elif kind == 1 and isinstance(tree, dict):
        tree[str(rng.choice(KEYS))] = tree.pop(key) if rng.random() < 0.3 else _value(rng)
    elif kind == 2:
        tree[key] = tree[keys[int(rng.integers(len(keys)))]]
    else:
        tree[key] = _value(rng)
    return tree


def _value(rng: np.random.Generator) -> Any:
    value = VALUES[int(rng.integers(len(VALUES)))]
    return json.loads(json.dumps(value))  # no two places share a list


MUTATORS: dict[str, Callable[[bytes, np.random.Generator], bytes]] = {
    "bytes": of_bytes,
    "json": of_json,
    "json lines": of_json_lines,
    "yaml": of_yaml,
    "safetensors": of_safetensors,
}
