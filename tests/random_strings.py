"""Random strings out of everything that pre-tokenizers treat differently, the same on every machine."""

import random

WORDS = ("'s", "'S", "'ll", "'LL", "'\u017f", "\u2019s", "don't", "DON'T", "<|endoftext|>", "<|endof", "text|>", "1234",
         "\u00bd", "\u212a", "camelCase", "x/y", "//", "\r\n", "\n\n")  # fmt: skip
SPACES = " \t\n\r\x0b\x0c\x1c\x1f\x85\xa0\u1680\u2003\u2028\u202f\u3000\u200b\ufeff"
BLOCKS = ((0x20, 0x7F), (0xA0, 0x17F), (0x300, 0x36F), (0x370, 0x52F), (0x590, 0x6FF), (0x900, 0x97F), (0xE00, 0xE7F),
          (0x1100, 0x11FF), (0x1E00, 0x1EFF), (0x2000, 0x2BFF), (0x3040, 0x30FF), (0x4E00, 0x9FFF), (0xAC00, 0xD7A3),
          (0xE000, 0xE0FF), (0x1D400, 0x1D7FF), (0x1F300, 0x1FAFF))  # fmt: skip
N_PARTS = 5_000


def random_strings(seed: int, n: int) -> list[str]:
    """`n` strings of up to 12 parts; every tenth is of scalar values drawn from all of Unicode."""
    draw = random.Random(seed)
    parts = [_part(draw) for _ in range(N_PARTS)]
    strings = []
    for i in range(n):
        if i % 10 == 9:
            strings.append("".join(_scalar(draw) for _ in range(draw.randint(1, 12))))
        else:
            strings.append("".join(draw.choices(parts, k=draw.randint(0, 12))))
    return strings


def _part(draw: random.Random) -> str:
    kind = draw.random()
    if kind < 0.25:
        return draw.choice(SPACES) * draw.randint(1, 3)
    if kind < 0.4:
        return draw.choice(WORDS)
    if kind < 0.6:
        return "".join(draw.choices("abcdefghijklmnopqrstuvwxyzABC", k=draw.randint(1, 8)))
    if kind < 0.7:
        return "".join(draw.choices("0123456789", k=draw.randint(1, 7)))
    low, high = draw.choice(BLOCKS)
    return "".join(chr(draw.randint(low, high)) for _ in range(draw.randint(1, 5)))


def _scalar(draw: random.Random) -> str:
    value = draw.randrange(0x110000 - 0x800)
    return chr(value if value < 0xD800 else value + 0x800)
