import json

import gallery
import torch

from al_bench.options import conf_dir, shipped, whole_strategies

ROOT = conf_dir().parent


def test_the_page_shows_every_strategy_and_every_figure():
    names = {name for name in whole_strategies() if "schedule" not in shipped("strategy", name)}
    by_file = gallery.by_file()
    assert {name for strategies in by_file.values() for name in strategies} == names
    assert json.loads((gallery.OUT / "picks.json").read_text()).keys() == names
    page = (ROOT / "al_bench" / "strategies" / "README.md").read_text()
    for file in by_file:
        assert f"results/gallery/{file}.png" in page and (gallery.OUT / f"{file}.png").is_file()


def test_the_picks_of_margin_are_those_between_two_classes_and_entropy_takes_copies():
    plane, strategies = gallery.make_plane(), gallery.by_file()["uncertainty"]
    top2 = plane.log_probs(plane.pool_P2, sampled=False)[:, 0].exp().topk(2).values
    smallest = (top2[:, 0] - top2[:, 1]).argsort()[: gallery.K]
    assert gallery.pick(strategies["margin"], plane).tolist() == smallest.tolist()
    copies = (plane.pool_P2 - torch.tensor(gallery.GROUPS[3][0])).norm(dim=1) < 0.15
    assert copies[gallery.pick(strategies["entropy"], plane)].sum() >= 5
