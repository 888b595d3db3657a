"""What a reader must know before trusting the numbers: too few pictures, suspects, what could not be measured."""

from latentflow.evaluation.judge import Findings
from latentflow.evaluation.memorisation import EXPECTED
from latentflow.params import WeightsParams

FEW_CAPTIONS = 30
_MEASURED_WITH = {
    "inception": "FID and KID",
    "dinov2": "FD-DINOv2",
    "clip": "CMMD and the CLIP score",
    "lpips": "LPIPS",
}


def caveats(findings: Findings) -> list[str]:
    """Sentences, the gravest first."""
    return [*_memorised(findings), *_small_sets(findings), *_few(findings)]


def not_measured(weights: WeightsParams) -> str:
    """A sentence on the metrics whose weights are not given; "" where all are."""
    missing = {field: what for field, what in _MEASURED_WITH.items() if not getattr(weights, field)}
    if not missing:
        return ""
    fields = ", ".join(f"evaluate.weights.{field}" for field in missing)
    return f"Not measured, because no weights are given: {', '.join(missing.values())} ({fields})."


def _memorised(findings: Findings) -> list[str]:
    found = findings.memorisation.suspects
    if not findings.memorisation.threshold:
        return [
            f"At least {EXPECTED:.0%} of the held-out pictures are training pictures too, so memorisation cannot be "
            "told from drawing what was asked: see the duplicates in the report of ingest."
        ]
    if found.low > EXPECTED:
        return [
            f"{found.mean:.1%} of the pictures drawn for held-out captions are nearer to a training picture than "
            f"{1 - EXPECTED:.0%} of the real held-out pictures are: the model may repeat what it was shown."
        ]
    return []


def _small_sets(findings: Findings) -> list[str]:
    sentences = []
    for distance in findings.distances:
        smaller = min(distance.drawn, distance.real)
        if smaller < distance.space.needed:
            sentences.append(
                f"{distance.space.frechet} rests on {distance.drawn:,} drawn and {distance.real:,} real pictures. With "
                f"fewer than {distance.space.needed:,} it is biased upwards: compare it only between evaluations of "
                f"equal size, and trust {distance.space.kernel} with its interval more."
            )
    likeness = findings.likeness
    if likeness is not None and (smaller := min(findings.protocol.distance_drawn, likeness.reference)) < 1000:
        sentences.append(
            f"cmmd rests on {smaller:,} pictures a side: compare it only between evaluations of equal size."
        )
    return sentences


def _few(findings: Findings) -> list[str]:
    protocol, sentences = findings.protocol, []
    if protocol.test_captions < FEW_CAPTIONS:
        sentences.append(
            f"Only {protocol.test_captions} distinct held-out captions were asked: their interval is wide."
        )
    if protocol.train_seeds < 2:
        sentences.append("One picture was drawn per caption, so diversity is not measured: raise evaluate.seeds to 2.")
    return sentences
