"""Write the results for one study as one HTML file that needs no network: findings, explanation, similar cases.

All text from outside (reports, labels, names) is escaped, and the content security policy of the page forbids scripts.
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
from client.explain.maps import encode_png
from client.prediction import Finding, Prediction
from contract.decisions import Decision
from contract.errors import ImageError
from contract.files import write_file
from contract.image.dicom_file import MAX_IMAGE_BYTES
from contract.image.read import load_pixels
from contract.labels import LABEL_NAMES
from contract.notes import ImageNotes

if TYPE_CHECKING:
    from client.explanation import Explanation, ImageMap, WordAttribution

THUMBNAIL_SIZE: Final = 208  # pixels, twice the displayed size: sharp on high-resolution screens
MAP_SIDE: Final = 560  # pixels, longer side of a radiograph under a map
STRONGEST_WORDS: Final = 8
FOR_RGB: Final = "245, 150, 60"
AGAINST_RGB: Final = "95, 160, 235"
_LEGEND: Final = (
    '<span class="sign-for">Orange, solid line</span>: speaks for the finding. '
    '<span class="sign-against">Blue, dotted line</span>: speaks against it.'
)
_NO_CASES: Final = '<p class="quiet">The index has no similar case.</p>'
_DECISION_TEXTS: Final[dict[Decision, str]] = {
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
        data_note: One sentence about the origin of the data.
        predictions: Kind of input ("study", "image" or "text") -> prediction. The page has one column for each.
        searches: Name of a query -> similar cases, best first.
        explanation: The explanation of one finding; None for a page without it.
        truth: Keys of the labels of the study.

    Raises:
        ArtifactError: The file cannot be written.
        ConfigError: The path is a directory, or the `explain` extra is not installed.
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
    """Return the warnings, the radiograph, and beside it the decisions from each kind of input."""
    rows = [
        ("Labels of this study", _name_labels(truth)),
        *_describe_images(predictions, explanation),
        *_describe_report(predictions, explanation),
    ]
    for kind, prediction in predictions.items():
        title = _KIND_TITLES.get(kind, kind).lower()
        keys: dict[Decision, list[str]] = {"present": [], "uncertain": [], "absent": [], "undecided": []}
        for finding in prediction.findings:
            keys[finding.decision].append(finding.key)
        if keys["undecided"]:
            rows.append((f"Present: {title}", "not decided: no thresholds"))
            continue
        rows.append((f"Present: {title}", _name_labels(keys["present"])))
        if keys["uncertain"]:
            rows.append((f"Uncertain: {title}", _name_labels(keys["uncertain"])))
    terms = "".join(f"<dt>{escape(term)}</dt><dd>{names}</dd>" for term, names in rows)
    figure = _make_radiograph(predictions, explanation)
    warnings = _make_warnings(predictions, explanation)
    return _make_section("Study", f'{warnings}<div class="summary">{figure}<dl>{terms}</dl></div>')


def _list_results(
    predictions: Mapping[str, Prediction], explanation: "Explanation | None"
) -> "list[Prediction | Explanation]":
    return [*predictions.values(), *([] if explanation is None else [explanation])]


def _make_warnings(predictions: Mapping[str, Prediction], explanation: "Explanation | None") -> str:
    """Return the warnings of all results, each sentence once."""
    results = _list_results(predictions, explanation)
    sentences = dict.fromkeys(sentence for result in results for sentence in result.warnings)
    items = "".join(f"<li>{escape(sentence)}</li>" for sentence in sentences)
    return (
        f'<div class="warnings" role="note"><strong>Warning</strong><ul>{items}</ul></div>' if items else ""
    )


def _describe_images(
    predictions: Mapping[str, Prediction], explanation: "Explanation | None"
) -> list[tuple[str, str]]:
    """Return the view of each image as a row of the summary; no row without an image."""
    images = max((prediction.images for prediction in predictions.values()), key=len, default=())
    if len(images) > 1:
        return [
            (f"View, image {number}", _describe_view(image.notes, image.lateral))
            for number, image in enumerate(images, start=1)
        ]
    results = _list_results(predictions, explanation)
    notes = next((result.image_notes for result in results if result.image_notes is not None), None)
    if notes is None:
        return []
    lateral = next((result.lateral for result in results if result.lateral is not None), None)
    return [("View", _describe_view(notes, lateral))]


def _describe_view(notes: ImageNotes, lateral: float | None) -> str:
    """Return the view of one image as HTML: from the header of the file, and from the model."""
    facts = (notes.view, notes.laterality and f"laterality {notes.laterality}", notes.modality)
    header = ", ".join(fact for fact in facts if fact and fact != "UNKNOWN")
    model = "" if lateral is None else f"; lateral with probability {lateral:.2f} by the model"
    return (escape(header) or "not stated in the file") + model


def _describe_report(
    predictions: Mapping[str, Prediction], explanation: "Explanation | None"
) -> list[tuple[str, str]]:
    """Return the sections that the model read as a row of the summary; no row without a report."""
    results = _list_results(predictions, explanation)
    notes = next((result.report_notes for result in results if result.report_notes is not None), None)
    return [] if notes is None else [("Report read as", escape(notes.describe_parts()))]


def _make_radiograph(predictions: Mapping[str, Prediction], explanation: "Explanation | None") -> str:
    picture = None if explanation is None else explanation.radiograph
    if picture is None:
        has_image = any(prediction.kind != "text" for prediction in predictions.values())
        text = "The page has no copy of the radiograph." if has_image else "The predictions use no image."
        return f'<p class="quiet">{text}</p>'
    image = _make_image(picture, "Radiograph of this study")
    return f"<figure>{image}<figcaption>The radiograph, padded to a square.</figcaption></figure>"


def _name_labels(keys: Sequence[str]) -> str:
    return "<br>".join(escape(LABEL_NAMES.get(key, key)) for key in keys) or "none"


def _make_findings(predictions: Mapping[str, Prediction], truth: tuple[str, ...]) -> str:
    if not predictions:
        return ""
    columns = list(predictions.values())
    ranked = sorted(columns[0].findings, key=lambda finding: (finding.held_out, -finding.probability))
    by_key = [{finding.key: finding for finding in prediction.findings} for prediction in columns]
    head = "".join(f'<th scope="col">{escape(_KIND_TITLES.get(kind, kind))}</th>' for kind in predictions)
    rows = []
    for finding in ranked:
        cells = "".join(
            f'<td data-read="{escape(_KIND_TITLES.get(kind, kind))}">{_make_bar(column.get(finding.key))}</td>'
            for kind, column in zip(predictions, by_key, strict=True)
        )
        is_label = finding.key in truth
        tag = ' <span class="tag truth">labelled</span>' if is_label else ""
        remark = f' <span class="note">{escape(finding.remark)}</span>' if finding.remark else ""
        name = f'<th scope="row">{escape(finding.name)}{tag}{remark}</th>'
        rows.append(f'<tr class="{"truth" if is_label else "other"}">{name}{cells}</tr>')
    has_band = any(_make_band(finding) for prediction in columns for finding in prediction.findings)
    band = " The hatched band marks the probabilities that are uncertain." if has_band else ""
    return _make_section(
        "Findings",
        '<p class="note">Calibrated probabilities, ordered by the first column. The vertical line is the threshold '
        "from which a finding counts as present. Each column has its own thresholds."
        f"{band}</p>{_make_sets(predictions)}"
        f'<div class="wide" tabindex="0" role="region" aria-label="Findings"><table class="findings"><thead><tr>'
        f'<th scope="col">Finding</th>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>',
    )


def _make_bar(finding: Finding | None) -> str:
    if finding is None:
        return '<span class="quiet">no prediction</span>'
    decision, share = finding.decision, finding.image_share
    limit = "no threshold" if finding.threshold is None else f"threshold {finding.threshold:.3f}"
    return (
        f'<div class="probability {decision}" title="probability {finding.probability:.3f}, {limit}">'
        '<div class="track" aria-hidden="true">'
        f'<div class="fill" style="width: {_to_percent(finding.probability)}"></div>'
        f"{_make_band(finding)}{_make_threshold(finding)}</div>"
        f'<span class="value">{finding.probability:.2f}</span>'
        f'<span class="state">{_DECISION_TEXTS[decision]}</span></div>'
        + ("" if share is None else f'<span class="note">{_tell_share(share)}</span>')
    )


def _tell_share(share: float) -> str:
    return f"The image has {share:.0%} of this finding's attention."


def _to_percent(probability: float) -> str:
    """Return a probability as a length in CSS, as a share of its bar."""
    return f"{100 * min(max(probability, 0.0), 1.0):.1f}%"


def _make_threshold(finding: Finding) -> str:
    """Return the line at the threshold; "" without a threshold."""
    if finding.threshold is None:
        return ""
    return f'<div class="limit" style="left: {_to_percent(finding.threshold)}"></div>'


def _make_band(finding: Finding) -> str:
    """Return the band of uncertain probabilities; "" without a band."""
    low, high = finding.uncertain_low, finding.uncertain_high
    if low is None or high is None or low >= high:
        return ""
    return f'<div class="band" style="left: {100 * low:.1f}%; width: {100 * (high - low):.1f}%"></div>'


def _make_sets(predictions: Mapping[str, Prediction]) -> str:
    """Return a sentence about the conformal set of each prediction; "" from a model without conformal sets."""
    items = "".join(
        f"<li>{escape(prediction.conformal_set.to_sentence(prediction.kind))}</li>"
        for prediction in predictions.values()
        if prediction.conformal_set is not None
    )
    return f'<ul class="note">{items}</ul>' if items else ""


def _make_explanation(explanation: "Explanation | None") -> str:
    if explanation is None:
        return ""
    shares = ", ".join(f"{kind} {share:.0%}" for kind, share in explanation.shares.items())
    text = (
        f"<p>Integrated Gradients of the logit of <strong>{escape(explanation.name)}</strong> (probability "
        f"{explanation.probability:.3f}, {explanation.verdict}), through the whole model. "
        f"Share of the absolute attribution: <strong>{escape(shares)}</strong>.</p>"
        f'<p class="note">The baseline is {escape(explanation.baseline)}. The logit is {explanation.logit:+.2f}, the '
        f"logit of the baseline {explanation.baseline_logit:+.2f}. With {explanation.steps} steps, "
        f"{explanation.relative_delta:.1%} of the difference is unexplained. An attribution shows what moved this "
        "model, not what the patient has.</p>"
    )
    return _make_section("Why: " + escape(explanation.name), text + _make_maps(explanation))


def _make_maps(explanation: "Explanation") -> str:
    """Return the maps as figures, above them what is known about their quality."""
    if explanation.radiograph is None:
        return '<p class="quiet">The explanation has no image.</p>'
    remarks = "".join(f"<p><strong>{escape(remark)}</strong></p>" for remark in explanation.remarks)
    if explanation.image_share is not None:
        remarks += f"<p>{_tell_share(explanation.image_share)}</p>"
    figures = "".join(_make_map(explanation, found) for found in explanation.maps)
    return remarks + (f'<div class="figures">{figures}</div>' if figures else "")


def _make_map(explanation: "Explanation", found: "ImageMap") -> str:
    from client.explain.overlay import describe_colours, describe_map, render_map

    drawn = render_map(explanation, found, longest=MAP_SIDE)
    picture = _make_image(drawn, f"{found.title} for {explanation.name} over the radiograph")
    if found.signed:
        meaning = _LEGEND
    else:
        _, low, high = describe_colours(found)
        meaning = f"Dark violet: {escape(low)}; yellow: {escape(high)}."
    title = escape(describe_map(explanation, found))
    return f"<figure>{picture}<figcaption>{title}. {meaning}</figcaption></figure>"


def _make_words(explanation: "Explanation | None") -> str:
    if explanation is None or explanation.report_text is None:
        return ""
    text, words = explanation.report_text, explanation.words
    top = max((abs(word.attribution) for word in words), default=0.0)
    parts, position, section = [], 0, ""
    has_sections = len({word.section for word in words}) > 1
    for word in words:
        parts.append(escape(text[position : word.start]))
        if has_sections and word.section != section:
            section = word.section
            parts.append(f'<span class="tag">{escape(section.capitalize())}</span> ')
        parts.append(_mark_word(word, top))
        position = word.end
    rest = escape(text[position:])
    if rest.strip():
        parts.append(f'<span class="unread" title="The model did not read this text">{rest}</span>')
    note = f'<p class="note">The part of the report for the model. {_LEGEND} Point at a word to see its value.</p>'
    body = f'{note}<p class="read">{"".join(parts)}</p>{_make_word_table(words)}'
    return _make_section("Words: " + escape(explanation.name), body)


def _mark_word(word: "WordAttribution", top: float) -> str:
    strength = abs(word.attribution) / top if top else 0.0
    title = f"{word.attribution:+.3f} logits, {word.attention:.1%} of the attention"
    if strength < 0.05:  # a mark on every weak word would only be noise
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
    note = '<p class="note">Cosine similarity, -1 to 1. A tick marks a label that this study has too.</p>'
    return _make_section("Similar cases", f'{note}<div class="columns">{"".join(columns)}</div>')


def _make_card(case: SimilarCase, truth: tuple[str, ...]) -> str:
    labels = "".join(
        f'<li class="{"shared" if key in truth else "other"}">{"✓ " if key in truth else ""}'
        f"{escape(LABEL_NAMES.get(key, key))}</li>"
        for key in case.labels
    )
    report = _mark(case.report.strip(), case.excerpt) or (
        '<span class="quiet">The index has no report of this case.</span>'
    )
    return (
        f'<article class="case"><div>{_make_thumbnail(case)}</div><div><h4>{escape(case.id)}</h4>'
        f'<div class="quiet">similarity {case.score:.3f}</div><ul class="labels">{labels}</ul>'
        f'<p class="report" tabindex="0">{report}</p></div></article>'
    )


def _mark(report: str, excerpt: str) -> str:
    """Return a report as HTML, with the sentence that fits the query marked."""
    excerpt = excerpt if excerpt in report else excerpt.removesuffix("...")  # a long sentence is cut
    before, found, after = report.partition(excerpt) if excerpt else (report, "", "")
    marked = f"<mark>{escape(found)}</mark>" if found else ""
    return f"{escape(before)}{marked}{escape(after)}"


def _make_thumbnail(case: SimilarCase) -> str:
    if not case.image_ref:
        return '<div class="absent-image">The index has no image of this case</div>'
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
    """Return a section. Both arguments are HTML."""
    return f"<section><h2>{heading}</h2>\n{body}</section>"
