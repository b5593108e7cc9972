"""One study's results as one HTML file that needs no network: findings, explanation, similar cases.

Everything that came from outside (report, labels, names) is escaped, and the page's policy forbids scripts.
"""

import base64
from collections.abc import Mapping, Sequence
from html import escape
from importlib import resources
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from client.cases import SimilarCase
from client.overlay import encode_png, render_attention, render_overlay
from client.prediction import Finding, Prediction
from contract.decisions import Decision
from contract.errors import ImageError
from contract.files import write_file
from contract.image.dicom_file import MAX_IMAGE_BYTES
from contract.image.read import load_pixels
from contract.labels import LABEL_NAMES
from contract.notes import ImageNotes
from contract.training_data import UNMEASURED

if TYPE_CHECKING:
    from client.explanation import Explanation, WordAttribution

THUMBNAIL_SIZE: Final = 208  # pixels; shown at half of it, so that it is sharp on fine screens
STRONGEST_WORDS: Final = 8
FOR_RGB: Final = "245, 150, 60"
AGAINST_RGB: Final = "95, 160, 235"
_KEY: Final = (
    '<span class="sign-for">Orange, solid line</span>: speaks for the finding. '
    '<span class="sign-against">Blue, dotted line</span>: speaks against it.'
)
_NO_CASES: Final = '<p class="quiet">No case was found.</p>'
_STATES: Final[dict[Decision, str]] = {
    "present": "● present",
    "uncertain": "◐ uncertain",
    "absent": "○ below",
    "undecided": "not decided",
}
_KIND_TITLES: Final = {"study": "Image and report", "image": "Image alone", "text": "Report alone"}


def write_report_page(
    path: Path,
    *,
    title: str,
    data_note: str,
    predictions: Mapping[str, Prediction],
    searches: Mapping[str, Sequence[SimilarCase]],
    explanation: "Explanation | None",
    truth: tuple[str, ...],
) -> None:
    """Write the page of one study.

    Args:
        path: The HTML file; see `contract.files`.
        title: Heading of the page.
        data_note: One sentence on where the data come from.
        predictions: By kind of input ("study", "image", "text"); shown side by side in this order.
        searches: Similar cases, best first, by what was searched for.
        explanation: Of one finding, or None.
        truth: Keys of the labels that the study really has.

    Raises:
        ArtifactError: The file cannot be written.
        ConfigError: The path is a directory, or the extra that draws images is not installed.
    """
    sections = [
        _make_summary(predictions, explanation, truth),
        _make_findings(predictions, truth),
        _make_explanation(explanation),
        _make_words(explanation),
        _make_searches(searches, truth),
    ]
    fingerprints = [prediction.fingerprint for prediction in predictions.values()]
    if explanation is not None:
        fingerprints.append(explanation.fingerprint)
    template = Template((resources.files("client") / "page.html").read_text(encoding="utf-8"))
    page = template.substitute(
        title=escape(title),
        data_note=escape(data_note),
        sections="\n".join(section for section in sections if section),
        fingerprint=escape(", ".join(dict.fromkeys(fingerprints)) or "unknown"),
    )
    write_file(path, page)


def _make_summary(
    predictions: Mapping[str, Prediction], explanation: "Explanation | None", truth: tuple[str, ...]
) -> str:
    """Show the radiograph and, beside it, what each kind of input makes the model say."""
    notes = [*_describe_image(predictions, explanation), *_describe_report(predictions, explanation)]
    rows = [("Labels of this study", _name_labels(truth)), *notes]
    for kind, prediction in predictions.items():
        read = _KIND_TITLES.get(kind, kind).lower()
        decided: dict[str, list[str]] = {"present": [], "uncertain": [], "absent": [], "undecided": []}
        for finding in prediction.findings:
            decided[finding.decision].append(finding.key)
        if decided["undecided"]:
            rows.append((f"Present: {read}", "not decided: no thresholds"))
            continue
        rows.append((f"Present: {read}", _name_labels(decided["present"])))
        if decided["uncertain"]:
            rows.append((f"Uncertain: {read}", _name_labels(decided["uncertain"])))
    terms = "".join(f"<dt>{escape(term)}</dt><dd>{names}</dd>" for term, names in rows)
    figure = _make_radiograph(predictions, explanation)
    warnings = _make_warnings(predictions, explanation)
    return _make_section("Study", f'{warnings}<div class="summary">{figure}<dl>{terms}</dl></div>')


def _list_sources(
    predictions: Mapping[str, Prediction], explanation: "Explanation | None"
) -> "list[Prediction | Explanation]":
    return [*predictions.values(), *([] if explanation is None else [explanation])]


def _make_warnings(predictions: Mapping[str, Prediction], explanation: "Explanation | None") -> str:
    """Say above all results what was unusual about the inputs, each sentence once."""
    sources = _list_sources(predictions, explanation)
    sentences = dict.fromkeys(sentence for source in sources for sentence in source.warnings)
    items = "".join(f"<li>{escape(sentence)}</li>" for sentence in sentences)
    return (
        f'<div class="warnings" role="note"><strong>Warning</strong><ul>{items}</ul></div>' if items else ""
    )


def _describe_image(
    predictions: Mapping[str, Prediction], explanation: "Explanation | None"
) -> list[tuple[str, str]]:
    """Return how each image was taken as a row of the summary; none where nothing is known."""
    several = max((one.images for one in predictions.values()), key=len, default=())
    if len(several) > 1:
        return [
            (f"View, image {number}", _describe_view(image.notes, image.lateral))
            for number, image in enumerate(several, start=1)
        ]
    sources = _list_sources(predictions, explanation)
    notes = next((source.image_notes for source in sources if source.image_notes is not None), None)
    if notes is None:
        return []
    lateral = next((source.lateral for source in sources if source.lateral is not None), None)
    return [("View", _describe_view(notes, lateral))]


def _describe_view(notes: ImageNotes, lateral: float | None) -> str:
    """Return as HTML how one image was taken, and what the model takes it for."""
    known = (notes.view, notes.laterality and f"laterality {notes.laterality}", notes.modality)
    said = ", ".join(part for part in known if part and part != "UNKNOWN")
    seen = "" if lateral is None else f"; lateral with probability {lateral:.2f} by the model"
    return (escape(said) or "not said by the file") + seen


def _describe_report(
    predictions: Mapping[str, Prediction], explanation: "Explanation | None"
) -> list[tuple[str, str]]:
    """Return what of the report was read as what as a row of the summary; none without a report."""
    sources = _list_sources(predictions, explanation)
    notes = next((source.report_notes for source in sources if source.report_notes is not None), None)
    return [] if notes is None else [("Report read as", escape(notes.describe_parts()))]


def _make_radiograph(predictions: Mapping[str, Prediction], explanation: "Explanation | None") -> str:
    picture = None if explanation is None else explanation.radiograph
    if picture is None:
        had_image = any(prediction.kind != "text" for prediction in predictions.values())
        said = "The radiograph was not kept." if had_image else "This study was read without an image."
        return f'<p class="quiet">{said}</p>'
    image = _make_image(picture, "Radiograph of this study")
    return f"<figure>{image}<figcaption>The radiograph, fitted into a square.</figcaption></figure>"


def _name_labels(keys: Sequence[str]) -> str:
    return "<br>".join(escape(LABEL_NAMES.get(key, key)) for key in keys) or "none"


def _make_findings(predictions: Mapping[str, Prediction], truth: tuple[str, ...]) -> str:
    if not predictions:
        return ""
    columns = list(predictions.values())
    order = sorted(columns[0].findings, key=lambda finding: -finding.probability)
    by_key = [{finding.key: finding for finding in prediction.findings} for prediction in columns]
    head = "".join(f'<th scope="col">{escape(_KIND_TITLES.get(kind, kind))}</th>' for kind in predictions)
    rows = []
    for finding in order:
        cells = "".join(
            f'<td data-read="{escape(_KIND_TITLES.get(kind, kind))}">{_make_bar(column.get(finding.key))}</td>'
            for kind, column in zip(predictions, by_key, strict=True)
        )
        labelled = finding.key in truth
        tag = ' <span class="tag truth">labelled</span>' if labelled else ""
        few = f' <span class="note">{UNMEASURED}</span>' if finding.unmeasured else ""
        name = f'<th scope="row">{escape(finding.name)}{tag}{few}</th>'
        rows.append(f'<tr class="{"truth" if labelled else "other"}">{name}{cells}</tr>')
    drawn = any(_make_band(finding) for prediction in columns for finding in prediction.findings)
    banded = " A hatched stretch is the band in which the model does not decide." if drawn else ""
    return _make_section(
        "Findings",
        '<p class="note">Calibrated probabilities, ordered by the first column. The upright mark is the '
        f"threshold from which a finding counts as present, for each column its own."
        f"{banded}</p>{_make_sets(predictions)}"
        f'<div class="wide" tabindex="0" role="region" aria-label="Findings"><table class="findings"><thead><tr>'
        f'<th scope="col">Finding</th>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>',
    )


def _make_bar(finding: Finding | None) -> str:
    if finding is None:
        return '<span class="quiet">not given</span>'
    state = finding.decision
    limit = "no threshold" if finding.threshold is None else f"threshold {finding.threshold:.3f}"
    return (
        f'<div class="probability {state}" title="probability {finding.probability:.3f}, {limit}">'
        f'<div class="track" aria-hidden="true"><div class="fill" style="width: {_place(finding.probability)}"></div>'
        f"{_make_band(finding)}{_make_limit(finding)}</div>"
        f'<span class="value">{finding.probability:.2f}</span>'
        f'<span class="state">{_STATES[state]}</span></div>'
    )


def _place(probability: float) -> str:
    """Return how far along its bar a probability lies."""
    return f"{100 * min(max(probability, 0.0), 1.0):.1f}%"


def _make_limit(finding: Finding) -> str:
    """Mark the threshold; nothing where there is none."""
    if finding.threshold is None:
        return ""
    return f'<div class="limit" style="left: {_place(finding.threshold)}"></div>'


def _make_band(finding: Finding) -> str:
    """Draw the band of uncertain probabilities; nothing where there is none."""
    low, high = finding.uncertain_low, finding.uncertain_high
    if low is None or high is None or low >= high:
        return ""
    return f'<div class="band" style="left: {100 * low:.1f}%; width: {100 * (high - low):.1f}%"></div>'


def _make_sets(predictions: Mapping[str, Prediction]) -> str:
    """Say which labels stay possible, where the model states how sure that is."""
    stated = [(one.kind, one.conformal_set) for one in predictions.values() if one.conformal_set is not None]
    items = "".join(f"<li>{escape(found.to_sentence(kind))}</li>" for kind, found in stated)
    return f'<ul class="note">{items}</ul>' if items else ""


def _make_explanation(explanation: "Explanation | None") -> str:
    if explanation is None:
        return ""
    shares = ", ".join(f"{kind} {share:.0%}" for kind, share in explanation.shares.items())
    text = (
        f"<p>Integrated Gradients of the logit of <strong>{escape(explanation.name)}</strong> (probability "
        f"{explanation.probability:.3f}, {explanation.verdict}), through the whole model. "
        f"Share of the absolute attribution: <strong>{escape(shares)}</strong>.</p>"
        f'<p class="note">Compared with {escape(explanation.baseline)}. Logit {explanation.logit:+.2f}, of '
        f"the baseline {explanation.baseline_logit:+.2f}; {explanation.steps} steps leave "
        f"{explanation.relative_delta:.1%} of the difference unexplained. An attribution tells what moved "
        "this model, not what is there.</p>"
    )
    return _make_section("Why: " + escape(explanation.name), text + _make_maps(explanation))


def _make_maps(explanation: "Explanation") -> str:
    if explanation.radiograph is None or explanation.patch_attention is None:
        return '<p class="quiet">The explanation was made without an image.</p>'
    attention = explanation.patch_attention
    name = explanation.name
    overlay = _make_image(render_overlay(explanation), f"Integrated Gradients for {name} over the radiograph")
    looked = _make_image(render_attention(explanation), f"Attention of the label {name} over the radiograph")
    return (
        f'<div class="figures"><figure>{overlay}<figcaption>Integrated Gradients. {_KEY}</figcaption>'
        f"</figure><figure>{looked}<figcaption>Attention of the label, per patch, as served: "
        f"{float(attention.max()):.1%} in the strongest patch, {1 / attention.size:.1%} if it were even."
        "</figcaption></figure></div>"
    )


def _make_words(explanation: "Explanation | None") -> str:
    if explanation is None or explanation.report_text is None:
        return ""
    text, words = explanation.report_text, explanation.words
    top = max((abs(word.attribution) for word in words), default=0.0)
    parts, position = [], 0
    for word in words:
        parts += [escape(text[position : word.start]), _mark_word(word, top)]
        position = word.end
    rest = escape(text[position:])
    if rest.strip():
        parts.append(f'<span class="unread" title="The model did not read this">{rest}</span>')
    note = f'<p class="note">What the model reads of the report. {_KEY} Point at a word for its value.</p>'
    body = f'{note}<p class="read">{"".join(parts)}</p>{_make_word_table(words)}'
    return _make_section("Words: " + escape(explanation.name), body)


def _mark_word(word: "WordAttribution", top: float) -> str:
    strength = abs(word.attribution) / top if top else 0.0
    title = f"{word.attribution:+.3f} logits, {word.attention:.1%} of the attention"
    if strength < 0.05:  # nearly nothing: a mark on each word would only be noise
        return f'<span title="{title}">{escape(word.text)}</span>'
    sign, colour = ("for", FOR_RGB) if word.attribution > 0 else ("against", AGAINST_RGB)
    style = f"background: rgba({colour}, {0.85 * strength:.2f})"
    return f'<mark class="{sign}" style="{style}" title="{title}">{escape(word.text)}</mark>'


def _make_word_table(words: Sequence["WordAttribution"]) -> str:
    strongest = sorted(words, key=lambda word: -abs(word.attribution))[:STRONGEST_WORDS]
    rows = "".join(
        f'<tr><th scope="row">{escape(word.text)}</th><td>{"for" if word.attribution > 0 else "against"}</td>'
        f'<td class="number">{word.attribution:+.3f}</td><td class="number">{word.attention:.1%}</td></tr>'
        for word in strongest
    )
    return (
        '<table style="max-width: 34rem"><thead><tr><th scope="col">Strongest words</th>'
        '<th scope="col">Speaks</th><th scope="col" class="number">Logits</th>'
        f'<th scope="col" class="number">Attention</th></tr></thead><tbody>{rows}</tbody></table>'
    )


def _make_searches(searches: Mapping[str, Sequence[SimilarCase]], truth: tuple[str, ...]) -> str:
    if not searches:
        return ""
    columns = []
    for query, cases in searches.items():
        cards = "".join(_make_card(case, truth) for case in cases)
        columns.append(f"<div><h3>Similar to {escape(query)}</h3>{cards or _NO_CASES}</div>")
    note = '<p class="note">Cosine similarity, -1 to 1. Labels with a tick are labels of this study too.</p>'
    return _make_section("Similar cases", f'{note}<div class="columns">{"".join(columns)}</div>')


def _make_card(case: SimilarCase, truth: tuple[str, ...]) -> str:
    labels = "".join(
        f'<li class="{"shared" if key in truth else "other"}">{"✓ " if key in truth else ""}'
        f"{escape(LABEL_NAMES.get(key, key))}</li>"
        for key in case.labels
    )
    report = escape(case.report.strip()) or '<span class="quiet">No report was stored.</span>'
    return (
        f'<article class="case"><div>{_make_thumbnail(case)}</div><div><h4>{escape(case.id)}</h4>'
        f'<div class="quiet">similarity {case.score:.3f}</div><ul class="labels">{labels}</ul>'
        f'<p class="report" tabindex="0">{report}</p></div></article>'
    )


def _make_thumbnail(case: SimilarCase) -> str:
    if not case.image_ref:
        return '<div class="absent-image">No image was stored</div>'
    try:
        path = Path(case.image_ref)
        if not path.is_file() or path.stat().st_size > MAX_IMAGE_BYTES:
            return '<div class="absent-image">The image is not on this machine</div>'
        picture = load_pixels(path.read_bytes(), size=THUMBNAIL_SIZE)[0]
    except (ImageError, OSError, ValueError):  # ValueError: a null byte
        return '<div class="absent-image">The image cannot be read</div>'
    return _make_image(picture, f"Radiograph of case {case.id}")


def _make_image(picture: NDArray[np.uint8], description: str) -> str:
    data = base64.b64encode(encode_png(picture)).decode("ascii")
    size = f'width="{picture.shape[1]}" height="{picture.shape[0]}"'
    return f'<img src="data:image/png;base64,{data}" alt="{escape(description)}" {size}>'


def _make_section(heading: str, body: str) -> str:
    """Return a section; both arguments are HTML already."""
    return f"<section><h2>{heading}</h2>\n{body}</section>"
