"""Measure al-bench label on a folder of large photographs, in headless Chromium: times, memory, and keys.

    python scripts/bench_labelling.py --photos train.zip --folder SCRATCH [--weights FILE]

Two folders are made in SCRATCH of the small photographs in --photos: one of large photographs (`large_photos.py`), and
one of thumbnails, whose features take little time. Files that are there stay. On the first folder it measures from the
command to the first image on the screen, from a key to the next image while all others are decoded in the background,
and the memory of the command until the run has chosen its first images. On the second one it measures trainings with
many labels: from the last answer of a batch until the next batch is asked for, and how fast the server answers
meanwhile. --weights: a file of tf_efficientnet_lite0's; without it images are compared by their pixels. Needs Chromium.
Writes results/bench_labelling.json.
"""

import argparse
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import check_results
import large_photos
from PIL import Image

from al_bench.data.files import files_in
from al_bench.provenance import machine

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from browser import Page, chromium  # noqa: E402

OUT = check_results.RESULTS / "bench_labelling.json"
THUMBNAIL = 32  # pixels of the images that are trained on
READY = "typeof state !== 'undefined' && state && current && seen && pending.length === 0"
ON_SCREEN = "document.querySelector('#picture img') && document.querySelector('#picture img').complete"
STOPWATCH = """
window.took = [];
window.late = 0; // keys whose next image was not loaded
let pressed = 0;
document.addEventListener("keydown", (event) => { pressed = event.timeStamp; }, true);
new MutationObserver(() => {
  if (!pressed) return;
  if (!document.querySelector("#picture img")) { window.late++; return; }
  const start = pressed, channel = new MessageChannel();
  pressed = 0;
  channel.port1.onmessage = () => took.push(performance.now() - start);
  requestAnimationFrame(() => channel.port2.postMessage(0));
}).observe(document.getElementById("picture"), { childList: true });
"""


class Command:
    """al-bench label at work, and what it takes."""

    def __init__(self, folder: Path, overrides: list[str]) -> None:
        self.started = time.monotonic()
        start = [sys.executable, "-m", "al_bench", "label", str(folder), "--classes", "cat,dog", "--no-browser"]
        self.process = subprocess.Popen([*start, *overrides], stdout=subprocess.PIPE, text=True)
        self.peak = self.peak_own = 0
        self.url = next((line.split()[-1] for line in self.process.stdout if "http://" in line), "")
        if not self.url:
            sys.exit(f"al-bench label has ended: {self.process.wait()}")
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        """Keep the highest memory in MiB: all, with the pages of mapped files, and its own pages alone."""
        while self.process.poll() is None:
            pages = [_memory(pid) for pid in (self.process.pid, *_children(self.process.pid))]
            self.peak = max(self.peak, sum(all for all, _ in pages))
            self.peak_own = max(self.peak_own, sum(own for _, own in pages))
            time.sleep(0.1)

    @property
    def asked(self) -> int:
        """How many images are asked for now: the test images, until the run has chosen others."""
        state = self.get("state")
        return state["done"] + state["left"]

    def get(self, name: str) -> Any:
        with urllib.request.urlopen(f"{self.url}{name}") as reply:
            return json.load(reply)

    def post(self, name: str, **content: Any) -> Any:
        headers = {"Content-Type": "application/json", "Origin": self.url.rsplit("/", 2)[0]}
        with urllib.request.urlopen(
            urllib.request.Request(f"{self.url}{name}", json.dumps(content).encode(), headers)
        ) as reply:
            return json.load(reply)


def _memory(pid: int) -> tuple[int, int]:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0, 0
    found = {
        line.split(":")[0]: int(line.split()[1]) // 1024 for line in lines if line.startswith(("VmRSS", "RssAnon"))
    }
    return found.get("VmRSS", 0), found.get("RssAnon", 0)


def _children(pid: int) -> list[int]:
    try:
        tasks = [*Path(f"/proc/{pid}/task").iterdir()]
        own = [int(child) for task in tasks for child in (task / "children").read_text().split()]
    except OSError:
        return []
    return [*own, *(child for one in own for child in _children(one))]


@contextmanager
def labelling(folder: Path, *overrides: str) -> Iterator[Command]:
    """The command on a folder that nobody has labelled."""
    home = folder.with_name(f"{folder.name}-labels")
    shutil.rmtree(home, ignore_errors=True)
    command = Command(folder, [f"cache_dir={home}/cache", *overrides])
    try:
        yield command
    finally:
        command.process.kill()  # it may be killed at any time, and would finish a part of its work first
        command.process.wait()


def keys(page: Page, n: int, seconds: float) -> dict[str, Any]:
    """Press n keys, one in so many seconds."""
    page.until(READY)
    page.run(STOPWATCH)
    for _ in range(n):
        start = time.monotonic()
        page.press(random.choice("12"))
        page.until(READY)
        time.sleep(max(0.0, seconds - (time.monotonic() - start)))
    return {"milliseconds": _spread(page.run("took")), "next image was not loaded": page.run("late")}


def _spread(values: list[float]) -> dict[str, float]:
    ordered = sorted(values)
    at = {"median": 0.5, "p95": 0.95, "highest": 1.0}
    return {"n": len(ordered)} | {name: round(ordered[round(q * (len(ordered) - 1))], 1) for name, q in at.items()}


def large(folder: Path, a: argparse.Namespace) -> dict[str, Any]:
    """Label the folder of large photographs until the run has chosen images, or --minutes have passed."""
    found: dict[str, Any] = {"images": a.images, "size": a.size, "bytes of an image": _mean_size(folder)}
    with tempfile.TemporaryDirectory() as profile, chromium(Path(profile)) as pipe:
        with labelling(folder, *a.model) as command:
            found["seconds to the address"] = round(time.monotonic() - command.started, 1)
            page = pipe.open(command.url)
            page.until(ON_SCREEN)
            found["seconds to the first image"] = round(time.monotonic() - command.started, 1)
            n_test = command.asked
            found["from a key to the next image"] = keys(page, min(a.keys, n_test - n_test // 4), a.seconds_a_key)
            found["the others were decoded meanwhile"] = command.asked == n_test
            end = command.started + 60 * a.minutes
            while (waits := command.asked == n_test) and time.monotonic() < end:
                time.sleep(1)
            minutes = round((time.monotonic() - command.started) / 60, 1)
            found["minutes until images were chosen"] = None if waits else minutes
            found["peak memory in MiB"] = {"with mapped files": command.peak, "own": command.peak_own}
    return found


def _mean_size(folder: Path) -> int:
    return round(statistics.mean(file.stat().st_size for file in folder.rglob("*.jpg")))


def trained(folder: Path, a: argparse.Namespace) -> dict[str, Any]:
    """Label thumbnails by their names until three rounds were trained, the first with --labels labels."""
    rounds = 3
    found: dict[str, Any] = {"images": a.images, "labels": a.labels, "seconds": [], "milliseconds of requests": []}
    start = [f"budget.initial={a.labels}", "budget.start=random", f"dataset.image_size={THUMBNAIL}"]
    with labelling(folder, *a.model, *start) as command:
        n_test = command.asked
        while command.asked == n_test:
            time.sleep(0.2)
        for _ in range(rounds):
            while items := command.post("next", first=[])["items"]:
                for item in items:
                    command.post("answer", id=item["id"], answer=item["text"].split("/")[-1][:3], seconds=0.5)
            start_of_training = time.monotonic()
            while command.get("state")["state"] == "training":
                asked = time.monotonic()
                command.get("state")
                found["milliseconds of requests"].append(1000 * (time.monotonic() - asked))
                time.sleep(0.02)
            found["seconds"].append(round(time.monotonic() - start_of_training, 2))
        found["accuracy"] = round(command.get("state")["accuracy"][-1]["accuracy"], 3)
        found["peak memory in MiB"] = {"with mapped files": command.peak, "own": command.peak_own}
    return found | {"milliseconds of requests": _spread(found["milliseconds of requests"])}


def thumbnails(folder: Path, n: int, photos: Path) -> None:
    """n of the photographs in a small size, named like their files."""
    files = files_in(str(photos))
    for name in random.Random(0).sample(list(files.names), min(n, len(files.names))):
        file = folder / Path(name).name
        if not file.exists():
            folder.mkdir(parents=True, exist_ok=True)
            large_photos.opened(files.read(name)).resize((THUMBNAIL,) * 2, Image.Resampling.BILINEAR).save(file)


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--photos", type=Path, required=True, help="a zip or folder of cat.*.jpg and dog.*.jpg")
    ask.add_argument("--folder", type=Path, required=True, help="to make images in: 20,000 of them take 20 GB")
    ask.add_argument("--weights", type=Path)
    ask.add_argument("--images", type=int, default=20_000)
    ask.add_argument("--size", type=int, nargs=2, default=[4032, 3024])
    ask.add_argument("--keys", type=int, default=200)
    ask.add_argument("--seconds-a-key", type=float, default=0.5)
    ask.add_argument("--labels", type=int, default=1_000)
    ask.add_argument("--minutes", type=float, default=60, help="that the run may take until it chooses images")
    ask.add_argument("--only", choices=["large", "trained"])
    ask.add_argument("--out", type=Path, default=OUT)
    a = ask.parse_args()
    a.model = [f"model.weights={a.weights.resolve()}"] if a.weights else []
    found = json.loads(a.out.read_text()) if a.out.exists() else {}
    found["machine"] = machine() | {"load": [round(load, 1) for load in os.getloadavg()]}
    if a.only != "trained":
        large_photos.make(a.folder / "photos", a.images, tuple(a.size), a.photos)
        found["large"] = large(a.folder / "photos", a)
        a.out.write_text(json.dumps(found, indent=1) + "\n")
    if a.only != "large":
        thumbnails(a.folder / "thumbnails", a.images, a.photos)
        found["trained"] = trained(a.folder / "thumbnails", a)
        a.out.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
