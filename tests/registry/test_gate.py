"""The gate's rules on figures made up here, and its error rates by simulation."""

import numpy as np
import pytest

from latentflow.errors import LatentflowError
from latentflow.evaluation.pairs import paired
from latentflow.params import GateParams
from latentflow.registry import verdict_text
from latentflow.registry.gate import Judged, Status, Verdict, rules_key, verdict

HITS, LOSS = "retrieval/train/top5", "heldout_loss"
PROTOCOL = {"version": 3, "reference_digest": "r" * 64, "seeds": [0, 1], "device": "cpu", "guidance": 2.0}


def rules(confidence: float = 0.95, thresholds: object = None, **comparisons: object) -> GateParams:
    names = {"hits": HITS, "loss": LOSS, "seconds": "seconds_per_picture", "kernel": "kernel_pixels8"}
    compared = {names[name]: value for name, value in comparisons.items()}
    return GateParams(thresholds=thresholds or {}, comparisons=compared, confidence=confidence)


def judged(units: dict[str, np.ndarray], protocol: dict[str, object] | None = None, **metrics: float) -> Judged:
    per_unit = {name: {str(i): float(v) for i, v in enumerate(values)} for name, values in units.items()}
    means = {name: float(np.mean(values)) for name, values in units.items()}
    return Judged(means | metrics, per_unit, PROTOCOL | (protocol or {}))


def hits(count: int, of: int = 200) -> np.ndarray:
    return (np.arange(of) < count).astype(float)


def one(found: Verdict) -> tuple[Status, str]:
    assert len(found.rulings) == 1
    return found.rulings[0].status, found.rulings[0].why


def test_thresholds_decide_alone_where_there_is_no_champion() -> None:
    bounds = {HITS: {"min": 0.5}, LOSS: {"min": 0.1, "max": 0.9}}
    fine = judged({HITS: hits(120)}, heldout_loss=0.8)
    assert verdict(rules(thresholds=bounds, hits=0.05), fine) == verdict(rules(thresholds=bounds), fine)
    assert verdict(rules(thresholds=bounds), fine).status is Status.PASSED
    found = verdict(rules(thresholds=bounds), judged({HITS: hits(80)}, heldout_loss=0.95))
    assert found.status is Status.FAILED
    assert found.status.refused
    assert found.reasons == [
        "retrieval/train/top5 is 0.4, and must be at least 0.5.",
        "heldout_loss is 0.95, and must be at least 0.1 and at most 0.9.",
    ]


@pytest.mark.parametrize(
    ("candidate", "champion", "expected"),
    [(150, 100, Status.PASSED), (60, 100, Status.FAILED), (93, 100, Status.INCONCLUSIVE)],
)
def test_more_is_better_for_hits(candidate: int, champion: int, expected: Status) -> None:
    found = verdict(rules(hits=0.05), judged({HITS: hits(candidate)}), judged({HITS: hits(champion)}), "1")
    assert (found.status, found.champion) == (expected, "1")
    assert "200 units" in one(found)[1]


@pytest.mark.parametrize(("factor", "expected"), [(0.9, Status.PASSED), (1.0, Status.PASSED), (1.1, Status.FAILED)])
def test_less_is_better_for_losses_and_a_tolerance_may_be_relative(factor: float, expected: Status) -> None:
    losses = np.random.default_rng(0).lognormal(size=100)
    for tolerance in ("2%", 0.02 * float(losses.mean())):
        found = verdict(rules(loss=tolerance), judged({LOSS: losses * factor}), judged({LOSS: losses}), "1")
        assert found.status is expected


def test_equal_hits_of_few_captions_are_no_evidence() -> None:
    few, many = judged({HITS: hits(3, of=6)}), judged({HITS: hits(100)})
    assert verdict(rules(hits=0.05), few, few, "1").status is Status.INCONCLUSIVE
    assert verdict(rules(hits=0.05), many, many, "1").status is Status.PASSED


def test_only_common_units_count_and_one_is_too_few() -> None:
    first, second = {"a": 1.0, "b": 2.0, "c": 9.0}, {"b": 1.0, "a": 0.5, "d": 7.0}
    found = paired(LOSS, first, second)
    assert found is not None
    assert (found.units, found.difference) == (2, 0.75)
    assert found.low < 0.75 < found.high
    assert paired(LOSS, {"a": 1.0}, {"a": 2.0}) is None
    assert paired(LOSS, {}, {"a": 2.0}) is None


def test_a_figure_without_units_is_compared_and_said_to_be_so() -> None:
    champion = judged({}, kernel_pixels8=0.010)
    found = verdict(rules(kernel="10%"), judged({}, kernel_pixels8=0.0109), champion, "1")
    assert one(found) == (Status.PASSED, "kernel_pixels8: 0.0109 against 0.01; no units, so its noise is not known.")
    assert verdict(rules(kernel="10%"), judged({}, kernel_pixels8=0.012), champion, "1").status is Status.FAILED


def test_one_failure_refuses_and_one_doubt_leaves_it_open() -> None:
    losses = np.random.default_rng(0).lognormal(size=100)
    champion = judged({HITS: hits(100), LOSS: losses})
    worse = judged({HITS: hits(150), LOSS: losses * 1.2})
    assert verdict(rules(hits=0.05, loss="2%"), worse, champion, "1").status is Status.FAILED
    doubt = judged({HITS: hits(93), LOSS: losses})
    assert verdict(rules(hits=0.05, loss="2%"), doubt, champion, "1").status is Status.INCONCLUSIVE


def test_other_real_pictures_are_not_comparable_and_what_to_do_is_said() -> None:
    candidate = judged({HITS: hits(150)}, {"reference_digest": "s" * 64})
    found = verdict(rules(hits=0.05), candidate, judged({HITS: hits(100)}), "4")
    assert found.status is Status.NOT_COMPARABLE
    assert found.status.refused
    assert "the real pictures (ssssssssssss… and rrrrrrrrrrrr…)" in found.reasons[0]
    assert "--encoded and --records" in found.reasons[0]
    # A figure that is too low is so with or without a champion.
    failed = verdict(rules(thresholds={HITS: {"min": 0.9}}, hits=0.05), candidate, judged({HITS: hits(100)}), "4")
    assert failed.status is Status.FAILED


def test_what_a_model_ships_with_may_differ_and_so_may_the_device_but_for_its_own_figures() -> None:
    champion = judged({HITS: hits(100)}, {"guidance": 5.0, "device": "cuda"}, seconds_per_picture=0.1)
    candidate = judged({HITS: hits(150)}, seconds_per_picture=0.5)
    found = verdict(rules(hits=0.05, seconds="10%"), candidate, champion, "1")
    assert found.status is Status.PASSED
    assert [ruling.status for ruling in found.rulings] == [Status.PASSED, Status.NOT_COMPARABLE]
    assert verdict(rules(seconds="10%"), candidate, champion, "1").status is Status.NOT_COMPARABLE


def test_a_loss_that_the_champion_cannot_have_is_left_out() -> None:
    candidate = judged({HITS: hits(150)}, heldout_loss=0.5)
    found = verdict(rules(hits=0.05, loss="2%"), candidate, judged({HITS: hits(100)}), "1")
    assert found.status is Status.PASSED
    assert "no such figure" in found.rulings[1].why


def test_a_champion_that_could_not_be_judged() -> None:
    found = verdict(rules(hits=0.05), judged({HITS: hits(150)}), version="3", trouble="It draws other sizes.")
    assert (found.status, found.champion, found.reasons) == (Status.NOT_COMPARABLE, "3", ["It draws other sizes."])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"thresholds": {"fid": {"max": 9}}}, r"thresholds names fid, .* it has heldout_loss, retrieval/train/top5"),
        ({"kernel": 0.1}, "comparisons names kernel_pixels8, which the evaluation did not measure"),
    ],
)
def test_rules_about_what_was_not_measured_are_refused(given: dict[str, object], message: str) -> None:
    with pytest.raises(LatentflowError, match=message):
        verdict(rules(**given), judged({HITS: hits(10)}, heldout_loss=0.5))


def test_a_comparison_of_what_is_neither_good_nor_bad_is_refused() -> None:
    odd = GateParams(thresholds={}, comparisons={"retrieval/train/chance_top5": 0.1}, confidence=0.95)
    with pytest.raises(LatentflowError, match="neither more nor less is better"):
        verdict(odd, Judged({"retrieval/train/chance_top5": 0.1}, {}, PROTOCOL))


def test_other_rules_or_another_champion_are_another_key() -> None:
    assert rules_key(rules(hits=0.05), "1") == rules_key(rules(hits=0.05), "1")
    keys = {rules_key(rules(hits=0.05), "1"), rules_key(rules(hits=0.05), "2"), rules_key(rules(hits=0.04), "1")}
    assert len(keys) == 3


def test_the_page_has_a_row_per_rule_and_says_what_to_do() -> None:
    given = rules(thresholds={HITS: {"min": 0.1}}, hits=0.05)
    page = verdict_text.markdown(
        "models:/m/2", "", verdict(given, judged({HITS: hits(60)}), judged({HITS: hits(100)}), "1")
    )
    assert page.startswith("# models:/m/2: refused\n\nCompared with the champion, version 1. It has no alias.\n")
    assert "| retrieval/train/top5 | at least 0.1 | 0.3 |  |  | passed |" in page
    assert "| **failed** |" in page
    assert '`latentflow promote models:/m/2 --reason "..."`' in page
    passed = verdict(given, judged({HITS: hits(150)}), judged({HITS: hits(100)}), "1")
    assert "`latentflow promote models:/m/2` makes it" in verdict_text.markdown("models:/m/2", "challenger", passed)
    assert verdict_text.sentence(passed) == "Gate: passed against version 1."


def shares(generator: np.random.Generator, worse_by: float) -> tuple[np.ndarray, np.ndarray]:
    """Hits of 256 captions by two seeds; some captions are easy, some hopeless; the first model loses a share."""
    chance = generator.beta(0.6, 0.4, 256)
    lost = generator.random(256) < worse_by / 0.6
    return generator.binomial(2, np.where(lost, 0, chance)) / 2, generator.binomial(2, chance) / 2


def losses(generator: np.random.Generator, worse_by: float) -> tuple[np.ndarray, np.ndarray]:
    """Losses of 95 records that vary by 40 % between records and by 5 % between models, with heavy tails."""
    champion = generator.lognormal(0, 0.4, 95)
    return champion * (1 + worse_by) * (1 + 0.05 * generator.standard_t(3, 95)), champion


@pytest.mark.parametrize(
    ("draw", "metric", "given", "worse_by", "expected", "least", "most"),
    [
        # At the tolerance itself, either error happens to one model in forty.
        (shares, HITS, rules(hits=0.05), 0.05, Status.PASSED, 0, 0.05),
        (shares, HITS, rules(hits=0.05), 0.05, Status.FAILED, 0, 0.05),
        (losses, LOSS, rules(loss="2%"), 0.02, Status.PASSED, 0, 0.05),
        (losses, LOSS, rules(loss="2%"), 0.02, Status.FAILED, 0, 0.05),
        # An equal model is practically never refused, and a much worse one practically always.
        (shares, HITS, rules(hits=0.05), 0, Status.FAILED, 0, 0.01),
        (losses, LOSS, rules(loss="2%"), 0, Status.FAILED, 0, 0.01),
        (shares, HITS, rules(hits=0.05), 0.25, Status.FAILED, 0.95, 1),
        (losses, LOSS, rules(loss="2%"), 0.1, Status.FAILED, 0.95, 1),
    ],
)
def test_error_rates(
    draw: object, metric: str, given: GateParams, worse_by: float, expected: Status, least: float, most: float
) -> None:
    generator = np.random.default_rng(7)
    found = 0
    for _ in range(400):
        candidate, champion = draw(generator, worse_by)
        found += verdict(given, judged({metric: candidate}), judged({metric: champion}), "1").status is expected
    assert least <= found / 400 <= most
