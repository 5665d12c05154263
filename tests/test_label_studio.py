"""suggest and ingest with a real Label Studio: its server, its API and its exports.

It is no dependency: 161 packages. An environment of its own does, whose program AL_BENCH_LABEL_STUDIO names:

    uv venv /tmp/studio && uv pip install --python /tmp/studio label-studio
    AL_BENCH_LABEL_STUDIO=/tmp/studio/bin/label-studio python -m pytest tests/test_label_studio.py
"""

import json
import os
import shlex
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlencode

import pytest
from labelling import CLASSES, digits_in, opened, truth

from al_bench.labelling import ingest, label_studio, suggest
from al_bench.labelling.labels import SKIP, Label, Labels
from al_bench.labelling.session import Item, Session

pytestmark = pytest.mark.xdist_group("label_studio")  # one server for all tests

TOKEN = "0123456789abcdef0123456789abcdef01234567"
NINE = "nine & \"9\" <'x'>"  # a class whose name XML has to escape
ODD = "c1/a 100% + b#1 & c=d;é 'x'.png"
N = 12
STARTS_WITHIN = 300  # seconds: the first start makes the database


def named(path: str) -> str:
    return NINE if truth(path) == "c9" else truth(path)


def choice(data: dict) -> str | None:
    """What is answered in Label Studio: the first task is skipped, the second has the class that is hard to write."""
    return {0: None, 1: NINE}.get(data["rank"], named(data["file"]))


@dataclass
class Studio:
    """A server with one project."""

    address: str
    project: int = 0

    def send(self, path: str, content: object = None) -> bytes:
        """A GET, or a POST of JSON. Raises HTTPError."""
        body = None if content is None else json.dumps(content).encode()
        headers = {"Authorization": f"Token {TOKEN}", "Content-Type": "application/json"}
        with urllib.request.urlopen(urllib.request.Request(self.address + path, body, headers), timeout=120) as reply:
            return reply.read()

    def ask(self, path: str, content: object = None) -> dict:
        return json.loads(self.send(path, content))

    def tasks(self) -> list[dict]:
        asked = urlencode({"project": self.project, "page_size": 100, "fields": "all"})
        return sorted(self.ask(f"/api/tasks?{asked}")["tasks"], key=lambda task: task["id"])


@contextmanager
def started(program: str, home: Path, line: str) -> Iterator[Studio]:
    """The server as the line that suggest prints starts it, on a free port. home: for its own files."""
    words = shlex.split(line)
    settings = dict(word.split("=", 1) for word in words if word.startswith("LABEL_STUDIO_"))
    assert words[len(settings) :] == ["label-studio", "start", "--port", "8080"]
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    silent = dict.fromkeys(("COLLECT_ANALYTICS", "LATEST_VERSION_CHECK"), "false")
    silent |= dict.fromkeys(("SENTRY_DSN", "FRONTEND_SENTRY_DSN"), "")
    own = {"HOME": str(home), "LABEL_STUDIO_BASE_DATA_DIR": str(home / "data")}
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | settings | silent | own
    user = ["--username", "robot@example.org", "--password", "robot-1234", "--user-token", TOKEN]
    with open(home / "log", "w") as log:
        server = subprocess.Popen(
            [program, "start", "--port", str(port), "--no-browser", *user, "--enable-legacy-api-token"],
            cwd=home, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
        )  # fmt: skip
        try:
            studio = Studio(f"http://127.0.0.1:{port}")
            wait_for(studio, server, home / "log")
            yield studio
        finally:
            server.kill()
            server.wait()


def wait_for(studio: Studio, server: subprocess.Popen, log: Path) -> None:
    end = time.monotonic() + STARTS_WITHIN
    while True:
        try:
            studio.ask("/api/projects")
            return
        except (urllib.error.URLError, ConnectionError) as error:
            assert server.poll() is None and time.monotonic() < end, f"{error}\n{log.read_text()[-3000:]}"
            time.sleep(1)


def set_up(studio: Studio, folder: Path, tasks: Path) -> None:
    """What the printed steps ask for: the configuration, the storage, the import."""
    view = tasks.with_suffix(".xml").read_text()
    studio.project = studio.ask("/api/projects", {"title": "photos", "label_config": view})["id"]
    storage = {"project": studio.project, "path": str(folder), "use_blob_urls": False, "title": "photos"}
    studio.ask("/api/storages/localfiles", storage)
    studio.ask(f"/api/projects/{studio.project}/import", json.loads(tasks.read_text()))


def label(studio: Studio, task: dict, name: str | None) -> None:
    """name: of the class. None skips the task."""
    chosen = [{"from_name": "label", "to_name": "image", "type": "choices", "value": {"choices": [name]}}]
    note = {"result": chosen if name else [], "was_cancelled": name is None, "lead_time": 1.5}
    studio.ask(f"/api/tasks/{task['id']}/annotations", note)


def label_first(session: Session) -> None:
    """Label until a net is trained: predictions come from it."""
    while not session.wait(60).accuracy:
        for item in session.next(3):
            session.answer(item.path, named(item.path), seconds=0.1)


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A folder of `photos`. Those that are suggested are labelled in `studio`."""
    home = tmp_path_factory.mktemp("studio") / "a folder"
    odd = next((digits_in(home / "photos", 120) / "c1").iterdir())
    odd.rename(home / "photos" / ODD)
    return home


@pytest.fixture(scope="module")
def studio(home, tmp_path_factory) -> Iterator[Studio]:
    program = os.environ.get("AL_BENCH_LABEL_STUDIO") or shutil.which("label-studio")
    if program is None:
        pytest.skip("Label Studio is not installed here: no label-studio, and AL_BENCH_LABEL_STUDIO names none")
    classes = (*CLASSES[:9], NINE)
    with opened(home, f"budget.query={N}", classes=classes) as session:
        label_first(session)
    asked = [str(home / "photos"), "--n", str(N), "--to", "label_studio", "--predictions"]
    said = suggest.suggest(suggest.read_options(asked))
    line = next(line for line in said.splitlines() if line.startswith("1. ")).removeprefix("1. ")
    with started(program, tmp_path_factory.mktemp("server"), line) as studio:
        set_up(studio, home / "photos", home / "photos-labels/suggested/batch-1.json")
        for task in studio.tasks():
            label(studio, task, choice(task["data"]))
        yield studio


def test_tasks_keep_their_order_and_their_images_and_predictions_are_shown(home, studio):
    wanted = json.loads((home / "photos-labels/suggested/batch-1.json").read_text())
    tasks = studio.tasks()
    assert [task["data"] for task in tasks] == [task["data"] for task in wanted] and len(tasks) == N
    for task in tasks:
        (prediction,) = task["predictions"]
        assert prediction["result"][0]["value"]["choices"] == [task["data"]["shown"]]
        content = studio.send(task["data"]["image"])  # raises unless the status is 200
        assert content == (home / "photos" / task["data"]["file"]).read_bytes()


def test_a_file_whose_name_holds_what_addresses_escape_is_shown(home, studio):
    task = label_studio.task(Item(ODD, "", home / "photos" / ODD, "train"), home / "photos", CLASSES, None, "")
    assert studio.send(task["data"]["image"]) == (home / "photos" / ODD).read_bytes()


@pytest.mark.parametrize("kind", ["JSON", "JSON_MIN", "CSV"])
def test_its_exports_are_taken_with_the_right_classes(home, studio, kind, tmp_path, capsys):
    for name in ("photos", "photos-labels"):
        shutil.copytree(home / name, tmp_path / name)
    export = tmp_path / f"export.{kind.partition('_')[0].lower()}"
    export.write_bytes(studio.send(f"/api/projects/{studio.project}/export?exportType={kind}"))
    before = labels_of(tmp_path)
    assert ingest.main([str(tmp_path / "photos"), str(export)]) == 0
    told = capsys.readouterr().out
    there = [task["data"] for task in studio.tasks()]
    if kind != "JSON":  # it alone has skipped tasks
        there = [data for data in there if choice(data)]
    expected = {data["file"]: choice(data) or SKIP for data in there}
    assert ("it is not known which were skipped" in told) == (kind != "JSON")
    new = {path: label for path, label in labels_of(tmp_path).items() if path not in before}
    assert {path: label.answer for path, label in new.items()} == expected
    assert all(label.role == "train" and label.round == 1 and label.who and label.time for label in new.values())
    assert {path: label.shown for path, label in new.items()} == {data["file"]: data["shown"] for data in there}
    assert ingest.main([str(tmp_path / "photos"), str(export)]) == 0  # taken twice, it changes nothing
    assert f"0 answers are new, {len(expected)} were known" in capsys.readouterr().out


def labels_of(folder: Path) -> dict[str, Label]:
    return Labels(folder / "photos-labels/labels.jsonl").current
