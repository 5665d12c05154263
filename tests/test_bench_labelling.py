"""The benchmark of labelling on large photographs, very small."""

import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

SCRIPTS = Path(__file__).parents[1] / "scripts"


def small_photos(folder):
    folder.mkdir()
    for i in range(110):
        pixels = np.random.default_rng(i).integers(0, 255, (8, 8, 3), dtype=np.uint8)
        photo = Image.fromarray(pixels).resize((64, 64), Image.Resampling.BICUBIC)
        photo.save(folder / f"{('cat', 'dog')[i % 2]}.{i}.jpg")
    return folder


def test_photographs_made_of_bands_are_sound_and_differ(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import large_photos

    large_photos.make(tmp_path / "out", 12, (320, 240), small_photos(tmp_path / "in"))
    contents = [file.read_bytes() for file in sorted((tmp_path / "out").rglob("*.jpg"))]
    images = [np.asarray(Image.open(io.BytesIO(content)).convert("RGB")) for content in contents]
    assert len({*contents}) == 12 and {image.shape for image in images} == {(240, 320, 3)}
    differences = [abs(a.astype(int) - b).mean() for a in images for b in images if a is not b]
    assert min(differences) > 5


@pytest.mark.xdist_group("browser")
@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs Chromium")
def test_the_benchmark_runs_on_few_small_images(tmp_path):
    photos, out = small_photos(tmp_path / "in"), tmp_path / "out.json"
    command = [
        sys.executable, SCRIPTS / "bench_labelling.py", "--photos", photos, "--folder", tmp_path, "--images", "100",
        "--size", "320", "240", "--keys", "3", "--seconds-a-key", "0.1", "--labels", "10", "--out", out,
    ]  # fmt: skip
    done = subprocess.run([*map(str, command)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())
    assert found["large"]["from a key to the next image"]["milliseconds"]["n"] == 3
    assert found["large"]["minutes until images were chosen"] and found["large"]["peak memory in MiB"]["own"] > 100
    assert len(found["trained"]["seconds"]) == 3 and found["machine"]["cores"] >= 1
