"""One HTML file with everything inside: numbers with their protocol, pictures, the loss by σ. No scripts, no links."""

from dataclasses import dataclass
from html import escape

from latentflow import html
from latentflow.evaluation.charts import Series, loss_chart
from latentflow.evaluation.exhibits import Exhibits
from latentflow.evaluation.judge import Findings
from latentflow.evaluation.metrics import Share
from latentflow.pictures import to_image

_LOSS_NOTE = (
    "{samples:,} samples of the test split with fixed noise; mean squared error of the model's output; σ grows from "
    "data to noise. The band is the 95 % interval over samples."
)


@dataclass(frozen=True)
class Source:
    """Where model and pictures come from, and what was not measured: what the report's head and foot say."""

    title: str
    model_digest: str
    credit: str
    not_measured: str


def render(findings: Findings, show: Exhibits, source: Source) -> str:
    """The whole report as HTML text."""
    protocol = findings.protocol
    subtitle = (
        f"model {source.model_digest[:12]} · {protocol.pipeline_class} · {protocol.resolution}×{protocol.resolution} px"
        f" · {protocol.how} · {protocol.drawn:,} pictures drawn"
    )
    parts = [
        html.warnings(findings.warnings),
        html.cards(_cards(findings)),
        *(html.pictures(section) for section in show.gallery),
        _grid(findings),
        _loss(findings),
        html.pictures(show.failures),
        html.pictures(show.suspects),
        html.pictures(show.uniform),
        html.pictures(show.reconstructions),
        html.heading("Numbers", source.not_measured),
        _numbers(findings),
        _costs(findings),
        html.heading("Protocol", "Two evaluations can be compared only where these agree."),
        _protocol(findings),
        _all_metrics(findings),
    ]
    return html.page(source.title, subtitle, parts, source.credit)


def _cards(findings: Findings) -> list[tuple[str, str, str]]:
    protocol = findings.protocol
    cards = [
        ("Top-5, training captions", *_share(findings.train.retrieval.top(5))),
        ("Top-5, held-out captions", *_share(findings.test.retrieval.top(5))),
    ]
    if findings.heldout is not None:
        loss = findings.heldout.loss
        cards.append(("Held-out loss", f"{loss.mean:.3f}", f"± {loss.half_width:.3f}, {loss.samples:,} samples"))
    for distance in findings.distances[-1:]:
        kernel = distance.kernel
        value = f"{1000 * kernel.value:.3g}"
        interval = "" if kernel.half_width is None else f"± {1000 * kernel.half_width:.2g}, "
        more = f"{interval}in thousandths, {distance.drawn:,} drawn"
        cards.append((f"Kernel distance, {distance.space.name}", value, more))
    suspects = findings.memorisation.suspects
    cards.append(("Suspected of memory", f"{100 * suspects.mean:.1f} %", "of real held-out pictures 5 % would be"))
    diversity, metrics = findings.diversity, findings.metrics
    if "diversity/test" in metrics and diversity.reference:  # Real pictures that are all the same have none.
        relative = f"{100 * metrics['diversity/test'] / diversity.reference:.0f} %"
        of = "of that of real pictures" + (" of one caption" if diversity.real_caption is not None else "")
        cards.append(("Diversity, held-out captions", relative, of))
    if findings.reconstruction is not None:
        values = findings.reconstruction.metrics
        more = f"SSIM {values['vae/ssim']:.3f}, held-out pictures" if "vae/ssim" in values else "held-out pictures"
        cards.append(("Autoencoder's PSNR", f"{values['vae/psnr']:.1f} dB", more))
    seconds = f"{findings.seconds:.2g}"
    return [*cards, ("Seconds per picture", seconds, f"{protocol.steps} steps on {protocol.device}, in batches")]


def _share(share: Share) -> tuple[str, str]:
    return f"{100 * share.mean:.1f} %", _interval(share)


def _interval(share: Share) -> str:
    bounds = f"{100 * share.low:.1f} to {100 * share.high:.1f} %"
    return f"{bounds}, {share.captions:,} captions, {share.pictures:,} pictures"


def _grid(findings: Findings) -> str:
    dials = findings.dials
    if dials is None:
        return ""
    prompts = ", ".join(f"“{request.prompt}”" for request in dials.requests)
    own = (findings.protocol.guidance, findings.protocol.steps)
    rows = []
    for guidance, row in zip(dials.guidances, dials.pictures, strict=True):
        cells = [
            html.Cell(tuple(to_image(one) for one in cell), marked=(guidance, steps) == own)
            for steps, cell in zip(dials.steps, row, strict=True)
        ]
        rows.append((f"guidance {guidance:g}", cells))
    head = [f"{steps} steps" for steps in dials.steps]
    note = f"{prompts}, seed {dials.requests[0].seed}. The framed cell is what ships."
    return html.heading("Guidance and steps", note) + "\n" + html.matrix(head, rows)


def _loss(findings: Findings) -> str:
    if findings.heldout is None:
        return ""
    loss = findings.heldout.loss
    note = _LOSS_NOTE.format(samples=loss.samples)
    return html.heading("Held-out loss by σ", note) + "\n" + loss_chart([Series("", loss.by_sigma)])


def _numbers(findings: Findings) -> str:
    rows = [*_retrieval_rows(findings), *_distance_rows(findings), *_caption_rows(findings), *_likeness_rows(findings)]
    if findings.heldout is not None:
        loss = findings.heldout.loss
        rows.append(("Held-out loss", f"{loss.mean:.4f}", f"± {loss.half_width:.4f} over {loss.samples:,} samples"))
    if findings.reconstruction is not None:
        count = f"mean of {len(findings.reconstruction.records):,} held-out pictures through the VAE and back"
        names = {"psnr": ("PSNR", ".2f", " dB"), "ssim": ("SSIM", ".4f", ""), "lpips": ("LPIPS", ".4f", "")}
        for name in findings.reconstruction.values:
            label, digits, unit = names[name]
            value = findings.reconstruction.metrics[f"vae/{name}"]
            rows.append((f"Autoencoder's {label}", f"{value:{digits}}{unit}", count))
    head = ("", "value", "95 % interval, sizes")
    return html.table([(escape(name), escape(value), escape(note)) for name, value, note in rows], head)


def _retrieval_rows(findings: Findings) -> list[tuple[str, str, str]]:
    rows = []
    for asked, name in ((findings.train, "training captions"), (findings.test, "held-out captions")):
        for k in (1, 5):
            rows.append((f"Top-{k}, {name}", *_share(asked.retrieval.top(k))))
        median = asked.retrieval.rank.double().median().item()
        of = f"of {findings.protocol.real_pictures:,} real pictures"
        note = f"{of}; guessing reaches a top-5 of {100 * asked.chance:.2g} %"
        rows.append((f"Median rank, {name}", f"{median:,.0f}", note))
    return rows


def _distance_rows(findings: Findings) -> list[tuple[str, str, str]]:
    rows = []
    for distance in findings.distances:
        name, kernel = distance.space.name, distance.kernel
        sizes = f"{distance.drawn:,} drawn and {distance.real:,} real training pictures"
        plain = distance.space.name == "pixels8"
        rows += [
            (distance.space.frechet, f"{distance.frechet:.4g}", sizes + ("; not an FID" if plain else "")),
            (
                distance.space.kernel,
                f"{kernel.value:.3g}",
                ("" if kernel.half_width is None else f"± {kernel.half_width:.2g}, ")
                + f"unbiased; {sizes}"
                + ("; not a KID" if plain else ""),
            ),
            (
                f"Precision and recall, {name}",
                f"{distance.coverage.precision:.3f}, {distance.coverage.recall:.3f}",
                f"3 neighbours, {len(distance.coverage.precise):,} drawn and {len(distance.coverage.recalled):,} real",
            ),
        ]
    return rows


def _caption_rows(findings: Findings) -> list[tuple[str, str, str]]:
    found, diversity = findings.memorisation, findings.diversity
    rows = [
        (
            "Memorised, held-out captions",
            f"{100 * found.suspects.mean:.1f} %",
            f"{_interval(found.suspects)}; under {found.threshold:.3f}, as 5 % of the real held-out pictures",
        )
    ]
    kind = "of one caption" if diversity.real_caption is not None else "of any captions"
    beside = f"mean distance of two pictures of a caption; real pictures {kind}: {diversity.reference:.3f}"
    for split, name in (("train", "training captions"), ("test", "held-out captions")):
        if (value := diversity.metrics.get(f"diversity/{split}")) is not None:
            rows.append((f"Diversity, {name}", f"{value:.3f}", beside))
    return rows


def _likeness_rows(findings: Findings) -> list[tuple[str, str, str]]:
    found = findings.likeness
    if found is None:
        return []
    metrics = found.metrics
    sizes = f"{findings.protocol.distance_drawn:,} drawn and {found.reference:,} real training pictures"
    score = f"100·cosine with the caption, {len(found.scores):,} captions; the real pictures' own is {found.real:.2f}"
    return [
        ("CMMD", f"{metrics['cmmd']:.4g}", f"{sizes}; biased upwards for few"),
        ("CLIP score", f"{metrics['clip_score']:.2f}", score),
    ]


def _costs(findings: Findings) -> str:
    rows = [(f"{cost.steps} steps", f"{cost.seconds:.3g} s", f"{cost.megabytes:,.0f} MB") for cost in findings.costs]
    head = ("drawn alone", "seconds per picture", "peak memory, weights included")
    note = (
        f"On {findings.protocol.device}. In batches a picture took {findings.seconds:.3g} s at the evaluation's steps."
    )
    return html.heading("What a picture costs", note) + "\n" + html.table(rows, head)


def _protocol(findings: Findings) -> str:
    protocol = findings.protocol
    weights = ", ".join(f"{name} {digest[:12]}" for name, digest in protocol.weights.items()) or "none given"
    asked = (
        f"{protocol.train_captions:,} of the training split with {protocol.train_seeds} seeds each, "
        f"{protocol.test_captions:,} of the test split with {protocol.test_seeds}; the first seed is {protocol.seed}"
    )
    rows = [
        ("Sampler", protocol.how),
        ("Captions", asked),
        ("Retrieval", protocol.retrieval),
        ("Distances", "; ".join(protocol.features)),
        ("Diversity and memorisation", protocol.likeness),
        ("Networks", weights),
        ("Intervals", protocol.intervals),
        ("Device", protocol.device),
    ]
    digests = [
        ("Real pictures", f"{protocol.real_pictures:,}, digest <code>{escape(protocol.reference_digest)}</code>"),
        ("Prompts and seeds", f"digest <code>{escape(protocol.prompts_digest)}</code>"),
        ("All of it", f"version {protocol.version}, digest <code>{escape(protocol.comparison)}</code>"),
    ]
    return html.table([*((name, escape(text)) for name, text in rows), *digests])


def _all_metrics(findings: Findings) -> str:
    rows = [(f"<code>{escape(name)}</code>", f"{value:.6g}") for name, value in findings.metrics.items()]
    return f"<details>\n<summary>All metrics as they are logged</summary>\n{html.table(rows)}\n</details>"
