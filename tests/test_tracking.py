"""The trackers with the real packages. Files are read back, processes are killed, servers are absent or fake."""

import csv
import gzip
import json
import math
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import asked, command, lines_of, run_here
from PIL import Image
from sklearn.datasets import load_digits

from al_bench import tracking
from al_bench.data import Dataset
from al_bench.data.pool import Pool
from al_bench.errors import UserError
from al_bench.models.learner import Prediction
from al_bench.records import RoundRecord
from al_bench.store import RunStore

pytestmark = pytest.mark.xdist_group("commands")  # they share the runs of one process
NAMES = ("cat", "dog", "emu")
KEY = "0123456789" * 4
RECORDS = [
    RoundRecord(
        r, 20 + 10 * r, 5, {"accuracy": 0.5 + r / 10, "per_class": [0.25, None, 1.0]}, {"loss": 2.0 - r}, [7, 9], r,
        2 - r % 2, 40, [{"loss": 1.0 + r, "accuracy": 0.1}] * (2 - r % 2), {"fit": 1.5}, 1000 + r, 70,
    )
    for r in range(3)
]  # fmt: skip
SHORT = ("strategy=margin", "trainer.max_steps=4")
KILLED = ("csv", "tensorboard", "wandb_offline")
STEPS = [0, 1, 2, 3, 4, 5, 6, 7]  # two epochs and the round, one and the round, two and the round


def store_of(folder: Path, *overrides: str) -> RunStore:
    store = RunStore(asked(f"results_dir={folder}", *overrides))
    store.folder.mkdir(parents=True, exist_ok=True)
    return store


def follow(store: RunStore, before: int, after: int) -> None:
    """Start a tracker on the first `before` RECORDS and log rounds until there are `after`."""
    with tracking.opened(store.config, store.folder, NAMES, RECORDS[:before]) as track:
        for n in range(before + 1, after + 1):
            track(RECORDS[:n], list)


def script(tests: str, body: str) -> list[str]:
    preamble = f"import os, sys, time; from pathlib import Path; sys.path.insert(0, {tests!r})\n"
    return [sys.executable, "-c", preamble + "from test_tracking import *\n" + body]


TESTS = str(Path(__file__).parent)


def wandb_environment(folder: Path, **more: str) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("WANDB_") and k != "NETRC"}
    (folder / "home").mkdir(exist_ok=True)
    return kept | {"HOME": str(folder / "home"), "AL_BENCH_CACHE": str(folder / "home" / "cache")} | more


@pytest.fixture(autouse=True)
def no_account(monkeypatch, tmp_path):
    """Hide the user's W&B settings, and restore the environment after the test."""
    before = dict(os.environ)
    os.environ.update(wandb_environment(tmp_path))
    for name in [k for k in os.environ if k.startswith("WANDB_")]:
        del os.environ[name]
    yield
    os.environ.clear()
    os.environ.update(before)


def wandb_records(folder: Path) -> list[list]:
    """Return the records of each .wandb file, in order of time.

    Wait until the last file holds the end of its run: W&B's process may still be writing it.
    """
    end = time.monotonic() + 20
    while True:
        files = wandb_files(folder)
        if "exit" in {record.WhichOneof("record_type") for record in files[-1]} or time.monotonic() > end:
            return files
        time.sleep(0.1)


def wandb_files(folder: Path) -> list[list]:
    """Parse each file: a LevelDB log of protocol buffers."""
    from wandb.proto.wandb_internal_pb2 import Record

    files = []
    for path in sorted((folder / "wandb").glob("offline-run-*/*.wandb")):
        data, at, whole, records = path.read_bytes(), 7, b"", []
        while at + 7 <= len(data):
            if (left := 32768 - at % 32768) < 7:
                at += left
                continue
            _, length, kind = struct.unpack("<IHB", data[at : at + 7])
            if at + 7 + length > len(data):  # cut short: not yet written, or never
                break
            whole += data[at + 7 : at + 7 + length]
            at += 7 + length
            if kind in (1, 4):  # a whole record, or the last part of one
                records.append(Record.FromString(whole))
                whole = b""
        files.append(records)
    return files


def history(records: list) -> list[dict]:
    rows = [r.history.item for r in records if r.WhichOneof("record_type") == "history"]
    return [{i.key or ".".join(i.nested_key): json.loads(i.value_json) for i in row} for row in rows]


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    return {tag: [(e.step, round(e.value, 6)) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def table_of(folder: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((folder / "metrics.csv").read_text().splitlines()))


@pytest.fixture(scope="module")
def untracked(tmp_path_factory) -> list[dict]:
    return lines_of(run_here(tmp_path_factory.mktemp("untracked"), *SHORT).folder)


def test_the_rows_of_a_run_by_hand():
    rows = tracking.rows(RECORDS[:2], NAMES)
    assert [r.get("epoch/total") for r in rows] == [1, 2, None, 3, None]
    assert rows[3] == {"epoch/total": 3, "epoch/loss": 2.0, "epoch/accuracy": 0.1}
    assert rows[4] == {
        "n_labels": 30, "round": 1, "n_labelled": 30, "n_val": 5, "validation/loss": 1.0, "weights_from": 1,
        "epochs": 1, "steps": 40, "seconds/fit": 1.5, "peak_memory": 1001, "n_candidates": 70, "n_foreign": 0,
        "test/accuracy": 0.6, "test/per_class/cat": 0.25, "test/per_class/emu": 1.0,
    }  # fmt: skip


def test_the_axis_counts_labels_of_out_of_distribution_images_too(tmp_path):
    store = store_of(tmp_path, "logger=tensorboard")
    records = [replace(r, n_foreign=7 * r.round) for r in RECORDS]
    with ExitStack() as stack:
        stack.enter_context(tracking.opened(store.config, store.folder, NAMES, records))
    assert [step for step, _ in scalars(store.folder)["test/accuracy"]] == [r.n_labels for r in records]
    assert records[1].n_labels == records[1].n_labelled + 7


def test_a_run_of_the_same_name_is_another_one_for_wandb(tmp_path):
    ids = []
    for folder in ("a", "b", "b"):
        store = store_of(tmp_path / folder, "logger=wandb_offline")
        with store.at_work(), ExitStack() as stack:
            stack.enter_context(tracking.opened(store.config, store.folder, NAMES, []))
        (records, *_) = wandb_records(store.folder)
        ids += {r.run.run_id for r in records if r.WhichOneof("record_type") == "run"}
    assert len(ids) == 3 and ids[0] != ids[1] == ids[2]


@pytest.mark.parametrize("logger", ["csv", "tensorboard"])
def test_a_tracker_writes_each_round_and_changes_none(tmp_path, untracked, logger):
    store = run_here(tmp_path, *SHORT, f"logger={logger}")
    assert lines_of(store.folder) == untracked
    curve = [(r.n_labelled, r.metrics["accuracy"]) for r in store.records()]
    if logger == "csv":
        rows = table_of(store.folder)
        assert [(int(row["n_labelled"]), float(row["test/accuracy"])) for row in rows] == curve
    else:
        seen = scalars(store.folder)
        assert seen["test/accuracy"] == [(n, pytest.approx(a, abs=1e-6)) for n, a in curve]
        assert [step for step, _ in seen["epoch/loss"]] == [1, 2, 3, 4]


def test_an_offline_wandb_run_holds_all_of_it_in_the_run_folder(tmp_path, monkeypatch, untracked):
    monkeypatch.chdir(tmp_path)
    store = run_here(Path("out"), *SHORT, "logger=wandb_offline", "logger.images=4")
    assert lines_of(store.folder) == untracked
    assert {p.name for p in tmp_path.iterdir()} == {"out", "home"}
    assert not [p for p in (tmp_path / "home").glob("**/wandb/**/*") if p.is_file()]
    assert f"wandb sync {store.folder}/wandb" in (store.folder / "run.log").read_text()

    (records,) = wandb_records(store.folder)
    (run,) = [r.run for r in records if r.WhichOneof("record_type") == "run"][-1:]
    assert (run.run_group, run.job_type) == ("default/digits/small_cnn/20+3x10", "margin")
    assert run.display_name == "margin seed=0"
    assert re.fullmatch("[0-9a-f]{16}", run.run_id) and run.project == "al_bench"
    config = {u.key: json.loads(u.value_json) for u in run.config.update}
    assert config["budget"]["query"] == 10 and config["trainer"]["start"] == "fresh" and config["seed"] == 0
    axes = {r.metric.name or r.metric.glob_name: r.metric.step_metric for r in records if r.HasField("metric")}
    assert axes["test/*"] == axes["seconds/*"] == axes["picked"] == axes["n_val"] == "n_labels"
    assert axes["epoch/*"] == "epoch/total"

    rounds = [row for row in history(records) if "n_labelled" in row]
    for row, r in zip(rounds, store.records(), strict=True):
        assert row["n_labelled"] == r.n_labelled and row["test/accuracy"] == r.metrics["accuracy"]
        assert row["test/per_class/7"] == r.metrics["per_class"][7] and row["seconds/fit"] == r.seconds["fit"]
    assert [r.exit.exit_code for r in records if r.HasField("exit")] == [0]

    images, digits = load_digits(return_X_y=True)
    artifacts = [r.artifact.manifest.contents for r in records if r.HasField("artifact")]
    for row, r, contents in zip(rounds[:3], store.records()[:3], artifacts, strict=True):
        files = {file.path: Path(file.local_path) for file in contents}
        assert all(path.is_relative_to(store.folder.absolute()) for path in files.values())
        table = json.loads(files["picked.table.json"].read_text())
        assert table["columns"] == ["image", "index", "predicted", "probability", "prediction entropy", "label"]
        assert row["picked.nrows"] == len(table["data"]) == 4
        assert [line[1] for line in table["data"]] == r.acquired[:4]
        assert [line[5] for line in table["data"]] == [str(digits[i]) for i in r.acquired[:4]]
        assert all(0.1 <= line[3] <= 1 and 0 <= line[4] <= np.log(10) for line in table["data"])
        for line in table["data"]:
            pixels = np.asarray(Image.open(files[line[0]["path"]]))
            assert np.array_equal(pixels, np.rint(images[line[1]].reshape(8, 8) * (255 / 16)))
    assert "picked.nrows" not in rounds[3]  # the last round acquires nothing


@pytest.mark.parametrize("size", [(3, 8, 6), (1, 8, 6), (4,)])  # the last: frozen features
def test_the_picked_images_by_hand(size):
    images = torch.arange(5 * math.prod(size)).reshape(5, *size).to(torch.uint8)
    no_idx = torch.empty(0, dtype=torch.int64)
    dataset = Dataset("pets", images, no_idx, no_idx, no_idx, ("cat", "dog"), (0.0,), (1.0,), "")
    labels = Pool(torch.tensor([4, 0, 3, 1]), torch.tensor([0, 1, 1, 0]), no_idx, no_idx, no_idx)
    log_probs = {0: [0.25, 0.75], 3: [0.8, 0.2]}

    def predict(net, idx):
        return Prediction(torch.tensor([[log_probs[i]] for i in idx.tolist()]).log(), None)

    learner = SimpleNamespace(dataset=dataset, predict=predict)
    rows = tracking.picked(learner, None, labels, 1, 2)
    pictures = [row.pop("image", None) for row in rows]
    assert [list(row.values()) for row in rows] == [
        [0, "dog", pytest.approx(0.75), pytest.approx(0.562335), "dog"],
        [3, "cat", pytest.approx(0.8), pytest.approx(0.500402), "dog"],
    ]
    if len(size) == 1:
        assert pictures == [None, None]
    else:
        assert [p.shape for p in pictures] == [(8, 6, size[0])] * 2
        assert np.array_equal(np.asarray(pictures[1]), images[3].permute(1, 2, 0))
    assert tracking.picked(learner, None, labels, 4, 2) == []
    assert tracking.picked(learner, None, labels, 1, 0) == []


class Server(BaseHTTPRequestHandler):
    """A fake W&B server that stores the history of one run and says whether the run exists."""

    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        body = gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body
        if self.path.endswith("file_stream"):
            for name, file in json.loads(body).get("files", {}).items():
                lines = self.server.files.setdefault(name, [])
                lines[file["offset"] : file["offset"] + len(file["content"])] = file["content"]
            return self.answer({"limits": {}})
        if not self.path.endswith("graphql"):
            return self.answer({})
        asked_for = json.loads(body)
        self.answer({"data": self.graphql(asked_for["query"], asked_for.get("variables") or {})})

    do_PUT = do_POST

    def do_GET(self):
        self.answer({})

    def graphql(self, query, given):
        lines = self.server.files.get("wandb-history.jsonl", [])
        project = {"id": "p", "name": "al_bench", "entity": {"id": "e", "name": "me"}}
        run = {
            "id": "r", "name": given.get("name"), "displayName": "d", "summaryMetrics": "{}", "config": "{}",
            "logLineCount": 0, "historyLineCount": len(lines), "eventsLineCount": 0, "eventsTail": "[]",
            "historyTail": json.dumps(lines[-1:]), "tags": [], "wandbConfig": json.dumps({"t": 1}), "sweepName": None,
        }  # fmt: skip
        if "RunResumeStatus" in query:
            return {"model": project | {"bucket": run if self.server.files else None}}
        if "UpsertBucket" in query:
            self.server.files.setdefault("wandb-history.jsonl", [])
            return {"upsertBucket": {"bucket": run | {"project": project}, "inserted": not lines}}
        if "CreateRunFiles" in query:
            files = [{"name": f, "uploadUrl": f"{self.server.url}/files/{i}"} for i, f in enumerate(given["files"])]
            return {"createRunFiles": {"runID": "r", "uploadHeaders": [], "files": files}}
        return {}

    def answer(self, what):
        text = json.dumps(what).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_):
        pass


@contextmanager
def wandb_server():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    server.files, server.url = {}, f"http://127.0.0.1:{server.server_port}"
    server.handle_error = lambda *_: None  # W&B closes the connection when it ends
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.history = [json.loads(line) for line in server.files.get("wandb-history.jsonl", [])]
        server.shutdown()
        server.server_close()


@pytest.fixture(scope="module")
def one_process(tmp_path_factory):
    """Run one process that tracks several runs. Return (folder, lines on the terminal, server).

    Seeds 0 and 1 run without a key. Seed 2 is started three times with a key. Seed 3 runs with three trackers and is
    killed.
    """
    folder = tmp_path_factory.mktemp("one_process")
    body = (
        "tracking.log.addHandler(tracking.logging.StreamHandler(sys.stdout))\n"
        f"folder = Path({str(folder)!r})\n"
        "for seed in (0, 1): follow(store_of(folder, 'logger=wandb', f'seed={seed}'), 0, 1)\n"
        f"os.environ['WANDB_API_KEY'] = {KEY!r}\n"
        "store = store_of(folder, 'logger=wandb', 'seed=2')\n"
        "for before, after in ((0, 1), (2, 3), (1, 1)): follow(store, before, after)\n"
        f"stores = [store_of(folder / name, 'seed=3', 'logger=' + name) for name in {KILLED}]\n"
        "left_open = [tracking.opened(s.config, s.folder, NAMES, RECORDS[:1]) for s in stores]\n"
        "for tracker in left_open: tracker.__enter__()(RECORDS[:2], list)\n"
        "time.sleep(2.5); os.kill(os.getpid(), 9)"
    )
    screen, terminal = pty.openpty()
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), terminal)
    with wandb_server() as server:
        run = subprocess.Popen(script(TESTS, body), env=wandb_environment(folder, WANDB_BASE_URL=server.url), **pipes)
        os.close(terminal)
        try:
            assert run.wait(timeout=300) == -signal.SIGKILL
        finally:
            run.kill()
    shown = os.read(screen, 100_000).decode().splitlines()
    os.close(screen)
    return folder, shown, server


def test_killed_and_resumed_trackers_have_each_round_once(tmp_path, one_process):
    stores = {name: store_of(one_process[0] / name, "seed=3", f"logger={name}") for name in KILLED}
    for store in stores.values():
        follow(store, 2, 3)
    rows = table_of(stores["csv"].folder)
    assert [(row["round"], row["test/per_class/emu"]) for row in rows] == [("0", "1.0"), ("1", "1.0"), ("2", "1.0")]
    seen = scalars(stores["tensorboard"].folder)
    assert seen["round"] == [(20, 0), (30, 1), (40, 2)] and [step for step, _ in seen["epoch/loss"]] == [1, 2, 3, 4, 5]
    assert len(list((stores["tensorboard"].folder / "tensorboard").iterdir())) == 1
    files = wandb_records(stores["wandb_offline"].folder)
    assert [row["_step"] for records in files for row in history(records)] == STEPS
    ids = {r.run.run_id for records in files for r in records if r.WhichOneof("record_type") == "run"}
    assert len(files) == 2 and len(ids) == 1
    assert not (stores["wandb_offline"].folder / "wandb" / "latest-run").exists()  # `wandb sync` would send it too

    with wandb_server() as server:  # both files belong to one run there, too
        environment = wandb_environment(tmp_path, WANDB_BASE_URL=server.url, WANDB_API_KEY=KEY)
        folder = stores["wandb_offline"].folder / "wandb"
        synced = subprocess.run(
            [sys.executable, "-m", "wandb", "sync", folder], cwd=tmp_path, env=environment, timeout=300
        )
    assert synced.returncode == 0 and [row["_step"] for row in server.history] == STEPS


def test_without_a_key_nobody_is_asked_for_one_on_a_terminal(one_process):
    folder, shown, _ = one_process
    for seed, line in zip((0, 1), shown, strict=False):
        assert line.startswith("W&B: offline (there is no API key; `wandb login` stores one). To send the run later: ")
        (records,) = wandb_records(store_of(folder, f"seed={seed}").folder)
        assert [row["_step"] for row in history(records)] == [0, 1, 2]


def test_an_online_run_is_continued_where_the_server_has_it(one_process):
    _, shown, server = one_process  # the second start finds a round that was never sent, the third misses two
    assert [row["_step"] for row in server.history] == STEPS
    assert [row["n_labelled"] for row in server.history if "n_labelled" in row] == [20, 30, 40]
    assert len(shown) == 4  # the last is of the offline run that is killed
    assert re.fullmatch(r"W&B holds later rounds of this run \(\w{16}\)\. Only rounds after those .*", shown[2])


def test_without_a_network_the_run_goes_on_offline(tmp_path):
    environment = wandb_environment(
        tmp_path, WANDB_BASE_URL="http://127.0.0.1:9", WANDB_API_KEY=KEY, WANDB_INIT_TIMEOUT="2"
    )
    few = ("trainer.max_steps=2", "trainer.progress=false", "budget.rounds=1", "results_dir=out")
    done = command(tmp_path, "logger=wandb", *few, env=environment)
    assert done.returncode == 0, done.stderr
    told = re.findall(r"W&B: offline \((.*)\)\. To send the run later: wandb sync (\S+)", done.stdout)
    (folder,) = tmp_path.glob("out/*/*/*/*/*/*")
    assert len(told) == 1 and "resume status" in told[0][0] and tmp_path / told[0][1] == folder / "wandb"
    (records,) = wandb_records(folder)
    assert [row["n_labelled"] for row in history(records) if "n_labelled" in row] == [20, 40]
    assert done.stderr == "" and {p.name for p in tmp_path.iterdir()} == {"out", "home"}


def test_wandb_that_is_disabled_leaves_nothing(tmp_path):
    store = store_of(tmp_path, "logger=wandb", "logger.mode=disabled")
    follow(store, 0, 2)
    assert not list(store.folder.iterdir())
    os.environ["WANDB_MODE"] = "offline"
    assert asked("logger=wandb").logger.mode.name == "offline" and asked("logger=wandb_offline", "logger.images=3")


class Broken:
    """Fails from the second round on."""

    def __init__(self, c, folder, class_names):
        self.n, self.ended = 0, []
        Broken.last = self

    def log(self, records, picked=None):
        self.n += 1
        if len(records) > 1:
            raise RuntimeError("no connection")

    def finish(self, failed):
        self.ended.append(failed)


class Unmade(Broken):
    def __init__(self, *_):
        raise OSError("nowhere to write")


def test_a_tracker_that_fails_is_said_once_and_the_run_goes_on(tmp_path):
    for tracker, reason in ((Broken, "no connection"), (Unmade, "nowhere to write")):
        store = run_here(tmp_path / tracker.__name__, *SHORT, f"logger._target_=test_tracking.{tracker.__name__}")
        assert len(store.records()) == 4 and store.info()["state"] == "finished"
        log = (store.folder / "run.log").read_text()
        assert log.count("The tracker failed") == log.count(reason) == 1
    assert (Broken.last.n, Broken.last.ended) == (5, [False])


def test_an_interrupted_run_finishes_its_tracker_after_its_own_state(tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr(Broken, "finish", lambda self, failed: told.append((failed, store.info()["state"])))
    store = store_of(tmp_path, "logger._target_=test_tracking.Broken")
    with pytest.raises(SystemExit), store.at_work():
        store.at_end.enter_context(tracking.opened(store.config, store.folder, NAMES, []))
        raise KeyboardInterrupt
    assert told == [(True, "interrupted")]
    with store.at_work():
        store.at_end.enter_context(tracking.opened(store.config, store.folder, NAMES, []))
    assert told[1:] == [(False, "running")]  # a finished run returns at once, so everything is sent first


def test_a_missing_package_is_an_error_before_anything_is_trained(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(UserError, match="logger=tensorboard needs the package tensorboard.*pip install tensorboard"):
        run_here(tmp_path, "logger=tensorboard")
    with pytest.raises(UserError, match="logger._target_=nowhere.at_all cannot be loaded"):
        run_here(tmp_path, "logger._target_=nowhere.at_all")
    with pytest.raises(UserError, match="logger.images=-1: from 0 to 10,000"):
        asked("logger.images=-1")


def test_another_tracker_or_none_at_all_is_the_same_run(tmp_path):
    store = run_here(tmp_path, *SHORT, "budget.rounds=1")
    path = store.folder / "config.yaml"
    assert "logger:" in path.read_text()
    path.write_text(re.sub(r"logger:\n(  .*\n)+", "", path.read_text()))  # as in folders from before trackers
    assert "logger" not in path.read_text()
    again = run_here(tmp_path, *SHORT, "budget.rounds=1", "logger=csv", "logger.project=another")
    assert again.folder == store.folder and len((again.folder / "metrics.csv").read_text().splitlines()) == 3
