"""Ways to spoil a file: of its bytes, and of the values in it where it is JSON."""

import json

INTERESTING_BYTES = bytes([0, 1, 0x22, 0x2C, 0x5B, 0x5D, 0x7B, 0x7F, 0x80, 0xC0, 0xED, 0xFE, 0xFF])
DEEP = 100_000
RAW = "\N{SNOWMAN}"  # stands in a dumped object for JSON that json.dumps does not write
VALUES = [
    "null", "true", "false", "0", "-0", "-1", "1", "2", "1e400", "-1e400", "1e-400", "1.5", "NaN", "Infinity",
    "9007199254740993", "9223372036854775807", "18446744073709551616", "9" * 400, "9" * 5000, '""', '"a"', '"nan"',
    '"\\u0000"', '"\\ud800"', '"../x"', '"/dev/zero"', '"' + "x" * 5000 + '"', "[]", "{}", "[[]]", '{"a": 1, "a": 2}',
    "[null, null]", '["a", "b"]', "[" * DEEP + "]" * DEEP, '{"a":' * 500 + "1" + "}" * 500,
]  # fmt: skip


def flip(data, random):
    at = random.randrange(len(data) * 8)
    return data[: at // 8] + bytes([data[at // 8] ^ 1 << at % 8]) + data[at // 8 + 1 :]


def truncate(data, random):
    return data[: random.randrange(len(data))]


def remove(data, random):
    start, length = random.randrange(len(data)), random.randint(1, 32)
    return data[:start] + data[start + length :]


def insert(data, random):
    at = random.randrange(len(data) + 1)
    return data[:at] + bytes(random.choice(INTERESTING_BYTES) for _ in range(random.randint(1, 8))) + data[at:]


def overwrite(data, random):
    at, length = random.randrange(len(data)), random.choice((1, 2, 4, 8))
    return data[:at] + bytes([random.choice(INTERESTING_BYTES)]) * length + data[at + length :]


def repeat(data, random):
    start, length = random.randrange(len(data)), random.randint(1, 64)
    return data[: start + length] + data[start : start + length] + data[start + length :]


BYTES = (flip, truncate, remove, insert, overwrite, repeat)


def splice(data, other, random):
    """The beginning of one and the end of another."""
    return data[: random.randrange(len(data) + 1)] + other[random.randrange(len(other) + 1) :]


def respell(data, random):
    """JSON with one value replaced, renamed, removed or doubled; what is no JSON, or is nested too deep, as it is."""
    try:
        return _respelt(json.loads(data), random)
    except (ValueError, RecursionError):
        return data


def _respelt(document, random):
    holders = list(_holders(document))
    if not holders:
        return random.choice(VALUES).encode()
    holder = random.choice(holders)
    key = random.choice(list(holder) if isinstance(holder, dict) else range(len(holder)))
    value, raw = random.choice(VALUES), ""
    action = random.randrange(6)
    if action == 0:
        del holder[key]
    elif action == 1 and isinstance(holder, dict):
        holder[random.choice((key.upper(), key + "x", ""))] = holder.pop(key)
    elif action == 2 and isinstance(holder, dict):
        raw = f"{json.dumps(holder[key])}, {json.dumps(key)}: {value}"
        holder[key] = RAW
    elif action == 3:
        raw = json.dumps(random.choice([v for h in holders for v in (h.values() if isinstance(h, dict) else h)]))
        holder[key] = RAW
    else:
        raw, holder[key] = value, RAW
    return json.dumps(document).replace(json.dumps(RAW), raw).encode()


def _holders(value):
    """Every object and array that is not empty."""
    if isinstance(value, (dict, list)) and value:
        yield value
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _holders(inner)


def mutate(data, seeds, random):
    """Spoiled once or a few times; `seeds` are other files that parts may come from."""
    data = data or random.choice(seeds)
    for _ in range(random.choice((1, 1, 1, 2, 4))):
        kind = random.randrange(4)
        if not data:
            break
        if kind == 0:
            data = splice(data, random.choice(seeds), random)
        elif kind == 1:
            data = random.choice(BYTES)(data, random)
        else:
            spoiled = respell(data, random)
            data = random.choice(BYTES)(data, random) if spoiled == data else spoiled
    return data
