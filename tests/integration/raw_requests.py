"""What a rude client sends: requests that are cut, doubled, spliced, and mixed with what HTTP does not allow."""

import random
from collections.abc import Iterator

BODY = b'{"prompt": "hi"}'

WHOLE = (
    b"POST /invocations HTTP/1.1\r\nHost: agent\r\nContent-Length: %d\r\n\r\n%s" % (len(BODY), BODY),
    b"POST /invocations HTTP/1.1\r\nHost: agent\r\nTransfer-Encoding: chunked\r\n\r\n10\r\n%s\r\n0\r\n\r\n" % BODY,
    b"POST /invocations HTTP/1.0\r\nContent-Length: %d\r\n\r\n%s" % (len(BODY), BODY),
    b'POST /invocations HTTP/1.1\r\nHost: agent\r\nContent-Length: 20\r\n\r\n{"prompt": "stream"}',
    b'POST /invocations HTTP/1.1\r\nHost: agent\r\nContent-Length: 18\r\n\r\n{"prompt": "fail"}',
    b"POST /invocations HTTP/1.1\r\nHost: agent\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n{}",
    b"GET /ping HTTP/1.1\r\nHost: agent\r\n\r\n",
    b"HEAD /ping HTTP/1.1\r\nHost: agent\r\n\r\n",
    b"GET /metrics HTTP/1.1\r\nHost: agent\r\n\r\n",
    b"GET /nowhere HTTP/1.1\r\nHost: agent\r\n\r\n",
    (
        b"GET /ws HTTP/1.1\r\nHost: agent\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n\x81\x85\x00\x00\x00\x00hello"
    ),
)

STRAY = (
    b"Content-Length: 7\r\n",
    b"Content-Length: -1\r\n",
    b"Content-Length: 99999999999999999999\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"Transfer-Encoding: gzip, chunked\r\n",
    b"Transfer-Encoding: identity\r\n",
    b"Transfer-Encoding : chunked\r\n",
    b" folded: value\r\n",
    b"X-Null: a\x00b\r\n",
    b"X-Bare: a\nb\r\n",
    b": no name\r\n",
    b"No colon\r\n",
    b"Upgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\n",
    b"Connection: close\r\n",
    b"Host: another\r\n",
    b"Host: a b\r\n",
    b"Expect: 200-ok\r\n",
    b"X-Amzn-Bedrock-AgentCore-Runtime-Session-Id: \xff\r\n",
    b"X-Long: " + 70_000 * b"a" + b"\r\n",
    300 * b"X-Many: a\r\n",
)

AFTERWARDS = (
    b"",
    b"\r\n\r\n",
    b"\x00\x01\x02",
    b"ffffffffffffffff\r\n",
    b"0;ext=" + 100 * b"a" + b"\r\n\r\n",
    b"GET / HTTP/9.9\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"\x88\x02\x03\xe8",
    b"\xff\xff\xff\xff\xff\xff\xff\xff",
)


def mutated(seed: int, count: int) -> Iterator[bytes]:
    """Raw requests, the same ones for a seed.

    Args:
        seed: Of the generator of random numbers.
        count: How many to make.
    """
    random_ = random.Random(seed)
    for _ in range(count):
        data = random_.choice(WHOLE)
        for mutate in random_.choices((cut, doubled, spliced, with_stray_header, followed, with_other_bytes), k=2):
            data = mutate(data, random_)
        yield data


def cut(data: bytes, random_: random.Random) -> bytes:
    return data[: random_.randrange(len(data) + 1)]


def doubled(data: bytes, _: random.Random) -> bytes:
    return data + data


def spliced(data: bytes, random_: random.Random) -> bytes:
    other = random_.choice(WHOLE)
    return data[: random_.randrange(len(data) + 1)] + other[random_.randrange(len(other)) :]


def with_stray_header(data: bytes, random_: random.Random) -> bytes:
    line, separator, rest = data.partition(b"\r\n")
    return line + separator + random_.choice(STRAY) + rest


def followed(data: bytes, random_: random.Random) -> bytes:
    return data + random_.choice(AFTERWARDS)


def with_other_bytes(data: bytes, random_: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(random_.randrange(1, 4)):
        if changed:
            changed[random_.randrange(len(changed))] = random_.randrange(256)
    return bytes(changed)
