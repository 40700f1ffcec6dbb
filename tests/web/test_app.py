"""The pages: one server with a small student, asked over plain HTTP and driven in headless Chromium."""

from __future__ import annotations

import base64
import http.client
import importlib
import json
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from hoi.config import PipelineConfig, WorldDataset
from hoi.datasets import open_images
from hoi.errors import UserError
from hoi.evaluation.score import score
from hoi.prediction import Predictor
from tests.fakes.browser import requested, set_up
from tests.fakes.pipelines import refused

pytest.importorskip("starlette", reason="starlette is not installed (the extra app)")
pytest.importorskip("uvicorn", reason="uvicorn is not installed (the extra app)")

import hoi.web
from benchmarks.page import flood, half_sent_headers
from hoi.web import server
from hoi.web.app import PredictPage, serve_app
from hoi.web.check_page import MarkingPage, check_page, export, open_session
from hoi.web.server import announcement, make_app, make_server, open_socket

NUM_IMAGES = 12
LISTED = 200
"""Triplets that the page lists at most."""
MAX_UPLOAD_MB, MAX_MEGAPIXELS = 2.0, 50.0


@dataclass(frozen=True)
class Site:
    """A running server and what it serves: a predictor, and the predictions of the images in `folder/images`."""

    port: int
    predictor: Predictor
    marking: MarkingPage
    folder: Path

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def ask(
        self, method: str, path: str, body: bytes | None = None, **headers: str
    ) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
        answer = connection.getresponse()
        content = answer.read()
        connection.close()
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}, content

    def upload(self, body: bytes, name: str = "image.png") -> tuple[int, dict[str, Any]]:
        status, _, content = self.ask("POST", "/predict", body, x_file_name=name)
        return status, json.loads(content)

    @contextmanager
    def posting(self, header: bytes, body: bytes = b"") -> Iterator[socket.socket]:
        with socket.create_connection(("127.0.0.1", self.port), timeout=10) as raw:
            raw.sendall(b"POST /predict HTTP/1.1\r\nHost: localhost\r\n%s\r\n\r\n%s" % (header, body))
            yield raw

    @property
    def png(self) -> bytes:
        return (self.folder / "images" / "scene-1.png").read_bytes()


@pytest.fixture(scope="module")
def site(trained: PipelineConfig, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("site")
    predictor = Predictor.from_checkpoint(Path(trained.output).parent / "checkpoint", device="cpu")
    images, lines = folder / "images", []
    images.mkdir()
    source = open_images(WorldDataset(name="world", splits={"test": NUM_IMAGES}), "test")
    for row in range(NUM_IMAGES):
        name = f"scene-{row}.png"
        Image.fromarray(source.read(row)).save(images / name)
        for triplet in predictor(images / name).to_dict()["triplets"]:
            keys = ("human_xyxy", "object_xyxy", "verb", "object", "score")
            lines.append(json.dumps({"file_name": name, **{key: triplet[key] for key in keys}}))
    (folder / "predictions.jsonl").write_text("\n".join(lines))
    session, read = open_session(folder / "predictions.jsonl", images, None, None, folder / "check", 50, 0)
    predicting = PredictPage(predictor, MAX_UPLOAD_MB, MAX_MEGAPIXELS)
    marking = MarkingPage(session, read, partial(export, session, folder / "check"))
    app = make_app([*predicting.routes(), *marking.routes()], predicting.facts, checking=True)
    with open_socket("127.0.0.1", 0) as listener:
        running = make_server(app)
        thread = threading.Thread(target=running.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        yield Site(listener.getsockname()[1], predictor, marking, folder)
        running.should_exit = True
        thread.join(20)


def encoded(image: Image.Image, kind: str = "PNG") -> bytes:
    file = BytesIO()
    image.save(file, kind)
    return file.getvalue()


@pytest.fixture(scope="module")
def bomb() -> bytes:
    """A hundred megapixels in a few kilobytes."""
    return encoded(Image.new("1", (10_000, 10_000)))


def test_an_upload_comes_back_as_the_predictors_result(site: Site) -> None:
    status, answer = site.upload(site.png, "caf%C3%A9%20%3Cb%3E.png")
    assert status == 200
    pixels = np.array(Image.open(site.folder / "images" / "scene-1.png"))
    expected = site.predictor.predict([pixels], ["café <b>.png"])[0].to_dict()
    assert answer["result"] == json.loads(json.dumps(expected))
    assert len(answer["result"]["triplets"]) > 0
    shown = Image.open(BytesIO(base64.b64decode(answer["picture"].split(",")[1])))
    assert shown.size == (answer["result"]["size_hw"][1], answer["result"]["size_hw"][0])
    assert np.abs(np.asarray(shown, float) - pixels).mean() < 8


def test_what_is_no_image_is_refused_and_the_server_lives_on(site: Site, bomb: bytes) -> None:
    for body, name, status, reason in (
        (encoded(Image.new("1", (49_000_000, 1))), "line.png", 413, "one side is over 300 times the other"),
        (bomb, "bomb.png", 413, "10000 x 10000 pixels, more than the limit of 50000000"),
        (b"Dear diary, this is no photograph.", "holiday.jpg", 415, "the file is no image"),
        (b"", "nothing.png", 400, "the file is empty"),
        (site.png[:500], "half.png", 415, "the file is corrupt"),
        (site.png, "..%2F..%2Fetc%2Fpasswd", 400, "it is a path"),
        (site.png, "C%3A%5Cboot.ini", 400, "it is a path"),
        (site.png, "..", 400, "it is a path"),
        (site.png, "a%00.png", 400, "it holds control characters"),
        (site.png, 300 * "a", 400, "1 to 255 letters"),
    ):
        given, answer = site.upload(body, name)
        assert (given, reason in answer["error"]) == (status, True), (name, answer)
        assert site.upload(site.png)[0] == 200


def test_too_large_an_upload_is_refused_before_it_is_read(site: Site) -> None:
    with site.posting(b"Content-Length: 10000000000") as raw:
        assert raw.recv(65_536).startswith(b"HTTP/1.1 413 ")
    # Without a length, it is cut off where it passes the limit: the answer is read even by a client that sends on.
    piece = b"80000\r\n" + b"x" * 0x80000 + b"\r\n"
    with site.posting(b"Transfer-Encoding: chunked", 20 * piece + b"0\r\n\r\n") as raw:
        assert raw.recv(65_536).startswith(b"HTTP/1.1 413 ")
    with site.posting(b"Transfer-Encoding: chunked") as raw, pytest.raises(OSError):  # noqa: PT012
        for _ in range(200):
            raw.sendall(piece)
        raise AssertionError("a hundred megabytes were taken")
    assert site.upload(site.png)[0] == 200


def test_half_sent_headers_shut_nobody_out(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    with half_sent_headers(site.port, 70):
        assert site.upload(site.png)[0] == 200
    monkeypatch.setattr(server, "HEADER_TIMEOUT_S", 0.2)
    for begun in (b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\nGET / HT", b"GET / HT"):
        with socket.create_connection(("127.0.0.1", site.port), timeout=10) as raw:
            raw.sendall(begun)
            answers = b"".join(iter(lambda: raw.recv(65_536), b""))
            assert answers.count(b"HTTP/1.1 408 ") == 1
            assert answers.count(b"HTTP/1.1 200 ") == begun.count(b"/1.1")


def test_the_servers_own_answers_have_the_policy_too(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(sent: bytes) -> bytes:
        with socket.create_connection(("127.0.0.1", site.port), timeout=10) as raw:
            raw.sendall(sent)
            return b"".join(iter(lambda: raw.recv(65_536), b""))

    monkeypatch.setattr(server, "HEADER_TIMEOUT_S", 0.2)
    monkeypatch.setattr(server, "MAX_OF_CLIENT", 1)
    answers = {b"400": answer(b"no request\r\n\r\n"), b"408": answer(b"GET /")}
    # Where each connection has a request under way, none gives its place to another.
    with site.posting(b"Content-Length: 100", b"half"):
        time.sleep(0.1)
        answers[b"503"] = answer(b"")
    for status, content in answers.items():
        assert content.startswith(b"HTTP/1.1 " + status)
        for name, value in server.HEADERS.items():
            assert content.count(f"\r\n{name}: {value}\r\n".encode()) == 1, (status, name)


def test_an_image_that_needs_too_much_memory_is_refused(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hoi.web.app.free_memory_bytes", lambda: 1000)
    assert site.upload(site.png)[0] == 413
    monkeypatch.undo()

    def fail(*_: Any) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(site.predictor, "predict", fail)
    assert site.upload(site.png)[0] == 413
    monkeypatch.undo()
    assert site.upload(site.png)[0] == 200


def test_a_slow_or_broken_upload_is_refused(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "UPLOAD_TIMEOUT_S", 0.2)
    with site.posting(b"Content-Length: 100", b"half") as raw:
        assert raw.recv(65_536).startswith(b"HTTP/1.1 408 ")
    assert site.upload(site.png)[0] == 200


def test_nothing_of_an_upload_touches_the_disk(site: Site) -> None:
    opened: list[str] = []
    watching = [True]

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        writes = event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+")
        if watching[0] and (writes or event.startswith(("tempfile.", "os.rename", "os.mkdir"))):
            opened.append(f"{event} {arguments[0]}")

    sys.addaudithook(audit)
    noise = np.random.default_rng(0).integers(0, 255, (700, 700, 3), np.uint8)
    body = encoded(Image.fromarray(noise))
    assert len(body) > 1_200_000
    assert site.upload(body)[0] == 200
    watching[0] = False
    assert opened == []


def test_one_image_at_a_time_is_predicted_and_few_wait(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    inside, most, real = [0], [0], site.predictor.predict

    def slow(*arguments: Any) -> Any:
        inside[0] += 1
        most[0] = max(most[0], inside[0])
        time.sleep(0.15)
        inside[0] -= 1
        return real(*arguments)

    monkeypatch.setattr(site.predictor, "predict", slow)
    statuses: list[int] = []
    threads = [threading.Thread(target=lambda: statuses.append(site.upload(site.png)[0])) for _ in range(9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1]
    assert set(statuses) == {200, 503}
    assert statuses.count(200) >= 5
    assert site.upload(site.png)[0] == 200


def test_a_failure_of_the_models_is_told_and_survived(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise UserError("the device is out of memory", fix="a smaller image")

    monkeypatch.setattr(site.predictor, "predict", fail)
    status, answer = site.upload(site.png)
    assert (status, answer["error"]) == (500, "the device is out of memory · next: a smaller image")
    monkeypatch.undo()
    assert site.upload(site.png)[0] == 200


def test_foreign_hosts_and_origins_are_refused(site: Site) -> None:
    for host in ("localhost", f"127.0.0.1:{site.port}", "[::1]:80"):
        assert site.ask("GET", "/", Host=host)[0] == 200, host
    foreign = ("evil.example", "127.0.0.1.evil.example", "localhost.evil.example", "evil.example@127.0.0.1")
    for host in (*foreign, "127.0.0.1/evil.example", "", "a:b:c"):
        assert site.ask("GET", "/", Host=host)[0] == 403, host
    for origin in ("http://evil.example", "null", f"http://localhost:{site.port}"):
        assert site.ask("POST", "/predict", site.png, Origin=origin)[0] == 403, origin
    assert site.ask("POST", "/predict", site.png, Sec_Fetch_Site="cross-site")[0] == 403
    assert site.ask("POST", "/predict", site.png, Origin=site.address, Sec_Fetch_Site="same-origin")[0] == 200


def test_every_answer_has_a_strict_security_policy(site: Site) -> None:
    found = {"/": 200, "/check": 200, "/static/app.css": 200}
    for path, status in {**found, "/static/..%2Fserver.py": 404, "/no": 404, "/predict": 405}.items():
        given, headers, content = site.ask("GET", path)
        assert given == status, path
        assert headers["content-security-policy"].startswith("default-src 'none'; script-src 'self';")
        assert headers["x-content-type-options"] == "nosniff"
        assert "access-control-allow-origin" not in headers
        if path in ("/", "/check"):
            assert not any(text in content for text in (b"http:", b"https:", b"<script>", b"style="))


def test_marks_are_kept_undone_and_exported(site: Site) -> None:
    def state(path: str, body: bytes | None = None) -> dict[str, Any]:
        return json.loads(site.ask("GET" if body is None else "POST", path, body)[2])

    row = state("/check/state")["triplet"]["row"]
    image = Image.open(BytesIO(site.ask("GET", f"/check/image/{row}")[2]))
    assert list(image.size) == state("/check/state")["triplet"]["size_hw"]
    after = state("/check/mark", b'{"row": %d, "verdict": "right"}' % row)
    # The person who marks does not see the score.
    assert (after["num_marked"], "score" in after["triplet"]) == (1, False)
    assert state("/check/results")["rows"][0]["num_right"] == 1
    [annotation] = site.ask("GET", "/check/annotations.jsonl")[2].splitlines()
    assert "verb" in json.loads(annotation)
    assert all(Path(file).is_file() for file in state("/check/export", b"{}")["files"])
    assert state("/check/undo", b"{}")["num_marked"] == 0


def test_malformed_marks_are_refused(site: Site) -> None:
    rows = ('{"row": 0}', '{"row": true, "verdict": "right"}', '{"row": -1, "verdict": "right"}', "{", "[]", "[" * 900)
    for body in (*rows, '{"row": 0, "verdict": "maybe"}', "", "x" * 2000):
        status, _, content = site.ask("POST", "/check/mark", body.encode())
        assert 400 <= status < 500, body
        assert json.loads(content)["error"]
    assert site.ask("GET", "/check/image/999999")[0] == 404
    assert json.loads(site.ask("GET", "/check/state")[2])["num_marked"] == 0


def test_a_page_that_others_can_reach_warns_in_capitals(site: Site) -> None:
    with open_socket("0.0.0.0", 0) as listener:
        assert announcement(listener, "/").startswith("WARNING: EVERYBODY WHO REACHES THIS MACHINE")
    with open_socket("127.0.0.1", 0) as listener:
        assert announcement(listener, "/check").endswith("/check  (this machine only; Ctrl-C stops it)")


def test_wrong_options_are_told_before_models_are_loaded(site: Site) -> None:
    for option, value, where in (
        ("port", site.port, f"127.0.0.1, port {site.port}"),
        ("max_upload_mb", -1, "--max-upload-mb"),
        ("max_megapixels", float("inf"), "--max-megapixels"),
    ):
        error = refused(serve_app, site.predictor.checkpoint, device="no such device", **{option: value})
        assert error.where == where


def test_without_the_libraries_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    error = refused(importlib.reload, hoi.web)
    assert (error.got, "pip install" in str(error.fix)) == ("no uvicorn", True)


def until(browser: Any, script: str, seconds: float = 60) -> Any:
    """What a script gives, as soon as it is true."""
    end = time.monotonic() + seconds
    while not (found := browser.execute_script(f"return {script}")):
        assert time.monotonic() < end, f"{script} never held"
        time.sleep(0.05)
    return found


SHOWN = "document.querySelectorAll('#triplets .triplet').length"
SLIDE = "const t = document.getElementById('threshold'); t.value = arguments[0]; t.dispatchEvent(new Event('input'));"


@pytest.mark.slow
def test_in_chromium_an_image_is_drawn_and_its_json_downloaded(
    browser: Any, site: Site, bomb: bytes, tmp_path: Path
) -> None:
    run = browser.execute_script
    set_up(browser, 1280, "light")
    browser.get(site.address)
    file = browser.find_element("id", "file")
    for name, content, reason in (
        ("bomb.png", bomb, "more than the limit"),
        ("text.jpg", b"Dear diary", "no image"),
        ("large.png", bytes(int(MAX_UPLOAD_MB * 1e6) + 1), "larger than 2 MB"),
    ):
        (tmp_path / name).write_bytes(content)
        file.send_keys(str(tmp_path / name))
        until(browser, f"document.getElementById('error').textContent.includes('{reason}')")
        assert browser.find_element("id", "error").text.startswith(name)
    run(
        "const held = new DataTransfer(); held.items.add(new File(['x'], '../../<b>.png'));"
        "window.dispatchEvent(new DragEvent('drop', {dataTransfer: held, cancelable: true}));"
    )
    until(browser, "document.getElementById('error').textContent.includes('it is a path')")
    assert run("return document.querySelectorAll('#error b, #found:not([hidden])').length") == 0

    path = min((site.folder / "images").iterdir(), key=lambda image: abs(len(site.predictor(image).triplets) - 40))
    expected = json.loads(json.dumps(site.predictor(path).to_dict()))
    scored = [triplet for triplet in expected["triplets"] if triplet["verb"] != "no_interaction"]
    file.send_keys(str(path))
    until(browser, "document.querySelector('.scene image')?.getBoundingClientRect().width > 100")
    assert run("return document.getElementById('error').textContent") == ""
    for name, key in (("student", "score"), ("direct CLIP", "teacher_score")):
        browser.find_element("xpath", f"//span[text()='{name}']/..").click()
        for position in (0.3, 0.1, 0):
            run(SLIDE, position)
            count = sum(triplet[key] >= position**2 for triplet in scored)
            assert run(f"return {SHOWN}") == min(count, LISTED)
            assert run("return document.getElementById('count').textContent").startswith(f"{count} of {len(scored)} ")
        phrases = run("return [...document.querySelectorAll('.triplet .phrase')].map(e => e.textContent)")
        assert phrases == [each["phrase"] for each in sorted(scored, key=lambda each: -each[key])[:LISTED]]
    # Boxes lie where the result says, in the image's own pixels.
    pairs = {(triplet["human_idx"], triplet["object_idx"]) for triplet in scored}
    lefts = run("return [...document.querySelectorAll('.pair .line.human')].map(box => +box.getAttribute('x'))")
    assert sorted(lefts) == sorted(expected["detections"][human]["xyxy"][0] for human, _ in pairs)

    # By keyboard alone: a focused triplet highlights its pair, Enter pins it, Escape lets it go.
    first = browser.find_element("css selector", ".triplet")
    run("arguments[0].focus()", first)
    assert run("return document.querySelectorAll('.pair:not(.dim)').length") == 1
    first.send_keys("\ue007")
    assert first.get_attribute("aria-pressed") == "true"
    first.send_keys("\ue00c")
    assert first.get_attribute("aria-pressed") == "false"

    browser.find_element("id", "download").click()
    saved = browser.downloads / path.with_suffix(".json").name
    end = time.monotonic() + 10
    while not saved.is_file() and time.monotonic() < end:
        time.sleep(0.02)
    assert json.loads(saved.read_text()) == expected
    for width in (390, 1280):
        set_up(browser, width, "dark")
        assert run("return document.documentElement.scrollWidth") <= width
    named = "e => e.labels?.length || e.textContent.trim()"
    assert run(f"return [...document.querySelectorAll('input, button, a')].every({named})")


PRESS = """
const [begin, keys, finished] = arguments;
const done = document.getElementById("done");
const press = () => document.dispatchEvent(new KeyboardEvent("keydown", { key: keys.shift() }));
let count = begin;
new MutationObserver(() => {
  if (!done.textContent.startsWith(`${count + 1} of`)) return;
  count += 1;
  // A key is taken when the mark before it is settled.
  if (keys.length) setTimeout(press, 0);
  else finished();
}).observe(done, { childList: true });
press();
"""
"""Presses keys, each as soon as the one before it is counted."""
MARKED = "document.getElementById('done').textContent.startsWith('%d of')"


@pytest.mark.slow
def test_in_chromium_the_page_answers_after_a_flood(browser: Any, site: Site) -> None:
    set_up(browser, 1280, "light")
    answers = flood(site.port, 200)
    assert {status for (_, status) in answers} == {200, 413, 415}
    assert {status for (name, status) in answers if name in ("noise", "black")} == {200}
    with half_sent_headers(site.port):
        browser.get(site.address)
        browser.find_element("id", "file").send_keys(str(site.folder / "images" / "scene-1.png"))
        until(browser, "document.querySelector('.scene image')?.getBoundingClientRect().width > 100")


@pytest.mark.slow
def test_in_chromium_fifty_marks_are_kept_and_scored(browser: Any, site: Site) -> None:
    set_up(browser, 390, "light")
    browser.get(f"{site.address}/check")
    until(browser, MARKED % 0)
    body = browser.find_element("tag name", "body")
    until(browser, "document.querySelector('.scene image')?.getBoundingClientRect().width > 100")
    assert browser.execute_script("return document.documentElement.scrollWidth") <= 390
    for done, key in enumerate("yynyu", start=1):
        body.send_keys(key)
        until(browser, MARKED % (3 if key == "u" else done))
    browser.refresh()
    until(browser, MARKED % 3)
    browser.set_script_timeout(120)
    browser.execute_async_script(PRESS, 3, ["s" if done == 30 else "n" if done % 3 else "y" for done in range(3, 50)])
    until(browser, MARKED % 50)
    assert browser.find_element("id", "finished").is_displayed()
    assert "50 of 50 marked, 1 skipped" in browser.find_element("id", "done").text
    until(browser, "document.getElementById('results').rows[0]?.cells[1].textContent.endsWith('/ 49')")
    lines = browser.execute_script("return [...document.querySelectorAll('#results tr')].map(row => row.innerText)")
    assert lines[0].startswith("all")
    assert lines[0].count(" to ") == 2
    assert any(line.count(" to ") == 2 for line in lines[2:])
    browser.find_element("id", "export").click()
    until(browser, "document.getElementById('written').textContent.includes('annotations.jsonl')")

    asked = requested(browser)
    assert {url for url in asked if not url.startswith((site.address, "data:", "blob:"))} == set() != asked
    assert [entry for entry in browser.get_log("browser") if "/predict" not in entry["message"]] == []

    given = (site.folder / "predictions.jsonl", site.folder / "images", None, None)
    again, _ = open_session(*given, site.folder / "check", 50, 0)
    assert again.marks == site.marking._session.marks
    report = check_page(*given, out=site.folder / "check")
    assert (report.num_marked, report.num_asked, report.rows[0]["num_marked"]) == (50, 50, 49)
    for share in (report.rows[0]["precision"], report.rows[0]["ap"]):
        assert 0 <= share["low"] < share["value"] < share["high"] <= 1

    # The annotations score the predictions that they were made from.
    files = {Path(file).name: file for file in report.files}
    content = score("folder", Path(files["annotations.jsonl"]), Path(files["checked.jsonl"])).content
    assert content["num_predictions"] == 49
    assert sum(content["num_positives"]) == list(again.marks.values()).count("right") > 10
    # Each annotation is found by the prediction that it was made from, unless a twin of a higher score took it.
    assert 0.3 < content["full"] <= 1
