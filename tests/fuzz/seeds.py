"""Draw the corpus: `python tests/fuzz/seeds.py` writes the same small files each time.

Found inputs lie beside them in `corpus/<target>/found-*` and are not touched.
"""

import bz2
import gzip
import io
import lzma
import sys
import tarfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image
from pydicom import dcmread, dcmwrite
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import UID, ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

ROOT = Path(__file__).resolve().parents[2]
CORPUS = Path(__file__).parent / "corpus"
sys.path.insert(0, str(ROOT))

from cli.speed_images import draw_radiograph, list_kinds, write_dicom  # noqa: E402

VALUES = draw_radiograph(40, 32)

SHUTTER: dict[str, Any] = {
    **{"ShutterShape": ["RECTANGULAR", "CIRCULAR", "POLYGONAL"], "ShutterLeftVerticalEdge": 3},
    **{"ShutterRightVerticalEdge": 30, "ShutterUpperHorizontalEdge": 2, "ShutterLowerHorizontalEdge": 38},
    **{"CenterOfCircularShutter": [20, 16], "RadiusOfCircularShutter": 15},
    **{"VerticesOfThePolygonalShutter": [2, 2, 2, 30, 38, 30, 38, 2], "CollimatorShape": "CIRCULAR"},
    **{"CenterOfCircularCollimator": [20, 16], "RadiusOfCircularCollimator": 12, "WindowWidth": None},
}


def draw_images() -> Iterator[tuple[str, bytes]]:
    """Yield (name, bytes) of one image per transfer syntax and per way of showing it."""
    for kind in list_kinds():
        name = kind.name.replace(",", "").replace(" ", "-").lower()
        data = kind.write(VALUES)
        yield name + (".dcm" if kind.dicom else ".img"), sign(data) if kind.dicom else data
    shown: dict[str, dict[str, Any]] = {
        "monochrome1": {"PhotometricInterpretation": "MONOCHROME1", "PresentationLUTShape": "INVERSE"},
        "sigmoid": {"VOILUTFunction": "SIGMOID", "ViewPosition": "LL", "ImageLaterality": "L"},
        "no-window": {
            "WindowCenter": None,
            "WindowWidth": None,
            "RescaleSlope": "",
            "RescaleIntercept": "-5",
        },
        "windows": {"WindowCenter": [1800, 900], "WindowWidth": [2000, 10], "VOILUTFunction": "LINEAR_EXACT"},
        "padding": {"PixelPaddingValue": 0, "PixelPaddingRangeLimit": 40, "PixelAspectRatio": [2, 1]},
        "voi-lut": {"VOILUTSequence": [make_table(256, 800)]},
        "modality-lut": {"ModalityLUTSequence": [make_table(512, 0)]},
        "shutter": SHUTTER,
        "frames": {"NumberOfFrames": 2, "PixelData": VALUES.tobytes() * 2},
    }
    for name, changes in shown.items():
        yield f"{name}.dcm", change(write_dicom(VALUES, ExplicitVRLittleEndian), changes)
    yield from draw_colours()
    for name, syntax in (("implicit", ImplicitVRLittleEndian), ("big", ExplicitVRBigEndian)):
        yield f"bare-{name}.dcm", strip(sign(write_dicom(VALUES, syntax)), syntax)


def draw_colours() -> Iterator[tuple[str, bytes]]:
    """Yield colour images and pictures of other modes."""
    red, green = (VALUES >> 4).astype(np.uint8), (VALUES >> 5).astype(np.uint8)
    rgb = np.stack([red, green, green], axis=-1)
    plain = {"SamplesPerPixel": 3, "PlanarConfiguration": 0}
    base = write_dicom(red, ExplicitVRLittleEndian, bits=8)
    yield (
        "rgb.dcm",
        change(base, plain | {"PhotometricInterpretation": "RGB", "PixelData": rgb.tobytes()}),
    )
    palette = {
        f"{colour}PaletteColorLookupTableDescriptor": [256, 0, 16] for colour in ("Red", "Green", "Blue")
    }
    palette |= {f"{colour}PaletteColorLookupTableData": bytes(512) for colour in ("Red", "Green", "Blue")}
    yield "palette.dcm", change(base, palette | {"PhotometricInterpretation": "PALETTE COLOR"})
    file = io.BytesIO()
    Image.fromarray(rgb).save(file, "JPEG", quality=80)
    ybr = plain | {"PhotometricInterpretation": "YBR_FULL_422", "PixelData": encapsulate([file.getvalue()])}
    yield "ybr.dcm", change(write_dicom(red, "1.2.840.10008.1.2.4.50", bits=8, frame=b"\0\0"), ybr)
    yield "rgb-jpeg.img", file.getvalue()
    deep = cv2.imencode(".png", np.stack([VALUES << 4] * 3 + [VALUES << 2], axis=-1))[1]
    yield "png-rgba-16.img", deep.tobytes()
    for mode in ("L", "P", "RGBA", "1"):
        file = io.BytesIO()
        Image.fromarray(rgb).convert(mode).save(file, "PNG")
        yield f"png-{mode.lower()}.img", file.getvalue()


def make_table(count: int, first: int) -> Dataset:
    """Return the item of a look-up table sequence."""
    item = Dataset()
    item.add_new("LUTDescriptor", "US", [count, first, 12])
    item.add_new("LUTData", "OW", np.linspace(0, 4095, count).astype("<u2").tobytes())
    return item


def change(data: bytes, changes: dict[str, Any]) -> bytes:
    """Set elements of a file and name its patient."""
    dataset = dcmread(io.BytesIO(data))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset.PatientName, dataset.PatientID = "QUINCY^ZOE", "MRN-4711"
        for name, value in changes.items():
            setattr(dataset, name, value)
            if name in dataset and dataset[name].VR == "US or SS":
                dataset[name].VR = "US"
    file = io.BytesIO()
    dcmwrite(file, dataset)
    return file.getvalue()


def sign(data: bytes) -> bytes:
    """Name the patient whom no message may name."""
    return change(data, {})


def strip(data: bytes, syntax: UID) -> bytes:
    """Drop preamble and file meta information."""
    dataset = dcmread(io.BytesIO(data))
    del dataset.file_meta
    file = io.BytesIO()
    dcmwrite(file, dataset, implicit_vr=syntax.is_implicit_VR, little_endian=syntax.is_little_endian)
    return file.getvalue()


STUDY = """<?xml version="1.0" encoding="utf-8"?>
<eCitation><uId id="CXR{number}"/><MedlineCitation><Article><Abstract>
<AbstractText Label="COMPARISON">None.</AbstractText>
<AbstractText Label="INDICATION">XXXX-year-old with cough</AbstractText>
<AbstractText Label="FINDINGS">The heart is enlarged. <b>No</b> effusion &lt;seen&gt;.</AbstractText>
<AbstractText Label="IMPRESSION">Cardiomegaly.</AbstractText>
</Abstract></Article></MedlineCitation>
<MeSH><major>Cardiomegaly/mild</major><automatic>effusion</automatic></MeSH>
<parentImage id="CXR{number}_IM-0001-1001"/></eCitation>
"""


def draw_texts() -> Iterator[tuple[str, bytes]]:
    """Yield reports in every form that is read, and some that are refused."""
    study = STUDY.format(number=7)
    yield "study.xml", study.encode()
    yield "normal.xml", study.replace("Cardiomegaly/mild", "normal").encode("utf-8-sig")
    yield "utf16.xml", study.replace("utf-8", "utf-16").encode("utf-16")
    yield "latin.xml", study.replace("utf-8", "latin-1").replace("heart", "c\xe9ur").encode("latin-1")
    yield (
        "entity.xml",
        b'<!DOCTYPE a [<!ENTITY b "c"><!ENTITY d SYSTEM "file:///etc/passwd">]>' + study[38:].encode(),
    )
    yield "deep.xml", b"<a>" * 400 + b"</a>" * 400
    yield "headings.txt", b"Indication: cough\nFINDINGS: Clear lungs, XXXX normal.\r\nIMPRESSION : Normal.\n"
    yield "bare.txt", "Small left pleural effusion, 5\u00b0 \u00e4\u4e2d\u0301.".encode()
    yield (
        "markdown.txt",
        b"**INDICATION:** Cough.\r## Findings\r- Clear.\xe2\x80\xa8> IMPRESSION\xef\xbc\x9a Normal.\\n1. COMPARISON -",
    )
    yield (
        "message.hl7",
        (
            b"MSH|^~\\&|A\rPID|1||4711||QUINCY^ZOE\rOBX|1|FT|1^Findings||Clear\\.br\\lungs \\T\\ heart.~Normal||F\r"
            b"OBX|2|TX|&IMP||<BR>None~5 mm\r"
        ),
    )
    yield "blanks.txt", b"\xef\xbb\xbf \n\t findings:\n\n impression: XXXX"


def draw_archives() -> Iterator[tuple[str, bytes]]:
    """Yield an archive of two reports in each compression."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for number in (7, 8):
            data = STUDY.format(number=number).encode()
            member = tarfile.TarInfo(f"ecgen-radiology/{number}.xml")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    tar = file.getvalue().rstrip(b"\0")
    tar += b"\0" * (-len(tar) % 512 + 1024)
    yield "plain.tar", tar
    yield "reports.tgz", gzip.compress(tar, mtime=0)
    yield "reports.tbz2", bz2.compress(tar)
    yield "reports.txz", lzma.compress(tar)


def main() -> None:
    """Write the corpus."""
    drawn = {"image": draw_images(), "text": draw_texts(), "archive": draw_archives()}
    for target, files in drawn.items():
        directory = CORPUS / target
        directory.mkdir(parents=True, exist_ok=True)
        for name, data in files:
            (directory / name).write_bytes(data)
    sizes = [path.stat().st_size for path in CORPUS.rglob("*") if path.is_file()]
    print(f"{len(sizes)} files, {sum(sizes):,} bytes in {CORPUS}")


if __name__ == "__main__":
    main()
