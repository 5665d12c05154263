from functools import partial

import pytest
import torch
from conftest import asked

from al_bench import rng
from al_bench.config import Augment
from al_bench.data.datamodule import BatchOrder, PoolDataModule, augment, image_loader
from al_bench.data.pool import Pool


def streams(seed, round):
    return partial(rng.stream, seed, round=round)


def passes(n, batch_size, steps=None, epochs=1):
    order = BatchOrder(n, batch_size, steps, torch.Generator().manual_seed(0))
    return [list(order) for _ in range(epochs)], len(order)


def images_of(n, size=8, channels=3):
    stream = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (n, size, size, channels), dtype=torch.uint8, generator=stream).permute(0, 3, 1, 2)


def a_pool():
    labelled, validation = torch.tensor([7, 3, 11, 0, 5]), torch.tensor([1, 2])
    rest = torch.tensor([4, 6, 8, 9, 10])
    return Pool(labelled, labelled % 3, rest, validation, validation % 3)


@pytest.mark.parametrize("batch_size", [2, 3, 8, 16, 64])
def test_a_pass_takes_every_image_once_and_never_leaves_one_alone(batch_size):
    for n in range(2, 71):
        (batches, more), length = passes(n, batch_size, epochs=2)
        sizes = [len(b) for b in batches]
        assert torch.equal(torch.cat(batches).sort().values, torch.arange(n))
        assert len(batches) == length and min(sizes) >= 2 and max(sizes) - min(sizes) <= 1
        assert max(sizes) <= batch_size + 1  # one more where a single image would have been left over
        assert n < 20 or not torch.equal(torch.cat(batches), torch.cat(more))


def test_one_labelled_image_is_shown_twice_so_that_batch_norm_has_two():
    assert [b.tolist() for b in passes(1, 16)[0][0]] == [[0, 0]]
    assert [b.tolist() for b in passes(1, 3, steps=2)[0][0]] == [[0, 0, 0]] * 2


@pytest.mark.parametrize("n, batch_size, steps", [(10, 4, 3), (3, 8, 5), (64, 8, 3)])
def test_counted_in_steps_every_batch_is_full_and_passes_go_on_over_the_epochs(n, batch_size, steps):
    epochs, length = passes(n, batch_size, steps, epochs=4)
    assert length == steps and all(len(e) == steps for e in epochs)
    assert all(len(b) == batch_size for e in epochs for b in e)
    row = torch.cat([b for e in epochs for b in e])
    for i in range(0, len(row) - n + 1, n):  # one shuffled pass after the other, whatever the epochs' borders
        assert torch.equal(row[i : i + n].sort().values, torch.arange(n))


def test_batches_carry_the_images_and_the_revealed_labels_of_the_labelled_set():
    images, pool = images_of(12), a_pool()
    data = PoolDataModule(images, pool, asked("trainer.batch_size=2").trainer, None, streams(seed=0, round=0))
    batches = list(data.train_dataloader())
    for x, y in batches:
        where = [next(i for i in pool.labelled_L.tolist() if torch.equal(images[i], image)) for image in x]
        assert y.tolist() == [i % 3 for i in where]
    assert sum(len(y) for _, y in batches) == 5
    (x, y), *more = data.val_dataloader()
    assert not more and torch.equal(x, images[pool.validation_V]) and torch.equal(y, pool.validation_labels_V)


def test_the_pool_loader_yields_images_alone_in_the_order_asked():
    images, idx = images_of(12), torch.tensor([9, 4, 8, 10, 6])
    batches = list(image_loader(images, idx, asked("trainer.predict_batch_size=2").trainer))
    assert [len(b) for b in batches] == [2, 2, 1] and torch.equal(torch.cat(batches), images[idx])


def test_loader_processes_bring_the_same_batches():
    images, pool = images_of(12), a_pool()
    by_workers = []
    for workers in (0, 1):
        c = asked("trainer.batch_size=2", f"trainer.num_workers={workers}").trainer
        by_workers.append(list(PoolDataModule(images, pool, c, 3, streams(seed=0, round=1)).train_dataloader()))
    for (x, y), (same_x, same_y) in zip(*by_workers, strict=True):
        assert torch.equal(x, same_x) and torch.equal(y, same_y)


def test_the_order_of_batches_depends_on_seed_and_round_and_draws_nothing_from_the_global_generator():
    c, images, pool = asked("trainer.batch_size=2").trainer, images_of(12), a_pool()
    before = torch.get_rng_state()
    orders = [
        torch.cat([x for x, _ in PoolDataModule(images, pool, c, 6, streams(seed, round)).train_dataloader()])
        for seed, round in [(0, 0), (0, 0), (1, 0), (0, 1)]
    ]
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(orders[0], orders[1])
    assert not torch.equal(orders[0], orders[2]) and not torch.equal(orders[0], orders[3])


@pytest.mark.parametrize("channels", [1, 3])
def test_batches_are_channels_last_with_and_without_augmentation(channels):
    x = next(iter(image_loader(images_of(12, channels=channels), torch.arange(6), asked().trainer)))
    for how in Augment:
        out = augment(x, how, torch.Generator().manual_seed(0))
        assert out.is_contiguous(memory_format=torch.channels_last) and out.dtype == torch.uint8, how


def test_a_flip_mirrors_about_half_of_the_images_and_leaves_the_others():
    x = torch.arange(6, dtype=torch.uint8).reshape(1, 1, 2, 3).expand(200, 1, 2, 3)
    out = augment(x, Augment.flip, torch.Generator().manual_seed(0))
    mirrored = [image[0].tolist() == [[2, 1, 0], [5, 4, 3]] for image in out]
    assert all(m or image[0].tolist() == [[0, 1, 2], [3, 4, 5]] for m, image in zip(mirrored, out, strict=True))
    assert 70 < sum(mirrored) < 130


def test_a_crop_shifts_each_image_by_its_own_draw_and_repeats_the_edges():
    size = 16  # shifted by up to 2
    one = torch.arange(size * size).reshape(size, size)
    x = torch.stack([one, one]).to(torch.uint8)[None].expand(300, 2, size, size)  # the same in both channels
    out = augment(x, Augment.flip_crop, torch.Generator().manual_seed(3))
    place = torch.arange(size)
    possible = {
        (mirror, down, right): (one.flip(-1) if mirror else one)[(place + down).clamp(0, size - 1)][
            :, (place + right).clamp(0, size - 1)
        ].to(torch.uint8)
        for mirror in (False, True) for down in range(-2, 3) for right in range(-2, 3)
    }  # fmt: skip
    seen = [[key for key, image in possible.items() if torch.equal(image, got[0])] for got in out]
    assert all(len(keys) == 1 for keys in seen) and torch.equal(out[:, 0], out[:, 1])
    assert {keys[0] for keys in seen} == set(possible)  # 300 draws meet all 50
    down_by_one = possible[False, 1, 0]
    assert torch.equal(down_by_one[:-1], one[1:].to(torch.uint8)) and torch.equal(down_by_one[-1], down_by_one[-2])


def test_augmentation_is_its_generators_doing_alone():
    x = images_of(40)
    outs = [augment(x, Augment.flip_crop, rng.stream(seed, "augment")) for seed in (0, 0, 1)]
    assert torch.equal(outs[0], outs[1]) and not torch.equal(outs[0], outs[2])
    assert augment(x, Augment.none, rng.stream(0, "augment")) is x
