"""One HTML file with everything inside: numbers with their protocol, pictures, the loss by σ. No scripts, no links."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from latentflow import html
from latentflow.evaluation.heldout import HeldoutLoss
from latentflow.evaluation.judge import Findings
from latentflow.evaluation.metrics import Share
from latentflow.html import Section


@dataclass(frozen=True)
class Source:
    """Where model and pictures come from: what the report's head and foot say."""

    title: str
    model_digest: str
    credit: str


def render(findings: Findings, sections: Sequence[Section], failures: Section, source: Source) -> str:
    """The whole report as HTML text."""
    protocol = findings.protocol
    subtitle = (
        f"model {source.model_digest[:12]} · {protocol.pipeline_class} · {protocol.resolution}×{protocol.resolution} px"
        f" · {protocol.how}, seeds {', '.join(map(str, protocol.seeds))}"
    )
    loss_note = (
        f"{protocol.heldout_samples:,} samples of the test split with fixed noise; mean squared error of the "
        f"model's output; σ grows from data to noise. The band is the 95 % interval over samples."
    )
    parts = [
        html.cards(_cards(findings)),
        html.warnings(findings.warnings),
        *(html.pictures(section) for section in sections),
        html.heading("Held-out loss by σ", loss_note),
        chart(findings.heldout.loss),
        html.pictures(failures),
        html.heading("Numbers"),
        _numbers(findings),
        html.heading("Protocol", "Two evaluations can be compared only where these agree."),
        _protocol(findings),
        _all_metrics(findings),
    ]
    return html.page(source.title, subtitle, parts, source.credit)


def _cards(findings: Findings) -> list[tuple[str, str, str]]:
    protocol, heldout = findings.protocol, findings.heldout.loss
    train, test = findings.train.retrieval.top(5), findings.test.retrieval.top(5)
    return [
        ("Top-5, training captions", f"{100 * train.mean:.1f} %", _interval(train)),
        ("Top-5, held-out captions", f"{100 * test.mean:.1f} %", _interval(test)),
        ("Held-out loss", f"{heldout.mean:.3f}", f"± {heldout.half_width:.3f}, {heldout.samples:,} samples"),
        ("Seconds per picture", f"{findings.seconds:.2g}", f"{protocol.steps} steps on {protocol.device}"),
    ]


def _interval(share: Share) -> str:
    bounds = f"{100 * share.low:.1f} to {100 * share.high:.1f} %"
    return f"{bounds}, {share.captions:,} captions, {share.pictures:,} pictures"


def _numbers(findings: Findings) -> str:
    protocol, heldout, rows = findings.protocol, findings.heldout.loss, []
    for asked, name in ((findings.train, "training captions"), (findings.test, "held-out captions")):
        for k in (1, 5):
            share = asked.retrieval.top(k)
            rows.append((f"Top-{k}, {name}", f"{100 * share.mean:.1f} %", _interval(share)))
        median = asked.retrieval.rank.double().median().item()
        note = f"of {protocol.real_pictures:,} real pictures; guessing reaches a top-5 of {100 * asked.chance:.2g} %"
        rows.append((f"Median rank, {name}", f"{median:,.0f}", note))
    sizes = f"{protocol.distance_drawn:,} drawn and {protocol.distance_real:,} real training pictures, features pixels8"
    rows += [
        ("Fréchet distance (pixels8)", f"{findings.frechet:.4g}", f"{sizes}; not an FID"),
        ("Kernel distance (pixels8)", f"{findings.kernel:.3g}", f"unbiased, mean over the seeds; {sizes}; not a KID"),
        ("Held-out loss", f"{heldout.mean:.4f}", f"± {heldout.half_width:.4f} over {heldout.samples:,} samples"),
        ("Seconds per picture", f"{findings.seconds:.3g}", f"median batch on {protocol.device}"),
    ]
    return html.table(
        [(name, value, escape(note)) for name, value, note in rows], ("", "value", "95 % interval, sizes")
    )


def _protocol(findings: Findings) -> str:
    protocol = findings.protocol
    return html.table(
        [
            ("Sampler", protocol.how),
            ("Seeds", escape(f"{', '.join(map(str, protocol.seeds))}; every caption is drawn with each")),
            ("Captions", f"{protocol.train_captions:,} of the training, {protocol.test_captions:,} of the test split"),
            ("Retrieval", escape(protocol.retrieval)),
            ("Features", escape(protocol.features)),
            ("Intervals", escape(protocol.intervals)),
            ("Real pictures", f"{protocol.real_pictures:,}, digest <code>{escape(protocol.reference_digest)}</code>"),
            ("Prompts and seeds", f"digest <code>{escape(protocol.prompts_digest)}</code>"),
            ("Device", escape(protocol.device)),
        ]
    )


def _all_metrics(findings: Findings) -> str:
    rows = [(f"<code>{escape(name)}</code>", f"{value:.6g}") for name, value in findings.metrics.items()]
    return f"<details>\n<summary>All metrics as they are logged</summary>\n{html.table(rows)}\n</details>"


def chart(loss: HeldoutLoss) -> str:
    """The loss by σ with its 95 % band as an inline SVG that follows the page's colours."""
    width, height, left, bottom, top, right = 760, 300, 52, 44, 14, 16
    highest = max(row.mean + row.half_width for row in loss.by_sigma)
    last = max(1.0, *(row.sigma for row in loss.by_sigma))
    tick = html.nice_step(highest / 4)
    ceiling = tick * -(-highest // tick)

    def x(sigma: float) -> float:
        return left + sigma / last * (width - left - right)

    def y(value: float) -> float:
        return height - bottom - max(value, 0) / ceiling * (height - bottom - top)

    def path(values: Sequence[tuple[float, float]]) -> str:
        return " ".join(f"{x(s):.1f},{y(v):.1f}" for s, v in values)

    upper = [(row.sigma, row.mean + row.half_width) for row in loss.by_sigma]
    lower = [(row.sigma, row.mean - row.half_width) for row in reversed(loss.by_sigma)]
    parts = [f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="Held-out loss by sigma">']
    for number in range(round(ceiling / tick) + 1):
        value = number * tick
        parts.append(f'<line class="grid" x1="{left}" x2="{width - right}" y1="{y(value):.1f}" y2="{y(value):.1f}"/>')
        parts.append(f'<text x="{left - 8}" y="{y(value) + 4:.1f}" text-anchor="end">{value:g}</text>')
    for sigma in (share * last for share in (0, 0.2, 0.4, 0.6, 0.8, 1)):
        parts.append(f'<text x="{x(sigma):.1f}" y="{height - bottom + 18}" text-anchor="middle">{sigma:g}</text>')
    middle = (left + width - right) / 2
    parts.append(f'<text x="{middle}" y="{height - 6}" text-anchor="middle">σ (0 data, 1 noise)</text>')
    parts.append(f'<polygon class="band" points="{path(upper + lower)}"/>')
    parts.append(f'<polyline class="line" points="{path([(row.sigma, row.mean) for row in loss.by_sigma])}"/>')
    for row in loss.by_sigma:
        hint = f"σ {row.sigma:g}: {row.mean:.4f} ± {row.half_width:.4f}"
        place = f'cx="{x(row.sigma):.1f}" cy="{y(row.mean):.1f}"'
        parts.append(f'<circle class="dot" {place} r="3.5"><title>{hint}</title></circle>')
    return "\n".join([*parts, "</svg>"])
