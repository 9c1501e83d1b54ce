"""What a quantisation came to: `report.md` with a picture, and the same figures as JSON."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from erniekit.checkpoint.atomic import write_file_atomic
from erniekit.export.quality import Quality
from erniekit.export.sensitivity import kind_of, sensitivity_figure
from erniekit.quant.folder import Quantisation
from erniekit.quant.schemes import SCHEMES

REPORT, FIGURE, FIGURES = "report.md", "sensitivity.svg", "quantization.json"
_WORST, _RAREST = 8, 20


@dataclass(frozen=True)
class QuantisedModel:
    """A finished quantisation.

    source: what it was made of, as it was named. bits: of a weight of the matrices, with scales. num_bytes:
    of all tensors; full_bytes: of the model in full. errors: parameter -> relative error of its products.
    rare: experts with few tokens of their own, and how many. quality: None without held-out text.
    """

    folder: Path
    source: str
    quantisation: Quantisation
    bits: float
    num_bytes: int
    full_bytes: int
    num_tokens: int
    errors: Mapping[str, float]
    rare: Mapping[str, int]
    quality: Quality | None
    max_quality_drop: float | None

    @property
    def passed(self) -> bool:
        """Whether perplexity rises by no more than is allowed."""
        if self.max_quality_drop is None:
            return True
        return self.quality is not None and self.quality.drop <= self.max_quality_drop

    def lines(self) -> list[str]:
        """The outcome for people."""
        share = self.num_bytes / self.full_bytes
        found = [
            f"{self.folder}: {self.quantisation.scheme} by {self.quantisation.method}, {self.bits:.2f} "
            f"bits a weight, {self.num_bytes / 1e6:,.1f} MB ({share:.0%} of the model in full)"
        ]
        if self.quality is not None:
            found.append(self.quality.in_words())
        if self.rare:
            names = ", ".join(f"{name} ({count})" for name, count in list(self.rare.items())[:3])
            more = ", ..." if len(self.rare) > 3 else ""
            found.append(f"{len(self.rare)} experts were reached by few tokens of their own: {names}{more}")
        return [*found, self.verdict()] if self.max_quality_drop is not None else found

    def verdict(self) -> str:
        """Whether it may be used, by `max_quality_drop`."""
        if self.quality is None or self.max_quality_drop is None:
            return "no limit was given (max_quality_drop)"
        word = "PASSED" if self.passed else "FAILED"
        return (
            f"{word}: perplexity changes by {self.quality.drop:+.2%}, and max_quality_drop allows "
            f"{self.max_quality_drop:+.2%}"
        )

    def to_json(self) -> dict[str, Any]:
        """All figures."""
        return {
            "source": self.source,
            "scheme": self.quantisation.scheme,
            "method": self.quantisation.method,
            "bits": self.bits,
            "bytes": self.num_bytes,
            "full_bytes": self.full_bytes,
            "calibration_tokens": self.num_tokens,
            "quality": None if self.quality is None else self.quality.to_json(),
            "max_quality_drop": self.max_quality_drop,
            "passed": self.passed,
            "errors": dict(self.errors),
            "rare_experts": dict(self.rare),
        }


def write_report(done: QuantisedModel) -> None:
    """Write report, picture and figures into the model's folder."""
    title = f"relative error of products, {done.quantisation.scheme} by {done.quantisation.method}"
    texts = {
        FIGURE: sensitivity_figure(done.errors, title=title),
        FIGURES: json.dumps(done.to_json(), indent=2) + "\n",
        REPORT: report_text(done),
    }
    for name, text in texts.items():
        write_file_atomic(done.folder / name, text.encode())


def report_text(done: QuantisedModel) -> str:
    """The report as Markdown."""
    scheme, quality = done.quantisation.scheme, done.quality
    rows = [
        ("model", done.source),
        ("scheme", f"`{scheme}`: {SCHEMES[scheme].words}"),
        ("method", done.quantisation.method),
        ("calibration", f"{done.num_tokens:,} tokens"),
        ("bits a weight (matrices, with scales)", f"{done.bits:.3f}"),
        ("size", f"{done.num_bytes / 1e6:,.1f} MB of {done.full_bytes / 1e6:,.1f} MB"),
    ]
    if quality is not None:
        rows += [
            ("held-out tokens", f"{quality.num_tokens:,} ({quality.num_labels:,} predicted)"),
            ("perplexity in full", f"{quality.perplexity:.4f}"),
            ("perplexity quantised", f"{quality.quantised_perplexity:.4f} ({quality.drop:+.2%})"),
            ("divergence KL(full, quantised)", f"{quality.divergence:.5f} nats a token"),
            ("same likeliest token", f"{quality.same:.2%}"),
        ]
    rows.append(("verdict", done.verdict()))
    parts = ["# Quantised model\n", "| | |\n|---|---|"]
    parts += [f"| {name} | {str(value).replace('|', '/')} |" for name, value in rows]
    parts += ["\n## Error by layer\n", f"![error by layer]({FIGURE})\n", _kinds(done), _worst(done)]
    if done.rare:
        parts.append(_rare(done))
    return "\n".join(parts) + "\n"


def _kinds(done: QuantisedModel) -> str:
    groups: dict[tuple[str, str], list[float]] = {}
    for name, error in done.errors.items():
        groups.setdefault((kind_of(name), done.quantisation.formats[name]), []).append(error)
    lines = ["| matrices | format | number | mean error | largest |", "|---|---|---|---|---|"]
    for (kind, format), found in groups.items():
        mean = sum(found) / len(found)
        lines.append(f"| {kind} | {format} | {len(found)} | {mean:.2e} | {max(found):.2e} |")
    return "\n".join(lines) + "\n"


def _worst(done: QuantisedModel) -> str:
    worst = sorted(done.errors.items(), key=lambda item: -item[1])[:_WORST]
    lines = ["The largest errors (of the square of a matrix's products, on calibration data):\n"]
    lines += [f"- `{name}`: {error:.3e}" for name, error in worst]
    return "\n".join(lines) + "\n"


def _rare(done: QuantisedModel) -> str:
    found = sorted(done.rare.items(), key=lambda item: item[1])
    lines = ["## Experts that few tokens reached\n"]
    lines.append(
        "They were calibrated with the tokens that their routers score highest, besides their own.\n"
    )
    lines += [f"- `{name}`: {count} tokens" for name, count in found[:_RAREST]]
    if len(found) > _RAREST:
        lines.append(f"- and {len(found) - _RAREST} more, all in `{FIGURES}`")
    return "\n".join(lines) + "\n"
