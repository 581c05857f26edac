"""A small batch job as people write them: parses, matches, hashes, compresses, sorts and prints.

Reads rows of text from standard input, writes a JSON file and a compressed one beside it, and prints a summary.
The output depends on nothing but the input and the size given as the first argument.
"""
import collections
import functools
import hashlib
import heapq
import itertools
import json
import math
import os
import re
import struct
import sys
import zlib
from dataclasses import dataclass, field, asdict

SIZE = int(sys.argv[1]) if len(sys.argv) > 1 else 100

WORD = re.compile(r"[a-z]+")
DATE = re.compile(r"(?P<year>\d{4})-(?P<month>\d\d)-(?P<day>\d\d)")
ADDRESS = re.compile(r"\b([a-z0-9.]+)@([a-z]+)\.(com|org|net)\b", re.IGNORECASE)


class Lcg:
    """Numbers that are the same on every machine."""

    def __init__(self, seed):
        self.state = seed

    def next(self, n):
        self.state = (self.state * 6364136223846793005 + 1442695040888963407) % (1 << 64)
        return (self.state >> 33) % n


@dataclass
class Record:
    ident: int
    name: str
    date: str
    amounts: list = field(default_factory=list)
    tags: dict = field(default_factory=dict)

    @property
    def total(self):
        return sum(self.amounts)


def make_records(count):
    random = Lcg(42)
    names = ["ada", "grace", "alan", "edsger", "barbara", "donald", "tony", "leslie"]
    for i in range(count):
        name = names[random.next(len(names))]
        date = "%04d-%02d-%02d" % (1990 + random.next(30), 1 + random.next(12), 1 + random.next(28))
        amounts = [random.next(100000) / 100 for _ in range(1 + random.next(6))]
        tags = {t: random.next(10) for t in ("red", "green", "blue")[: 1 + random.next(3)]}
        yield Record(i, name, date, amounts, tags)


def as_lines(records):
    for r in records:
        yield f"{r.ident}|{r.name}@example.org|{r.date}|{','.join('%.2f' % a for a in r.amounts)}"


def parse(line):
    ident, address, date, amounts = line.split("|")
    user, host, domain = ADDRESS.search(address).groups()
    when = DATE.fullmatch(date).groupdict()
    return {
        "id": int(ident),
        "user": user,
        "host": host + "." + domain,
        "date": {k: int(v) for k, v in when.items()},
        "amounts": [float(a) for a in amounts.split(",")],
    }


def word_count(lines):
    counts = collections.Counter()
    for line in lines:
        counts.update(WORD.findall(line.lower()))
    return counts


@functools.lru_cache(maxsize=None)
def collatz(n):
    return 0 if n == 1 else 1 + collatz(n // 2 if n % 2 == 0 else 3 * n + 1)


def primes(limit):
    sieve = bytearray([1]) * (limit + 1)
    sieve[0:2] = b"\0\0"
    for i in range(2, math.isqrt(limit) + 1):
        if sieve[i]:
            sieve[i * i :: i] = bytes(len(range(i * i, limit + 1, i)))
    return list(itertools.compress(range(limit + 1), sieve))


def shortest(graph, start):
    distance = {start: 0}
    queue = [(0, start)]
    while queue:
        d, node = heapq.heappop(queue)
        if d > distance[node]:
            continue
        for neighbour, weight in graph[node]:
            new = d + weight
            if new < distance.get(neighbour, math.inf):
                distance[neighbour] = new
                heapq.heappush(queue, (new, neighbour))
    return distance


def make_graph(nodes):
    random = Lcg(7)
    graph = collections.defaultdict(list)
    for i in range(nodes):
        for _ in range(4):
            graph[i].append((random.next(nodes), 1 + random.next(100)))
    return graph


def digest(data):
    return {name: hashlib.new(name, data).hexdigest() for name in ("md5", "sha1", "sha256", "sha512", "blake2b")}


def failing(depth):
    if depth == 0:
        raise ValueError("at the bottom")
    try:
        failing(depth - 1)
    except ValueError as error:
        if depth % 3 == 0:
            raise KeyError(depth) from error
        raise
    except KeyError as error:
        raise ValueError(f"after {error}") from error


def main():
    lines = list(as_lines(make_records(SIZE)))
    parsed = [parse(line) for line in lines]
    text = json.dumps(parsed, indent=1, sort_keys=True)
    assert json.loads(text) == parsed
    by_user = collections.defaultdict(float)
    for row in parsed:
        by_user[row["user"]] += math.fsum(row["amounts"])
    print("records", len(parsed), "bytes", len(text))
    for user, total in sorted(by_user.items(), key=lambda item: (-item[1], item[0])):
        print(f"{user:>10} {total:12.2f} {total / len(parsed):8.4f}")

    stdin = sys.stdin.read().splitlines()
    print("words", word_count(stdin).most_common(5))
    print("swapped", re.sub(r"(\w+) (\w+)", r"\2 \1", " ".join(stdin[:2]))[:60])

    data = text.encode()
    for name, value in digest(data).items():
        print(name, value)
    packed = zlib.compress(data, 6)
    assert zlib.decompress(packed) == data
    print("deflate", len(packed), zlib.crc32(data), zlib.adler32(data))
    stream = zlib.compressobj(9, zlib.DEFLATED, -15)
    pieces = b"".join(stream.compress(data[i : i + 1000]) for i in range(0, len(data), 1000)) + stream.flush()
    print("raw", len(pieces), hashlib.sha256(pieces).hexdigest()[:16])

    print("collatz", max(range(1, 20 * SIZE), key=collatz))
    print("primes", len(primes(200 * SIZE)), primes(200 * SIZE)[-3:])
    distance = shortest(make_graph(5 * SIZE), 0)
    print("graph", len(distance), sum(distance.values()))
    print("floats", *(repr(f(0.7)) for f in (math.sin, math.exp, math.log, math.tan, math.gamma, math.erf)))
    print("big", pow(3, 5 * SIZE, (1 << 521) - 1) % 10**20, math.factorial(200) % (10**9 + 7))
    print("struct", struct.pack("<hIqd", -2, 3, -(1 << 40), 0.1).hex())
    try:
        failing(8)
    except (ValueError, KeyError) as error:
        chain = 0
        while error is not None:
            chain, error = chain + 1, error.__cause__
        print("chain", chain)

    with open("report.json", "w") as out:
        out.write(text)
    with open("report.z", "wb") as out:
        out.write(packed)
    os.rename("report.z", "report.zlib")
    print("records again", len(list(map(asdict, make_records(3)))), file=sys.stderr)
    sys.exit(3 if len(parsed) != SIZE else 7)


main()
