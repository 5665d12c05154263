"""Images that come into a folder after its list was made."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from al_bench import rng
from al_bench.errors import UserError
from al_bench.labelling.images import Listing, home_of, list_images, test_images, with_new, write_list
from al_bench.labelling.labels import locked
from al_bench.labelling.settings import composed, next_run, read_settings, write_settings
from al_bench.text import one_line


def take_in_new(folder: str | Path) -> str:
    """List the new images of a folder. A new run begins with all labels. Returns a sentence. Raises UserError."""
    settings, shown = read_settings(folder), one_line(str(folder))
    if settings is None:
        raise UserError(f"Nothing of {shown} is labelled yet, so all of its images are new. Leave out --new.")
    with locked(home_of(folder)):
        before = list_images(folder)
        now = with_new(before)
        if n_new := len(now.images) - len(before.images):
            now, n_tested = _marked(before, now, settings.overrides)
            write_settings(folder, next_run(settings))  # first: the run so far does not know the new images
        write_list(now.folder, now.images)
    if not n_new:
        return f"{shown} has no new images."
    tested = f", {n_tested:,} of them as test images" if n_tested else ""
    return f"{n_new:,} new images are taken in{tested}. A new run begins. All labels are kept."


def _marked(before: Listing, now: Listing, overrides: Sequence[str]) -> tuple[Listing, int]:
    """(the list with the test images named, how many are new). Listed images keep their roles.

    A new image is tested with the probability that it would have in a folder of this size.
    """
    c, n = composed(before, overrides).config, len(before.images)
    tested = {*test_images(before, c.dataset.test_fraction, c.seed)}
    share = composed(now, overrides).config.dataset.test_fraction
    drawn = torch.rand(len(now.images) - n, generator=rng.stream(c.seed, "test_split", n)) < share
    new = {image.path for image, is_test in zip(now.images[n:], drawn.tolist(), strict=True) if is_test}
    return replace(now, images=tuple(replace(i, test=i.path in tested | new) for i in now.images)), len(new)
