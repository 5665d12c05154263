import pytest
from test_learner import configured, fitted, learner, same, setting

from al_bench.errors import UserError
from al_bench.models import warm_start

pytestmark = pytest.mark.usefixtures("one_thread")


def test_saved_weights_start_the_next_fit_where_the_last_one_ended(tmp_path):
    c, (dataset, pool) = configured(), setting()
    trained, _ = fitted(c, dataset, pool)
    warm_start.save_weights(trained, tmp_path / "0.safetensors")
    other = learner(c, dataset).build(1)
    assert not same(trained, other)
    warm_start.load_weights(other, tmp_path / "0.safetensors")
    assert same(trained, other) and [f.name for f in tmp_path.iterdir()] == ["0.safetensors"]
    with pytest.raises(UserError, match="1.safetensors, which the next round starts from, is missing"):
        warm_start.load_weights(other, tmp_path / "1.safetensors")
