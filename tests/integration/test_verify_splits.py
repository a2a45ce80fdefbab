"""`openslip verify --splits` passes what is exact and notices what is not."""

import pytest
from small_models import METHODS, small_batch, small_model
from torch import Tensor, nn

from openslip.errors import UserError
from openslip.objectives.clip import CLIP
from openslip.verify import show
from openslip.verify.splits import GLOBAL_BATCH, SLICES, refuse_randomness, split_rows


class Mixing(CLIP):
    """Centres the features of a slice, which an objective must not do in `encode`."""

    def encode(self, model: nn.Module, batch: dict[str, Tensor], /) -> dict[str, Tensor]:
        return {key: x - x.mean(dim=0) for key, x in super().encode(model, batch).items()}  # pyright: ignore


def test_cuts_cover_the_batch_in_one_two_and_five_uneven_slices():
    for size, cuts in SLICES.items():
        assert [sum(cut) for cut in cuts] == [size] * 3
        assert [len(cut) for cut in cuts] == [1, 2, 5]
        assert all(len(set(cut)) > 1 for cut in cuts[1:])


@pytest.mark.parametrize("method", METHODS)
def test_every_split_is_within_tolerance(method: str, capsys: pytest.CaptureFixture[str]):
    rows = split_rows(*small_model(method), small_batch(GLOBAL_BATCH))
    kinds = 2 if method == "clip" else 3  # CLIP has no statistics
    assert len(rows) == 5 * kinds
    assert {row.quantity.split(" (")[0] for row in rows} == {
        *("1 process x 2 slices", "1 process x 5 slices"),
        *("2 ranks x 1 slice", "2 ranks x 2 slices", "2 ranks x 5 slices"),
    }
    assert all(row.ok for row in rows), [row for row in rows if not row.ok]
    assert show(rows, "here") == 0
    assert f"{len(rows)} of {len(rows)} quantities within tolerance (here)" in capsys.readouterr().out


def test_an_objective_that_mixes_the_samples_of_a_slice_is_noticed(capsys: pytest.CaptureFixture[str]):
    model, _ = small_model("clip")
    rows = split_rows(model, Mixing(gather_with_grad=True, max_logit_scale=4.6), small_batch(GLOBAL_BATCH))
    assert not any(row.ok for row in rows if "2 slices" in row.quantity or "5 slices" in row.quantity)
    assert show(rows, "here") == 1
    assert "OUT" in capsys.readouterr().out


def test_a_model_that_draws_at_random_is_refused():
    model, objective = small_model("clip")
    model.image_tower.trunk.pos_drop = nn.Dropout(0.5)  # pyright: ignore
    with pytest.raises(UserError, match=r"features image are drawn at random"):
        refuse_randomness(model.train(), objective, small_batch(GLOBAL_BATCH))
