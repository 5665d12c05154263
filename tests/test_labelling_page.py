"""The page of al-bench label: who is answered, what is served, and a robot that labels in a browser."""

import http.client
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import closing, contextmanager

import numpy as np
import pytest
from browser import chromium
from conftest import lines_of
from labelling import CLASSES, benchmarked, digits_in, label_all, opened, truth
from labelling_robot import IDLE, READY
from PIL import Image

from al_bench.errors import UserError
from al_bench.labelling.advice import weak_classes
from al_bench.labelling.displayed import Display, displayed
from al_bench.labelling.labels import read_lines
from al_bench.labelling.server import Server, served
from al_bench.records import RoundRecord

pytestmark = pytest.mark.usefixtures("all_threads")


@pytest.fixture
def folder(tmp_path):
    digits_in(tmp_path / "photos", 200)
    return tmp_path


class Client:
    """Sends requests as the page does, unless the test says otherwise."""

    def __init__(self, server):
        self.server, self.host = server, f"127.0.0.1:{server.port}"

    def send(self, method, path, body=None, whole=False, **headers):
        """(status, headers, content)"""
        connection = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=30)
        path = path if whole else f"/{self.server.token}/{path}"
        sent = {"Host": self.host} | (
            {"Origin": f"http://{self.host}", "Content-Type": "application/json"} if body else {}
        )
        connection.request(method, path, body, {k: v for k, v in (sent | headers).items() if v is not None})
        with closing(connection), connection.getresponse() as reply:
            return reply.status, reply.headers, reply.read()

    def get(self, path, **headers):
        return self.send("GET", path, **headers)

    def post(self, name, /, **content):
        status, _, reply = self.send("POST", name, json.dumps(content))
        return status, json.loads(reply)


@contextmanager
def at_work(folder, *overrides, **options):
    with opened(folder, *overrides, **options) as session, served(session) as server:
        yield session, Client(server)


def answered(session, client, n, answer=truth):
    """Answer n images as the page does. Returns their ids."""
    found = []
    while len(found) < n:
        assert session.wait(60).state == "labelling"
        item = client.post("next", first=[])[1]["items"][0]
        assert client.post("answer", id=item["id"], answer=answer(item["text"]), seconds=0.5)[0] == 200
        found.append(item["id"])
    return found


# -- who is answered --


def test_only_who_knows_the_address_and_comes_from_this_machine_is_answered(folder):
    with at_work(folder) as (_, client):
        assert client.get("")[0] == client.get("state")[0] == client.get("image/0")[0] == 200
        for path in ("/", "/state", "/image/0", "/x/state", f"/{client.server.token[:-1]}/", f"/{client.server.token}"):
            assert client.send("GET", path, whole=True)[0] == 403, path
        for host in ("evil.example", f"evil.example:{client.server.port}", "127.0.0.1", "", None):
            status = client.get("state", Host=host)[0]
            assert (host is None and status == 200) or status in (400, 421), host  # http.client sends a Host of its own
        assert client.get("state", Host=f"localhost:{client.server.port}")[0] == 200
        body = json.dumps({"first": []})
        assert client.send("POST", "next", body)[0] == 200
        for origin in ("http://evil.example", "null", None, f"https://{client.host}", "http://127.0.0.1"):
            assert client.send("POST", "next", body, Origin=origin)[0] == 403, origin
        assert client.server.server_address[0] == "127.0.0.1"
        with Server(client.server.answering.session) as other:
            assert len(client.server.token) >= 20 and client.server.token != other.token


def test_a_request_names_no_file(folder):
    (folder / "secret.png").write_bytes(next((folder / "photos/c0").iterdir()).read_bytes())
    with at_work(folder) as (session, client):
        n = len(session.listing.paths)
        for name in ("../secret.png", "..%2fsecret.png", "c0/0000.png", "%2e%2e/%2e%2e/etc/passwd", "-1", str(n), "1e0",
                     "%D9%A3", "", "0/../0", "0" * 5000):  # fmt: skip
            status = client.get("image/" + name)[0]
            assert status in (404, 414, 422), name
        for path in ("page.html", "labels.jsonl", "../state", "..", "images/0", "image"):
            assert client.get(path)[0] == 404, path
        for id in (-1, n, "0", "../secret.png", 0.0, None, [0]):
            assert client.post("answer", id=id, answer="c0", seconds=1)[0] == 422, id
        assert not session.labels.lines


def test_what_is_no_request_of_the_page_is_refused_in_words(folder):
    with at_work(folder) as (session, client):
        right = {"id": 0, "answer": "c0", "seconds": 1}
        assert client.send("POST", "answer", json.dumps(right), **{"Content-Type": "text/plain"})[0] == 415
        assert client.send("POST", "answer", "x" * 70_000)[0] == 413
        assert client.send("POST", "answer", "[]")[0] == client.send("POST", "answer", "{" * 9999)[0] == 400
        assert client.post("answer", id=0)[0] == client.post("answer", **right, path="x")[0] == 400
        for wrong in (
            {"answer": 1},
            {"seconds": None},
            {"seconds": float("nan")},
            {"shown": 1},
            {"first": 1},
            {"answer": "bird"},
        ):
            assert client.post("answer", **right | wrong)[0] == 422, wrong
        assert client.post("shutdown")[0] == client.post("_path")[0] == 404
        assert client.send("PUT", "state")[0] == 501
        assert client.post("class", name="c0\n")[1] == {"said": None} and client.post("class", name=" ")[0] == 422
        assert not session.labels.lines and session.classes == CLASSES


def test_the_page_may_load_nothing_from_elsewhere(folder):
    with at_work(folder) as (_, client):
        _, headers, page = client.get("")
        policy = headers["Content-Security-Policy"]
        assert policy.startswith("default-src 'none'") and "unsafe" not in policy and "http" not in policy
        assert client.get("")[1]["Content-Security-Policy"] != policy  # the nonce is for one page
        assert b"http" not in page and b"innerHTML" not in page
        for path in ("state", "image/0", "nothing"):
            headers = client.get(path)[1]
            assert headers["X-Content-Type-Options"] == "nosniff" and headers["Cache-Control"] == "no-store"


def test_a_port_in_use_is_told(folder):
    session = opened(folder)
    with served(session) as server, pytest.raises(UserError, match=f"Port {server.port} .* Choose another one: --port"):
        Server(session, server.port)
    with pytest.raises(UserError, match="Port 99999"):
        Server(session, 99999)


# -- what is asked and answered --


def test_the_next_images_are_told_in_advance_and_those_on_the_screen_stay(folder):
    with at_work(folder) as (session, client):
        items = client.post("next", first=[])[1]["items"]
        assert [item["text"] for item in items] == [item.path for item in session.next(12)] and len(items) == 12
        assert all(session.listing.paths[item["id"]] == item["text"] and item["likely"] == [] for item in items)
        assert client.post("next", first=[items[5]["id"]])[1]["items"][0] == items[5]
        assert "role" not in str(items) and "test" not in str(items)


def test_a_second_answer_to_an_image_is_told_and_changes_nothing_unless_it_is_a_correction(folder):
    with at_work(folder) as (session, client):
        (id,) = answered(session, client, 1)
        path = session.listing.paths[id]
        other = next(name for name in CLASSES if name != truth(path))
        answer = {"id": id, "answer": other, "seconds": 1}
        status, told = client.post("answer", **answer)
        assert (status, told["kept"], told["test"]) == (409, truth(path), True)
        assert told["error"] == (
            f"{path} is labelled {truth(path)} already, and it is a test image. Your answer {other} is not kept."
        )
        assert client.post("answer", **answer | {"answer": truth(path)})[0] == 200
        assert len(session.labels.lines) == 1
        assert client.post("answer", **answer, correct=True)[0] == 200
        assert [line.answer for line in session.labels.lines] == [truth(path), other]
        while session.labels.lines[-1].role != "train":
            (id,) = answered(session, client, 1)
        status, told = client.post("answer", id=id, answer="skip", seconds=1)
        assert (status, told["test"]) == (409, False) and session.labels.lines[-1].answer != "skip"


def test_the_state_is_told_while_the_run_goes_on(folder):
    with at_work(folder) as (session, client):
        answered(session, client, 60, lambda path: "c0" if path.startswith("c8") else truth(path))
        session.wait(60)
        state = json.loads(client.get("state")[2])
        assert (state["state"], state["labelled"], state["left"], state["seconds"]) == ("labelling", 60, 10, 0.5)
        assert [one["name"] for one in state["classes"]] == [*CLASSES]
        assert sum(one["n"] for one in state["classes"]) == 60
        assert state["accuracy"][0]["n_test"] == 40 and state["advice"] and state["finish"].endswith("/photos")
        likely = client.post("next", first=[])[1]["items"][0]["likely"]
        assert len(likely) == 9 and likely[0][1] >= likely[1][1]
        client.post("undo")
        assert json.loads(client.get("state")[2])["labelled"] == 59
        label_all(session)
        assert json.loads(client.get("state")[2])["state"] == "finished"


def test_weak_classes_are_those_whose_interval_lies_below_the_accuracy(monkeypatch):
    record = RoundRecord.__new__(RoundRecord)
    object.__setattr__(record, "metrics", {"accuracy": 0.8, "per_class": [0.9, 0.2, 0.5, None, 0.4]})
    n_tested = {"a": 50, "b": 20, "c": 4, "e": 40}
    assert weak_classes(record, "abcde", n_tested) == [("b", 0.2, 20), ("e", 0.4, 40)]  # c: 0.15 to 0.85


# -- images --


def saved(folder, name, pixels, **options):
    Image.fromarray(pixels).save(folder / name, **options)
    return (folder / name).read_bytes()


def shown(content):
    made = displayed(content)
    return made, Image.open(io.BytesIO(made.content))


def test_browsers_get_small_files_as_they_are_and_others_as_a_jpeg(tmp_path):
    small = np.zeros((40, 60, 3), np.uint8)
    for name, kind in {"a.jpg": "jpeg", "a.png": "png", "a.webp": "webp", "a.gif": "gif"}.items():
        content = saved(tmp_path, name, small)
        assert (displayed(content).content, displayed(content).kind) == (content, f"image/{kind}")
    for name in ("a.bmp", "a.tif"):
        made, image = shown(saved(tmp_path, name, small))
        assert made.kind == "image/jpeg" and image.size == (60, 40)
    large = np.zeros((1500, 3000, 3), np.uint8)
    large[:, :1500] = 200
    for name in ("b.jpg", "b.png"):
        made, image = shown(saved(tmp_path, name, large))
        assert (made.kind, image.size) == ("image/jpeg", (1600, 800))
        assert image.getpixel((100, 100))[0] == pytest.approx(200, abs=2) and image.getpixel((1500, 100))[0] < 3


def test_large_images_are_turned_upright_and_deep_ones_are_made_visible(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    wide = np.zeros((1500, 3000, 3), np.uint8)
    assert shown(saved(tmp_path, "t.jpg", wide, exif=exif))[1].size == (800, 1600)
    deep = np.tile(np.linspace(100, 4000, 64).astype(np.uint16), (32, 1))  # 12 bits: nearly black if white is 65535
    for name in ("d.png", "d.tif"):
        _, image = shown(saved(tmp_path, name, deep))
        assert image.size == (64, 32) and image.getpixel((0, 9))[0] < 5 and image.getpixel((63, 9))[0] > 250
    _, image = shown(saved(tmp_path, "f.tif", np.full((8, 8), np.nan, np.float32)))
    assert image.size == (8, 8)


def test_an_image_is_made_once_and_anew_when_its_file_changes(tmp_path, monkeypatch):
    made, display, file = [], Display(), tmp_path / "a.bmp"
    monkeypatch.setattr(
        "al_bench.labelling.displayed.displayed", lambda content: made.append(1) or displayed(content)
    )  # fmt: skip
    saved(tmp_path, "a.bmp", np.zeros((9, 9, 3), np.uint8))
    assert display.of(file) is display.of(file) and len(made) == 1
    saved(tmp_path, "a.bmp", np.zeros((9, 12, 3), np.uint8))
    display.of(file)
    assert len(made) == 2
    monkeypatch.setattr("al_bench.labelling.displayed.KEPT", 1)
    for name in ("b.bmp", "c.bmp"):
        saved(tmp_path, name, np.zeros((9, 9, 3), np.uint8))
        display.of(tmp_path / name)
    assert len(display._kept) == 1
    file.write_text("no image")
    with pytest.raises(UserError, match="a.bmp cannot be shown: not an image. Skip it."):
        display.of(file)
    file.unlink()
    with pytest.raises(UserError, match="a.bmp cannot be read"):
        display.of(file)


# -- the command --


def test_ctrl_c_ends_the_command_and_it_says_how_to_go_on(folder):
    start = [sys.executable, "-m", "al_bench", "label", "photos", "--no-browser"]
    classes = ["--classes", ",".join(CLASSES), "dataset.image_size=16"]
    ports = []
    for more in (classes, []):  # the same command goes on, without the classes
        process = subprocess.Popen([*start, *more], cwd=folder, stdout=-1, stderr=-1, text=True)
        line = ""
        while "http://" not in line:
            line = process.stdout.readline()
            assert line, process.stderr.read()
        url = line.split()[-1]
        host, token = url.split("/")[2:4]
        connection = http.client.HTTPConnection(host, timeout=30)
        connection.request("GET", f"/{token}/state")
        with closing(connection), connection.getresponse() as reply:
            assert json.loads(reply.read())["images"] == 200
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
        assert (process.returncode, err) == (130, "")
        assert "0 of 200 images are labelled." in out and f"Go on: al-bench label {folder}/photos" in out
        assert f"al-bench finish {folder}/photos" in out
        ports.append(host)


# -- in a browser --

in_browser = [
    pytest.mark.xdist_group("browser"),
    pytest.mark.skipif(shutil.which("chromium") is None, reason="needs Chromium"),
]


def browser_test(test):
    for mark in in_browser:
        test = mark(test)
    return test


@pytest.fixture(scope="module")
def tabs(tmp_path_factory):
    with chromium(tmp_path_factory.mktemp("browser")) as pipe:
        yield pipe


def key_of(path, classes=CLASSES):
    return "123456789abcdefghijklm"[classes.index(truth(path))]


@contextmanager
def page_at_work(tabs, folder, *overrides, **options):
    with opened(folder, *overrides, **options) as session, served(session) as server:
        tabs.console.clear()
        page = tabs.open(server.url)
        page.until("typeof state !== 'undefined' && state !== null")
        yield session, page
        assert tabs.console == []
        page.call("Page.close")


def until_asked(session):
    """Wait until the run asks for images. Before, the test images are asked for in an order of their own."""
    with session.lock:
        assert session.lock.wait_for(lambda: session._outstanding, 60)


def reload(page):
    page.run("window.before = true")
    page.call("Page.reload")
    page.until("!window.before && typeof state !== 'undefined' && state !== null")


def label_by_keys(page, n, key=key_of):
    """Press n keys. Returns the images that they were pressed for."""
    found = []
    for _ in range(n):
        found.append(page.until(READY))
        page.press(key(found[-1]))
    page.until(IDLE)
    return found


@browser_test
def test_a_robot_that_presses_keys_makes_the_records_of_the_benchmark(tabs, tmp_path):
    digits_in(tmp_path / "photos")
    asked = []
    with page_at_work(tabs, tmp_path) as (session, page):
        page.until(READY)
        page.run(STOPWATCH)
        ended = "state.state === 'finished' && !current ? ' ' : "
        while (path := page.until(ended + READY)) != " ":
            page.press(key_of(path))
            asked.append(path)
        took = sorted(page.run("took"))
        page.until("document.body.innerText.includes('al-bench finish')")
        assert session.progress().state == "finished"
        lines = read_lines(session.labels.path)
    assert [line.path for line in lines] == asked and len(set(asked)) == 60 + 20 + 40
    assert all(line.answer == truth(line.path) and 0 < line.seconds < 60 for line in lines)
    assert lines_of(session.store.folder) == benchmarked(session)
    print(f"key to next image: median {took[len(took) // 2]:.0f} ms, p95 {took[int(0.95 * len(took))]:.0f} ms")
    assert took[len(took) // 2] < 50  # half of them, so that a busy machine does not fail the test


# From a key to the next image on the screen; not where the next images are chosen only after training.
STOPWATCH = """
window.took = [];
let pressed = 0;
document.addEventListener("keydown", (event) => { pressed = ahead.length ? event.timeStamp : 0; }, true);
new MutationObserver(() => {
  if (!document.querySelector("#picture img") || !pressed) return;
  const start = pressed, channel = new MessageChannel();
  pressed = 0;
  channel.port1.onmessage = () => took.push(performance.now() - start);
  requestAnimationFrame(() => channel.port2.postMessage(0));
}).observe(document.getElementById("picture"), { childList: true });
"""


@browser_test
def test_the_next_images_are_loaded_and_decoded_before_they_are_shown(tabs, folder):
    with page_at_work(tabs, folder) as (session, page):
        page.until(READY)
        page.until("ahead.length >= 8 && ahead.slice(0, 8).every((item) => images.get(item.id).state === 'ready')")
        assert page.run("document.querySelector('#picture img').naturalWidth") == 8


@browser_test
def test_undo_has_no_limit_even_after_the_page_was_opened_again(tabs, folder):
    with page_at_work(tabs, folder) as (session, page):
        until_asked(session)
        reload(page)
        asked = label_by_keys(page, 6)
        for path in reversed(asked[3:]):
            page.press("Backspace")
            assert page.until(READY) == path
        page.until(IDLE)
        assert len(session.labels.current) == 3
        reload(page)
        assert page.until(READY) == asked[3]
        for path in reversed(asked[:3]):
            page.press("Backspace")
            page.until(f"current.text === {json.dumps(path)} && !waiting")
        page.press("Backspace")
        page.until("document.getElementById('last').textContent === 'There is nothing to take back.'")
        assert session.labels.current == {}
        assert label_by_keys(page, 6) == asked  # in the same order


@browser_test
def test_keys_and_buttons_do_the_same(tabs, folder):
    with page_at_work(tabs, folder) as (session, page):
        page.size(390, 844, phone=True)
        for selector, answer in (("#skip", "skip"), ("#unsure", "unsure"), ('button[title="c3"]', "c3")):
            path = page.until(READY)
            page.tap(selector)
            page.until(f"current.text !== {json.dumps(path)}")
            page.until(IDLE)
            assert session.labels.current[path].answer == answer
        page.tap("#undo")
        page.until(IDLE)
        assert len(session.labels.current) == 2
        pressed = [page.until(READY), page.press(" "), page.until(READY), page.press("u")]
        page.until(IDLE)
        assert [session.labels.current[path].answer for path in pressed[::2]] == ["skip", "unsure"]


@browser_test
def test_an_answer_that_cannot_be_kept_is_told_and_its_image_stays(tabs, folder, monkeypatch):
    with page_at_work(tabs, folder) as (session, page):
        (first,) = label_by_keys(page, 1)
        right = type(session).answer

        def full(*_):
            time.sleep(0.2)  # the next keys are pressed in the meantime
            raise UserError("No space left on the disk")

        monkeypatch.setattr(type(session), "answer", full)
        asked = []
        for _ in range(3):
            asked.append(page.until(READY))
            page.press(key_of(asked[-1]))
        page.until("!document.getElementById('notice').hidden")
        said = page.run("document.getElementById('notice').innerText")
        assert "Your answer was not kept. No space left on the disk The 2 after it are asked for again" in said
        assert page.until(READY) == asked[0] and [*session.labels.current] == [first]
        assert page.run("state.labelled") == 1 and "kept" not in page.run("document.getElementById('last').innerText")
        monkeypatch.setattr(type(session), "answer", right)
        assert label_by_keys(page, 3) == asked and page.run("document.getElementById('notice').hidden")


@browser_test
def test_a_server_that_is_gone_is_told_and_the_image_stays(tabs, folder):
    with opened(folder) as session:
        with served(session) as server:
            page = tabs.open(server.url)
            page.until("typeof state !== 'undefined' && state !== null")
            path = page.until(READY)
            page.until("line.then(() => true)")
        page.press(key_of(path))
        page.until("document.getElementById('notice').innerText.includes('The program does not answer')")
        assert page.run("current.text") == path and session.labels.current == {}
        page.call("Page.close")


@browser_test
def test_two_pages_ask_no_image_twice(tabs, folder):
    with page_at_work(tabs, folder) as (session, page):
        until_asked(session)
        reload(page)
        other = tabs.open(page.run("location.href"))
        other.until("typeof state !== 'undefined' && state !== null")
        first = other.until(READY)
        assert page.until(READY) == first
        asked = label_by_keys(page, 3)
        wrong = next(name for name in CLASSES if name != truth(first))
        other.press(key_of(wrong + "/"))
        other.until("!document.getElementById('notice').hidden")
        said = other.run("document.getElementById('notice').innerText")
        assert f"{first} is labelled {truth(first)} already, and it is a test image" in said
        assert session.labels.current[first].answer == truth(first)
        other.run("window.dispatchEvent(new Event('focus'))")
        other.until(f"!{json.dumps(asked)}.includes(current && current.text) && current")
        asked += label_by_keys(other, 4)
        other.run("[...document.querySelectorAll('#notice button')][0].click()")
        other.until(IDLE)
        assert session.labels.current[first].answer == wrong  # a correction that was asked for
        page.run("window.dispatchEvent(new Event('focus'))")
        page.until(f"current && !{json.dumps(asked)}.includes(current.text)")
        asked += label_by_keys(page, 3)
        assert len(asked) == len(set(asked)) == len(session.labels.current)
        other.call("Page.close")


ODD = [
    "<img src=x onerror=alert(1)>.png", "a\"b'&amp;.png", "line\nbreak.png", "right\u202eto\u202cleft.png",
    b"\xff\xfe.png", "%2e%2e.png", "\u05d0\u05d1.png",
]  # fmt: skip


@browser_test
def test_odd_names_are_shown_escaped(tabs, folder):
    shutil.rmtree(folder / "photos")
    (folder / "photos").mkdir()
    for i, name in enumerate(ODD):
        file = os.path.join(os.fsencode(folder / "photos"), os.fsencode(name))
        with open(file, "wb") as out:
            Image.fromarray(np.full((9, 9 + i), 9 * i, np.uint8)).save(out, "PNG")
    classes = ("<b>cat</b>", "d\"o'g & \u202eco", "line\nbreak")
    with page_at_work(tabs, folder, "budget.initial=2", "budget.query=1", "budget.rounds=1", classes=classes) as (
        session,
        page,
    ):
        texts = [page.until(READY)]
        shown = page.run("[...document.querySelectorAll('#classes > button span')].map((one) => one.textContent)")
        assert shown == ["<b>cat</b>", "d\"o'g & \\u202eco", "line\\nbreak"]
        for key in "12312312":
            if (text := page.until(f"state.state === 'finished' && !current ? ' ' : {READY}")) == " ":
                break
            assert page.run("document.getElementById('name').textContent") == text
            texts.append(text)
            page.press(key)
        page.until(IDLE)
        assert page.run("document.querySelectorAll('main b, main img[src=x]').length") == 0
        lines = read_lines(session.labels.path)
        assert {line.answer for line in lines} == {*classes} and {line.path for line in lines} <= {
            *map(os.fsdecode, ODD)
        }
    assert all(text.isprintable() for text in texts)


@browser_test
def test_a_class_is_added_on_the_way(tabs, folder):
    with page_at_work(tabs, folder, classes=()) as (session, page):
        page.until(READY)
        for name in ("c0", "<i>", "c2"):
            if name == "c2":  # the first two are asked for
                page.press("n")
            page.until("document.activeElement.id === 'name_of_class'")
            page.call("Input.insertText", text=name)
            page.press("Enter")
            page.until(f"classes.some((one) => one.name === {json.dumps(name)})")
        page.until("document.activeElement === document.body && !naming")
        assert session.classes == ("c0", "<i>", "c2") and session.labels.current == {}
        path = page.until(READY)
        page.press("2")
        page.until(IDLE)
        assert session.labels.current[path].answer == "<i>"


@browser_test
def test_predictions_are_hidden_unless_asked_for_and_then_recorded(tabs, folder):
    few = CLASSES[:9]

    def key(path):
        return key_of(path) if truth(path) in few else "u"

    with page_at_work(tabs, folder, classes=few) as (session, page):
        label_by_keys(page, 61, key)
        assert all(line.shown is None for line in session.labels.lines)
        page.until("current && current.likely.length")
        path = page.until(READY)
        assert page.run("document.querySelectorAll('.hit').length") == 0
        page.press("p")
        assert page.run("document.querySelector('.hit').title") == session.likely(path)[0][0]
        label_by_keys(page, 1, key)
        line = session.labels.lines[-1]
        assert (line.shown, line.first) == (session.likely(path)[0][0], None)


@browser_test
def test_with_many_classes_the_likely_ones_come_first_and_keys_stay(tabs, folder):
    with page_at_work(tabs, folder) as (session, page):
        page.until(READY)
        order = "[...document.querySelectorAll('#classes > button')].map((one) => one.title)"
        assert page.run(order) == [*CLASSES]
        label_by_keys(page, 60)
        page.until("current && current.likely.length")
        path = page.until(READY)
        assert page.run(order)[:9] == [name for name, _ in session.likely(path)[:9]]
        label_by_keys(page, 1)
        assert session.labels.current[path].answer == truth(path)
        line = session.labels.lines[-1]
        assert (line.first, line.shown) == (session.likely(path)[0][0], None)  # the order alone tells it


@browser_test
def test_the_page_says_that_training_goes_on_or_has_failed_and_takes_keys(tabs, folder, monkeypatch):
    seen = threading.Event()

    def broken(*_):
        seen.wait(60)
        raise UserError("the disk of the run is broken")

    with page_at_work(tabs, folder) as (session, page):
        monkeypatch.setattr(type(session), "trained", broken)
        until_asked(session)  # an answer before would count as a change, which the failed run goes on from
        label_by_keys(page, 60)
        page.until("document.body.innerText.includes('Training on your answers')")
        seen.set()
        page.until("document.body.innerText.includes('the disk of the run is broken')")
        page.press("Backspace")
        path = page.until(READY)
        page.press(key_of(path))
        page.until(IDLE)
        assert len(session.labels.current) == 60


@browser_test
def test_a_damaged_image_is_told_and_can_be_skipped(tabs, folder):
    with page_at_work(tabs, folder) as (session, page):
        until_asked(session)  # the images have been decoded
        path = session.next(31)[30].path
        (folder / "photos" / path).write_bytes(b"no image")
        while page.until(READY) != path:
            label_by_keys(page, 1)
        assert "cannot be shown: not an image. Skip it." in page.run("document.getElementById('picture').innerText")
        page.press(" ")
        page.until(IDLE)
        assert session.labels.current[path].answer == "skip"
