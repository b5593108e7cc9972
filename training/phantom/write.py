"""Write phantoms as files: DICOM with headers like the real collection, XML reports in Open-i's layout."""

import ast
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

from contract.report.names import SECTIONS
from training.phantom.film import FILM_CM, Plane
from training.phantom.header_clues import add_clues
from training.phantom.headers import Header

REMARK: Final = "PHANTOM: drawn by a program, shows no person"
_COLLECTION: Final = "Phantom Chest X-ray Collection"
_NO_DATE: Final = "<Year/><Month/><Day/>"
_NO_FEATURES: Final = "<CEDD/><ColorLayout/><EdgeHistogram/><FCTH/><SemanticContext60/>"


@dataclass(frozen=True)
class ReportFile:
    """What one XML report holds.

    Attributes:
        number: Number of the report, which is also the patient's.
        sections: Section name in lower case -> text; "" for an empty one.
        major: MeSH major headings.
        automatic: Terms that a program found in the text.
        image_ids: Ids of the images, as in CXR12_IM-0034-1001.
        caption: Caption of the images.
    """

    number: int
    sections: dict[str, str]
    major: Sequence[str]
    automatic: Sequence[str]
    image_ids: Sequence[str]
    caption: str


def encode_pixels(
    picture: Plane, header: Header, generator: np.random.Generator
) -> tuple[NDArray[np.uint16], tuple[float, float] | None]:
    """Turn grey into stored values that `contract.image.read` turns back.

    If the header has a window, it covers the grey from black to white. Otherwise the values use a part of the possible
    range, as detectors do.

    Args:
        picture: (rows, columns) float32, 0 (black) to 1 (white).
        header: Its photometric interpretation, bits and window count.
        generator: Draws the range of images without window.

    Returns:
        Stored values, (rows, columns), and the window's centre and width, or None.
    """
    top = 2**header.bits_stored - 1
    window = header.window
    if window is None:
        low, high = generator.uniform(0.02, 0.15) * top, generator.uniform(0.75, 0.98) * top
    else:
        centre, width = window[0], min(window[1], float(top + 1))
        centre = min(max(centre, width / 2), top + 1 - width / 2)  # so that every grey is in the stored range
        window = (centre, width)
        low = centre - 0.5 - (width - 1) / 2  # DICOM PS3.3 C.11.2.1.2.1
        high = low + width - 1
    shown = 1 - picture if header.inverted else picture
    return np.rint(np.clip(low + shown * (high - low), 0, top)).astype(np.uint16), window


def make_dataset(
    stored: NDArray[np.uint16], header: Header, window: tuple[float, float] | None, number: int, seed: int
) -> Dataset:
    """Return a DICOM data set of one image; its UIDs follow from seed, study number and image name."""
    dataset = Dataset()
    dataset.SpecificCharacterSet = "ISO_IR 100"
    dataset.SOPInstanceUID = make_uid(seed, number, header.name)
    dataset.StudyInstanceUID = make_uid(seed, number, "study")
    dataset.SeriesInstanceUID = make_uid(seed, number, f"series {header.name}")
    dataset.AccessionNumber = make_uid(seed, number, "accession")[5:21]
    dataset.PatientID = dataset.PatientName = str(number)
    for name in (
        "StudyDate",
        "StudyTime",
        "PatientBirthDate",
        "PatientSex",
        "Manufacturer",
        "ReferringPhysicianName",
    ):
        setattr(dataset, name, "")
    dataset.StudyID = ""
    dataset.ManufacturerModelName = "phantom"
    dataset.ImageComments = REMARK
    dataset.BodyPartExamined = "CHEST"
    dataset.ImageType = ["DERIVED", "PRIMARY"]
    dataset.BurnedInAnnotation = "NO"
    dataset.SeriesNumber = dataset.InstanceNumber = 1
    dataset.ImagerPixelSpacing = [f"{FILM_CM * 10 / max(stored.shape):.4f}"] * 2
    for keyword, text in header.fields.items():
        if text or keyword in {"ViewPosition", "PatientOrientation"}:
            setattr(dataset, keyword, _read_value(keyword, text))
    add_clues(dataset, header.clues, header.exposure)
    _add_window(dataset, window, header.many_windows)
    dataset.SamplesPerPixel, dataset.PixelRepresentation = 1, 0
    dataset.Rows, dataset.Columns = stored.shape
    dataset.BitsAllocated, dataset.HighBit = 16, header.bits_stored - 1
    dataset.PixelData = stored.astype("<u2").tobytes()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    return dataset


def write_image(path: Path, dataset: Dataset) -> None:
    """Write a DICOM file (Part 10)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path, enforce_file_format=True)


def make_uid(seed: int, number: int, name: str) -> str:
    """Return a UID in the shape of the collection's, 9999.<number>; equal arguments give equal UIDs."""
    digest = hashlib.sha256(f"phantom/{seed}/{number}/{name}".encode()).digest()
    return f"9999.{10**38 + int.from_bytes(digest[:15], 'big')}"


def _read_value(keyword: str, text: str) -> str | int | list[str]:
    """Return a header's value from its text in the csv; lists stand there as Python writes them."""
    if keyword in {"BitsStored", "PixelIntensityRelationshipSign"}:
        return int(text)
    return ast.literal_eval(text) if text.startswith("[") else text


def _add_window(dataset: Dataset, window: tuple[float, float] | None, many: bool) -> None:
    if window is None:
        return
    centre, width = window
    if many:
        dataset.WindowCenter = [f"{centre:g}"] * 3
        dataset.WindowWidth = [f"{round(width * part):g}" for part in (1, 0.75, 1.5)]
        dataset.WindowCenterWidthExplanation = ["NORMAL", "HARDER", "SOFTER"]
    else:
        dataset.WindowCenter, dataset.WindowWidth = f"{centre:.10g}", f"{width:.10g}"


def write_report(path: Path, report: ReportFile) -> None:
    """Write an XML report in Open-i's layout; dates, authors and image features are there, but empty."""
    lines = [
        '<?xml version="1.0" encoding="utf-8"?>',
        "<eCitation>",
        '   <meta type="rr"/>',
        f'   <uId id="CXR{report.number}"/>',
        f'   <pmcId id="{report.number}"/>',
        "   <docSource>CXR</docSource>",
        f'   <IUXRId id="{report.number}"/>',
        "   <licenseType>phantom</licenseType>",
        "   <licenseURL/>",
        "   <ccLicense/>",
        "   <articleURL/>",
        "   <articleDate/>",
        "   <articleType>XR</articleType>",
        "   <publisher>cxr-serving</publisher>",
        f"   <title>{_COLLECTION}</title>",
        f"   <note>{REMARK}</note>",
        "   <specialty>pulmonary diseases</specialty>",
        "   <subset>CXR</subset>",
        *_format_citation(report.sections),
        *_format_mesh(report.major, report.automatic),
    ]
    for place, image_id in enumerate(report.image_ids, start=1):
        lines += _format_image(image_id, place, report.caption)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([*lines, "</eCitation>"]) + "\n", encoding="utf-8")


def _format_citation(sections: dict[str, str]) -> list[str]:
    texts = []
    for name in sorted(SECTIONS, key=["comparison", "indication", "findings", "impression"].index):
        text, label = escape(sections.get(name, ""), quote=False), name.upper()
        filled = (
            f'<AbstractText Label="{label}">{text}</AbstractText>'
            if text
            else f'<AbstractText Label="{label}"/>'
        )
        texts.append(f"            {filled}")
    return [
        '   <MedlineCitation Owner="cxr-serving" Status="supplied by publisher">',
        '      <Article PubModel="Electronic">',
        f"         <Journal><JournalIssue><PubDate>{_NO_DATE}</PubDate></JournalIssue></Journal>",
        f"         <ArticleTitle>{_COLLECTION}</ArticleTitle>",
        "         <Abstract>",
        *texts,
        "         </Abstract>",
        "         <Affiliation/>",
        '         <AuthorList CompleteYN="Y">',
        '            <Author ValidYN="Y"><LastName/><ForeName/><Initials/></Author>',
        "         </AuthorList>",
        "         <Language>eng</Language>",
        "         <PublicationTypeList>",
        "            <PublicationType>Radiology Report</PublicationType>",
        "         </PublicationTypeList>",
        f"         <ArticleDate>{_NO_DATE}</ArticleDate>",
        "      </Article>",
        f"      <EssieArticleTitle>{_COLLECTION}</EssieArticleTitle>",
        "      <IMedAuthor/>",
        "   </MedlineCitation>",
    ]


def _format_mesh(major: Sequence[str], automatic: Sequence[str]) -> list[str]:
    terms = [f"      <major>{escape(heading)}</major>" for heading in major]
    terms += [f"      <automatic>{escape(term)}</automatic>" for term in automatic]
    return ["   <MeSH>", *terms, "   </MeSH>"]


def _format_image(image_id: str, place: int, caption: str) -> list[str]:
    return [
        f'   <parentImage id="{escape(image_id)}">',
        f"      <figureId>F{place}</figureId>",
        f"      <caption>{escape(caption)}</caption>",
        '      <panel type="single">',
        f"         <url>/phantom/{escape(image_id)}.jpg</url>",
        "         <imgModality>7</imgModality>",
        '         <region type="panel">',
        f"            <globalImageFeatures>{_NO_FEATURES}</globalImageFeatures>",
        "         </region>",
        "      </panel>",
        "   </parentImage>",
    ]
