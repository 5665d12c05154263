import io
import os
import struct
import zipfile
import zlib

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from al_bench.config import DatasetConfig, OnBadImage
from al_bench.data.decode import decode
from al_bench.data.files import files_in
from al_bench.data.photo import resize
from al_bench.errors import UserError

STOP, SKIP = OnBadImage.stop, OnBadImage.skip


def encoded(image, kind="png", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def flat(mode, colour, side=8):
    return Image.new(mode, (side, side), colour)


def grey(value, side=8):
    return encoded(flat("L", value, side))


def write(folder, files):
    """Names that end in / are empty folders."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / f"{name}x").parent.mkdir(parents=True, exist_ok=True)
        if not name.endswith("/"):
            (folder / name).write_bytes(content)
    return folder


def zipped(path, files, compression=zipfile.ZIP_STORED, **claims):
    """A zip of the files. `claims`: what its table of contents says about the first file, true or not."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
        for fact, value in claims.items():
            setattr(archive.infolist()[0], fact, value)
    return path


def decoded(root, tmp_path, size=8, on_bad=STOP, **options):
    c = DatasetConfig(on_bad_image=on_bad, **options)
    return decode(files_in(str(root)), size, c, str(tmp_path / "cache"))


def png_of_side(side):
    """A PNG with a sound header and no pixels."""
    png = b"\x89PNG\r\n\x1a\n"
    for body in (b"IHDR" + struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0), b"IDAT", b"IEND"):
        png += struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    return png


SIXTEEN_BIT = Image.fromarray(np.full((8, 8), 77 * 257 + 200, np.uint16))
PALETTE = flat("P", 1)
PALETTE.putpalette([1, 2, 3, 200, 30, 40])
NOISE = np.random.default_rng(0).integers(0, 256, (75, 53, 3), dtype=np.uint8)
BAD = {
    "cut.jpg": encoded(Image.fromarray(NOISE), "jpeg")[:900],
    "empty.jpg": b"",
    "gigapixel.png": png_of_side(100_000),
    "large.png": png_of_side(10_000),  # between Pillow's warning and its error
    "text.jpg": b"This is no photograph.\n",
}


@pytest.mark.parametrize(
    "image, options, expected",
    [
        (flat("L", 77), {}, (77, 77, 77)),
        (flat("1", 1), {}, (255, 255, 255)),
        (SIXTEEN_BIT, {}, (77, 77, 77)),
        (flat("RGBA", (10, 20, 30, 255)), {}, (10, 20, 30)),
        (flat("RGBA", (10, 20, 30, 0)), {}, (255, 255, 255)),
        (flat("RGBA", (0, 50, 255, 51)), {}, (204, 214, 255)),  # a fifth of it over white
        (flat("LA", (0, 51)), {}, (204, 204, 204)),
        (PALETTE, {}, (200, 30, 40)),
        (PALETTE, {"transparency": 0}, (200, 30, 40)),
        (PALETTE, {"transparency": 1}, (255, 255, 255)),
        (flat("RGB", (9, 9, 9)), {"transparency": (9, 9, 9)}, (255, 255, 255)),
        (flat("CMYK", (0, 255, 255, 0)), {"kind": "jpeg", "quality": 95}, (255, 0, 0)),
        (flat("CMYK", (0, 0, 0, 155)), {"kind": "jpeg", "quality": 95}, (100, 100, 100)),
    ],
)
def test_every_kind_of_image_becomes_the_rgb_a_viewer_shows(image, options, expected, tmp_path):
    images, _ = decoded(write(tmp_path / "in", {"image": encoded(image, **options)}), tmp_path)
    assert images.shape == (1, 8, 8, 3) and images.dtype == np.uint8
    np.testing.assert_allclose(images[0].reshape(-1, 3), [expected] * 64, atol=3 if "kind" in options else 0)


def test_a_photograph_taken_sideways_is_turned_upright(tmp_path):
    stored, exif = Image.new("RGB", (16, 8), "blue"), Image.Exif()
    stored.paste("red", (0, 0, 8, 8))
    exif[0x0112] = 6  # orientation: the left of the stored image is the top
    images, _ = decoded(write(tmp_path / "in", {"a.jpg": encoded(stored, "jpeg", exif=exif, subsampling=0)}), tmp_path)
    np.testing.assert_allclose(images[0, 0], [[255, 0, 0]] * 8, atol=6)
    np.testing.assert_allclose(images[0, 7], [[0, 0, 255]] * 8, atol=6)


@pytest.mark.parametrize(
    "antialias, expected",
    [
        (False, [50, 120]),  # halfway between two columns: (0 + 100) / 2, (200 + 40) / 2
        (True, [71, 117]),  # (0*3 + 100*3 + 200) / 7, (100 + 200*3 + 40*3) / 7
    ],
)
def test_resizing_matches_values_computed_by_hand_and_torchs(antialias, expected, tmp_path):
    columns = Image.fromarray(np.array([[0, 100, 200, 40]] * 4, np.uint8))
    images, _ = decoded(write(tmp_path / "in", {"a.png": encoded(columns)}), tmp_path, 2, antialias=antialias)
    assert images[0, :, :, 0].tolist() == [expected, expected]
    noise_1CHW = torch.from_numpy(NOISE).permute(2, 0, 1)[None].float()
    torchs = F.interpolate(noise_1CHW, (64, 64), mode="bilinear", antialias=antialias)[0].permute(1, 2, 0).numpy()
    difference = resize(Image.fromarray(NOISE), 64, antialias) - torchs
    assert abs(difference).max() <= 1 and abs(difference.mean()) < 0.05  # rounded, not truncated


def test_broken_files_stop_and_are_named_twenty_of_them(tmp_path):
    folder = write(tmp_path / "in", BAD | {"a.png": grey(1), "z.png": grey(2)})
    write(folder, {f"no.{i:02}.jpg": b"" for i in range(18)})
    with pytest.raises(UserError) as stopped:
        decoded(folder, tmp_path)
    first, *listed, rest, todo = str(stopped.value).splitlines()
    assert "23 of the files" in first and "and 3 more" in rest and "on_bad_image=skip" in todo and len(listed) == 20
    assert [line.split(":")[0].strip() for line in listed[:5]] == [
        "cut.jpg",
        "empty.jpg",
        "gigapixel.png",
        "large.png",
        "no.00.jpg",
    ]
    for line, fault in zip(listed, ["truncated", "not an image", "too many pixels", "too many pixels"], strict=False):
        assert fault in line


def test_skipping_leaves_out_broken_files_and_says_which_also_from_the_cache(tmp_path):
    folder = write(tmp_path / "in", BAD | {"a.png": grey(1), "ga.png": grey(2), "z.png": grey(3)})
    for _ in range(2):
        images, notes = decoded(folder, tmp_path, on_bad=SKIP)
        assert images[:, 0, 0, 0].tolist() == [1, 2, 3] and notes["skipped"] == sorted(BAD)
    with pytest.raises(UserError):  # the cached array without the bad files is not taken for the whole one
        decoded(folder, tmp_path)
    with pytest.raises(UserError, match="5 of the files"):  # nothing would be left
        decoded(write(tmp_path / "bad", BAD), tmp_path, on_bad=SKIP)


def test_a_changed_image_is_decoded_again(tmp_path):
    assert decoded(write(tmp_path / "in", {"a.png": grey(1)}), tmp_path)[0].max() == 1
    assert decoded(write(tmp_path / "in", {"a.png": grey(200, side=9)}), tmp_path)[0].max() == 200


def test_another_folder_with_the_same_names_sizes_and_times_is_another_one(tmp_path):
    folders = [
        write(tmp_path / name, {"a.bmp": encoded(flat("L", n), "bmp")}) for name, n in (("one", 1), ("two", 200))
    ]
    for folder in folders:
        os.utime(folder / "a.bmp", (0, 0))
    assert len({(folder / "a.bmp").stat().st_size for folder in folders}) == 1
    assert [decoded(folder, tmp_path)[0].max() for folder in folders] == [1, 200]


def test_hidden_files_are_left_out_and_linked_folders_are_not(tmp_path):
    files = {"a/1.png": grey(1), "a/.2.png": b"", ".b/3.png": b"", "__MACOSX/a/._1.png": b"", "c/d/4.png": grey(2)}
    folder = write(tmp_path / "in", files)
    (folder / "e").symlink_to(write(tmp_path / "elsewhere", {"5.png": grey(3)}))
    found = files_in(str(folder))
    assert found.names == ("a/1.png", "c/d/4.png", "e/5.png") and found.folders == ("a", "c", "c/d", "e")
    found = files_in(str(zipped(tmp_path / "in.zip", {f"./{name}": content for name, content in files.items()})))
    assert found.names == ("a/1.png", "c/d/4.png") and found.folders == ("a", "c", "c/d")
    assert found.read("c/d/4.png") == grey(2)


@pytest.mark.parametrize(
    "name", ["/cat.0.jpg", "../cat.0.jpg", "train/../../cat.0.jpg", "C:/cat.0.jpg", "a\\..\\b.jpg"]
)
def test_an_archive_with_names_that_point_outside_it_is_refused(name, tmp_path):
    with pytest.raises(UserError, match="points outside the archive"):
        files_in(str(zipped(tmp_path / "evil.zip", {"fine.png": grey(1), name: grey(2)})))


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_zip_inside_a_zip_is_read_like_the_inner_one(compression, tmp_path):
    inner = zipped(tmp_path / "train.zip", {f"train/cat.{i}.png": grey(i) for i in range(9)}, compression)
    outer = zipped(tmp_path / "all.zip", {"test1.zip": b"x", "train.zip": inner.read_bytes()}, compression)
    assert decoded(outer, tmp_path)[0][:, 0, 0, 0].tolist() == list(range(9))
    assert files_in(str(outer)).fingerprint == files_in(str(inner)).fingerprint  # one entry in the cache


@pytest.mark.parametrize(
    "claims, of_image, of_archive",
    [
        ({"flag_bits": 1}, "encrypted", "encrypted"),
        ({"CRC": 12345}, "Bad CRC-32", "Bad CRC-32"),
        ({"file_size": 1 << 60}, "too large", "more than is free"),
    ],
)
def test_a_damaged_member_of_an_archive_is_named(claims, of_image, of_archive, tmp_path):
    archive = zipped(tmp_path / "train.zip", {"a.png": grey(1), "b.png": grey(2)}, **claims)
    with pytest.raises(UserError, match=rf"1 of the files .*\n  a.png: .*{of_image}"):
        decoded(archive, tmp_path)
    images, notes = decoded(archive, tmp_path, on_bad=SKIP)
    assert images[:, 0, 0, 0].tolist() == [2] and notes["skipped"] == ["a.png"]
    with pytest.raises(UserError, match=rf"all.zip cannot be read: .*{of_archive}"):
        files_in(str(zipped(tmp_path / "all.zip", {"train.zip": archive.read_bytes()}, **claims)))


def test_an_archive_cut_short_or_garbled_is_refused(tmp_path):
    whole = zipped(tmp_path / "whole.zip", {"train.zip": bytes(5000)}, zipfile.ZIP_DEFLATED).read_bytes()
    garbled = whole[:39] + b"\xff" * 4 + whole[43:]
    write(tmp_path, {"cut.zip": whole[:-30], "garbled.zip": garbled, "no zip inside.zip": whole, "text.zip": b"hello"})
    for name in ("cut", "garbled", "no zip inside", "text"):
        with pytest.raises(UserError, match=f"{name}.zip cannot be read"):
            files_in(str(tmp_path / f"{name}.zip"))
    with pytest.raises(UserError, match="absent.zip: there is no such file or folder"):
        files_in(str(tmp_path / "absent.zip"))
