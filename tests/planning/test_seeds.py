"""Seeds: as asked, or drawn; and of variations that of the noise that is mixed in."""

from __future__ import annotations

from typing import Any

import pytest

from gguf_imagegen.planning.request import MAX_SEED
from gguf_imagegen.vocabulary.engine import Variation
from gguf_imagegen.vocabulary.errors import InvalidRequest
from tests.planning.test_plan import planned


def test_a_variation_keeps_the_seed() -> None:
    """All pictures have it; the other one counts up, under its own names and AUTOMATIC1111's."""
    plan = planned(seed=5, variation_seed=9, variation_strength=0.25, n=3)
    assert plan.spec.variation == Variation(9, 0.25)
    assert [plan.seed(index) for index in range(3)] == [5, 5, 5]
    assert [plan.variation(index) for index in range(3)] == [Variation(9 + index, 0.25) for index in range(3)]
    assert planned(seed=5, subseed="9", subseed_strength="0.25", n=3) == plan
    assert planned(variation_seed=9, variation_strength=0.12345678).spec.variation == Variation(9, 0.123457)


def test_a_seed_that_is_not_said_is_drawn() -> None:
    """Each by itself; -1 says none."""
    plans = [planned(variation_seed=seed, variation_strength=1) for seed in (None, -1, "-1")]
    seeds = [seed for plan in plans for seed in (plan.spec.seed, plan.variation(0))]
    assert len({str(seed) for seed in seeds}) == 6


def test_no_strength_is_no_variation() -> None:
    """What it would be mixed with is then said to have no effect, unless it is none."""
    plan = planned(seed=5, variation_seed=-1, variation_strength=0, n=2)
    assert (plan.spec.variation, plan.variation(1), plan.seed(1), plan.warnings) == (None, None, 6, ())
    assert planned(variation_strength=1e-7).spec.variation is None
    (warning,) = planned(variation_seed=9).warnings
    assert warning == "variation_seed: has no effect without variation_strength"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"variation_seed": MAX_SEED, "n": 2, "variation_strength": 0.5}, "variation_seed"),
        ({"variation_seed": -2, "variation_strength": 0.5}, "variation_seed"),
        ({"variation_strength": 1.1}, "variation_strength"),
        ({"subseed_strength": -0.1}, "subseed_strength"),
    ],
)
def test_what_is_refused(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        planned(**fields)
    assert refused.value.param == param
