"""Whether a run is finished, and on the images that its configuration names.

torch is imported only if dataset.root names another folder than it did when the run was made.
"""

import json
from dataclasses import asdict

from al_bench.config import Config, flat
from al_bench.store import RunStore

_checksums: dict[str, str] = {}  # by the settings that determine the images; runs of a sweep share them


def is_finished(store: RunStore) -> bool:
    """Raises UserError if the folder holds rounds of another configuration, other images, weights or code."""
    done = store.finished()
    if done and store.images_moved():
        store.compare_images(images_checksum(store.config))
    return done


def images_checksum(c: Config) -> str:
    """The checksum of the images that this configuration names. They are decoded if the cache lacks them."""
    seed = c.seed if c.stressor.copies > 1 else 0  # the noise of copies depends on the seed, other images do not
    key = json.dumps([*(flat(asdict(part)) for part in (c.dataset, c.stressor, c.model)), seed], default=str)
    if key not in _checksums:
        from al_bench.data import sources
        from al_bench.models import nets

        source = sources.find(c.dataset, nets.preferred_size(c.model), c.cache_dir)
        _checksums[key] = sources.load(c.dataset, source, seed, c.stressor, c.cache_dir)[0].checksum
    return _checksums[key]
