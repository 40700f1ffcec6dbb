"""Send the predictor's page uploads, bombs and half-sent headers; print its memory before and after.

    python -m benchmarks.page --checkpoint DIR [--number 200]

The page runs as `hoi app` in a process of its own. Counted are its anonymous pages (Linux).
"""

from __future__ import annotations

import argparse
import http.client
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO

import numpy as np
from PIL import Image

from benchmarks.memory import anonymous_bytes

HALF_SENT = 70
LOCAL = "127.0.0.1"


def encoded(image: Image.Image, kind: str = "PNG") -> bytes:
    file = BytesIO()
    image.save(file, kind)
    return file.getvalue()


def hostile_files() -> dict[str, bytes]:
    """Return what is uploaded, by name."""
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (240, 320, 3), np.uint8))
    return {
        "noise": encoded(noise),
        "black": encoded(Image.new("RGB", (640, 480))),
        "bomb of 100 megapixels": encoded(Image.new("1", (10_000, 10_000))),
        "1 x 49000000 pixels": encoded(Image.new("1", (49_000_000, 1))),
        "cut": encoded(noise, "JPEG")[:-5000],
        "text": b"Dear diary, this is no photograph.",
        "too large": bytes(26_000_000),
    }


def upload(port: int, body: bytes, *, chunked: bool = False) -> int:
    """Post a body to the page and return the status of the answer; 0 where there is none."""
    connection = http.client.HTTPConnection(LOCAL, port, timeout=60)
    try:
        pieces = (body[start : start + 65_536] for start in range(0, len(body), 65_536)) if chunked else body
        connection.request("POST", "/predict", pieces, encode_chunked=chunked, headers=CHUNKED if chunked else {})
        return connection.getresponse().status
    except OSError:
        return 0
    finally:
        connection.close()


CHUNKED = {"Transfer-Encoding": "chunked"}


@contextmanager
def half_sent_headers(port: int, number: int = HALF_SENT) -> Iterator[None]:
    """Hold connections open whose requests never end."""
    held = []
    try:
        for _ in range(number):
            held.append(socket.create_connection((LOCAL, port), timeout=10))
            held[-1].sendall(b"POST /predict HTTP/1.1\r\nHost: localhost\r\nX-Slow: ")
        yield
    finally:
        for raw in held:
            raw.close()


def flood(port: int, number: int) -> Counter[tuple[str, int]]:
    """Upload hostile files in turn under half-sent headers, and count the answers by file and status."""
    files, answers = hostile_files(), Counter[tuple[str, int]]()
    for row in range(number):
        name = list(files)[row % len(files)]
        # Now and then, since the page closes what is slow.
        if row % 50 == 0:
            with half_sent_headers(port):
                answers["whole, under half-sent headers", upload(port, files["noise"])] += 1
        answers[name, upload(port, files[name], chunked=row % 2 == 1)] += 1
    return answers


def measure(checkpoint: str, number: int) -> str:
    """Return the table of answers, memory and whether the page still answers."""
    command = [sys.executable, "-m", "hoi", "app", "--checkpoint", checkpoint, "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as page:
        assert page.stdout is not None
        try:
            port = next(int(line.split("/")[2].split(":")[1]) for line in page.stdout if line.startswith("http://"))
            body = hostile_files()["noise"]
            # What the libraries allocate once is no growth.
            flood(port, 14)
            before, start = anonymous_bytes(page.pid), time.perf_counter()
            answers = flood(port, number)
            seconds, after = time.perf_counter() - start, anonymous_bytes(page.pid)
            alive = upload(port, body) == 200
        finally:
            page.terminate()
    rows = [f"{status:6d}  {count:6d}  {name}" for (name, status), count in sorted(answers.items())]
    memory = f"memory: {before / 1e6:.0f} MB before, {after / 1e6:.0f} MB after; alive: {'yes' if alive else 'NO'}"
    return "\n".join(
        [f"{number} uploads to the page in {seconds:.0f} s", "", "status  answers  upload", *rows, "", memory]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--checkpoint", required=True, help="the folder that hoi checkpoint made")
    parser.add_argument("--number", type=int, default=200)
    given = parser.parse_args()
    print(measure(given.checkpoint, given.number))


if __name__ == "__main__":
    main()
