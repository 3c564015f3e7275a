"""Hostile bodies: pictures that are none or far too large, and fields of every wrong kind."""

import base64
import functools
import io
import json
import random
import struct
import zlib
from collections.abc import Callable
from typing import Any

from PIL import Image

Body = tuple[str, bytes]
"""Content type, and what is sent."""
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "TGA", "PCX", "ICO", "EPS", "PDF")
FIELDS = (
    *("model", "layers", "queries", "dense", "calibration", "prompt", "smoothing"),
    *("max_new_tokens", "points", "words", "keep", "image", "images", "source", "__class__"),
)
BOUNDARY = "frontier"
WRONG: tuple[Any, ...] = (
    *(None, True, 0, -1, 1e308, -0.0, 10**30, 2**63, "", "\x00", "all", "\ud83d\ude00" * 50),
    *([], {}, [[]], [None], {"a": {}}, "x" * 20_000, ["x"] * 3000, "%s%n{0}", "../../etc/passwd"),
    *("'; DROP TABLE models; --", "<script>alert(1)</script>", "\u202e\u0000\uffff", [[0.5]]),
    *([[2, 3]], [["a", "b"]], [[0.5, 0.5, 0.5]], [[1e400, 0]], [0.1, 0.2], "NaN", "1e999"),
)


def small_picture(rng: random.Random, kind: str = "PNG") -> bytes:
    """A file of a few colours."""
    size = rng.randint(4, 64), rng.randint(4, 64)
    colour = tuple(rng.randrange(256) for _ in range(3))
    stream = io.BytesIO()
    Image.new("RGB", size, colour).save(stream, kind)
    return stream.getvalue()


def truncated(rng: random.Random) -> bytes:
    """A picture that ends early."""
    data = small_picture(rng, rng.choice(FORMATS[:7]))
    return data[: rng.randrange(len(data))]


def damaged(rng: random.Random) -> bytes:
    """A picture, of any kind that Pillow writes, with some bytes changed."""
    data = bytearray(small_picture(rng, rng.choice(FORMATS)))
    for _ in range(rng.randint(1, 20)):
        data[rng.randrange(len(data))] = rng.randrange(256)
    return bytes(data)


def png(width: int, height: int, data: bytes, chunks: list[tuple[bytes, bytes]]) -> bytes:
    """A PNG whose parts need not agree."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = [(b"IHDR", header), *chunks, (b"IDAT", data), (b"IEND", b"")]
    out = b"\x89PNG\r\n\x1a\n"
    for name, content in parts:
        check = zlib.crc32(name + content)
        out += struct.pack(">I", len(content)) + name + content + struct.pack(">I", check)
    return out


def bomb(rng: random.Random) -> bytes:
    """A small file that wants to be a large picture, or to unpack to much else."""
    zeros, text = _zeros(rng.choice([10**5, 10**7])), b"k\x00\x00" + _zeros(10**7)
    return rng.choice(
        [
            lambda: png(2**31 - 1, 2**31 - 1, zeros, []),
            lambda: png(30_000, 30_000, zeros, []),
            lambda: png(0, 0, zeros, []),
            lambda: png(2**20, 4, zeros, []),
            lambda: png(4, 2**20, zeros, []),
            lambda: png(999, 999, zeros, []),
            lambda: png(8, 8, zeros, [(b"zTXt", text)] * rng.randint(1, 5)),
            lambda: png(8, 8, zeros, [(b"iCCP", text)]),
            lambda: _header(b"GIF89a", struct.pack("<HHBBB", 65_535, 65_535, 0xF7, 0, 0), rng),
            lambda: _header(
                b"BM", struct.pack("<IIIIiiHHI", 99, 0, 54, 40, 2**30, 9, 1, 24, 0), rng
            ),
            lambda: _header(b"P6\n99999 99999\n255\n", b"", rng),
            lambda: _header(b"II*\x00\x08\x00\x00\x00", struct.pack("<H", 65_535), rng),
            lambda: _header(b"RIFF\xff\xff\xff\xffWEBPVP8X", bytes(4) + b"\xff" * 6, rng),
            lambda: _header(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 99999 99999\n", b"", rng),
            _frames,
        ]
    )()


def _header(magic: bytes, rest: bytes, rng: random.Random) -> bytes:
    return magic + rest + rng.randbytes(rng.randint(0, 2000))


@functools.cache
def _zeros(count: int) -> bytes:
    return zlib.compress(bytes(count), 9)


@functools.cache
def _frames() -> bytes:
    stream = io.BytesIO()
    frames = [Image.new("P", (300, 300), i % 250) for i in range(60)]
    frames[0].save(stream, "GIF", save_all=True, append_images=frames[1:])
    return stream.getvalue()


def noise(rng: random.Random) -> bytes:
    """No picture at all."""
    return rng.choice([b"", b"\x00", b"<svg/>", b"GIF89a", rng.randbytes(rng.randint(1, 5000))])


PICTURES: tuple[Callable[[random.Random], bytes], ...] = (truncated, damaged, bomb, noise)


def form(parts: list[tuple[str, bytes]]) -> Body:
    """A multipart body of parts as they are: headers after `Content-Disposition: `, content."""
    lines = b""
    for header, content in parts:
        head = f"--{BOUNDARY}\r\nContent-Disposition: {header}\r\n\r\n".encode("utf-8", "replace")
        lines += head + content + b"\r\n"
    return f"multipart/form-data; boundary={BOUNDARY}", lines + f"--{BOUNDARY}--\r\n".encode()


def file_part(data: bytes, name: str = "x.png") -> tuple[str, bytes]:
    """The part that a picture's file is."""
    return f'form-data; name="image"; filename="{name}"', data


def form_of_picture(rng: random.Random) -> Body:
    """A whole form around a bad picture."""
    return form([file_part(rng.choice(PICTURES)(rng)), ('form-data; name="dense"', b"false")])


def form_of_fields(rng: random.Random) -> Body:
    """A good picture, and fields that are wrong."""
    parts = [file_part(small_picture(rng))]
    for _ in range(rng.randint(1, 4)):
        value = rng.choice(WRONG)
        text = value if isinstance(value, str) else json.dumps(value)
        content = rng.choice([text.encode("utf-8", "replace"), rng.randbytes(30)])
        parts.append((f'form-data; name="{rng.choice(FIELDS)}"', content))
    return form(parts)


def form_of_tricks(rng: random.Random) -> Body:
    """Names, boundaries and counts that parsers stumble over."""
    kind, whole = form([file_part(small_picture(rng), "../../../../etc/passwd\x00.png")])
    many = [(f'form-data; name="{"q" * rng.randint(1, 50)}"', b"x")] * rng.choice([500, 3000])
    return rng.choice(
        [
            lambda: (kind, whole),
            lambda: (kind, whole[: rng.randrange(len(whole))]),
            lambda: (kind.replace(BOUNDARY, "another"), whole),
            lambda: ("multipart/form-data", whole),
            lambda: ("multipart/form-data; boundary=", whole),
            lambda: (f"multipart/form-data; boundary={'b' * 5000}", whole),
            lambda: ("multipart/mixed; boundary=frontier", whole),
            lambda: (kind + "; charset=utf-7", whole),
            lambda: form(many),
            lambda: form([("form-data", b"x")]),
            lambda: form([('form-data; name="image', b"x")]),
            lambda: form([('attachment; name="image"', b"x")]),
            lambda: form([file_part(small_picture(rng))] * rng.choice([2, 80])),
            lambda: form([('form-data; name="' + "n" * 70_000 + '"', b"x")]),
            lambda: form([('form-data; name="prompt"', b"x" * 50_000)]),
            lambda: (kind, whole.replace(b"\r\n", b"\n")),
            lambda: (kind, whole + rng.randbytes(1000)),
        ]
    )()


def document(rng: random.Random) -> Body:
    """JSON with wrong values in some fields."""
    picture = rng.choice([small_picture, *PICTURES])(rng)
    found: dict[str, Any] = {"image": base64.b64encode(picture).decode(), "dense": False}
    for _ in range(rng.randint(1, 4)):
        found[rng.choice(FIELDS)] = rng.choice(WRONG)
    return "application/json", json.dumps(found).encode()


def nonsense(rng: random.Random) -> Body:
    """What is no JSON, or more of it than anybody needs."""
    depth = rng.choice([50, 1000, 50_000])
    data = rng.choice(
        [
            b"",
            b"{",
            b"[" * depth,
            b'{"a":' * depth,
            b"[" * depth + b"]" * depth,
            b'{"image":' + b"[" * depth + b"]" * depth + b"}",
            b'{"image": NaN}',
            b'{"image": "aGk=", "smoothing": Infinity}',
            b'{"image": "aGk=", "smoothing": 1e999}',
            b'{"image": "aGk=", "smoothing": ' + b"9" * 10_000 + b"}",
            b'{"image": "aGk=", "image": "aGk="}',
            b'{"image": "\xff\xfe"}',
            b'{"image": "\\ud800"}',
            b"\xff\xfe{\x00}\x00",
            b"\xef\xbb\xbf{}",
            b"null",
            b'"' + b"x" * 100_000 + b'"',
            b'{"' + b"k" * 50_000 + b'": 1}',
            b"{" + b",".join(b'"k%d":0' % i for i in range(8000)) + b"}",
            rng.randbytes(rng.randint(1, 3000)),
        ]
    )
    return "application/json", data


def other_type(rng: random.Random) -> Body:
    """A content type that nobody offers, or that is none."""
    kinds = ["text/plain", "application/xml", "application/x-www-form-urlencoded", "image/png"]
    kinds += ["application/json; charset=utf-16", "*/*", "x" * 3000, "application/json\x0b", ""]
    return rng.choice(kinds), rng.choice([document(rng)[1], small_picture(rng), b"image=x"])


BODIES: tuple[Callable[[random.Random], Body], ...] = (
    *(form_of_picture, form_of_fields, form_of_tricks, document, nonsense, other_type),
)
