"""The radiograph that new DICOM objects refer to.

highdicom writes a doubtful patient's name into a log, and refuses some values that hospitals write. So it never sees
the patient: it gets a reference without personal data, and the elements of patient and study are copied afterwards, as
they stand in the file.
"""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from contract.errors import ConfigError, ImageError
from contract.image.dicom_file import is_picture

EXTRA: Final = "DICOM outputs need the 'explain' extra: pip install 'cxr-serving[explain]'."
_UIDS: Final = ("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID")
_EMPTY: Final = (
    "PatientID",
    "PatientName",
    "PatientBirthDate",
    "PatientSex",
    "AccessionNumber",
    "StudyID",
    "StudyDate",
    "StudyTime",
    "ReferringPhysicianName",
)
_SHOWN: Final = (  # how the stored values become grey
    "Rows",
    "Columns",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "RescaleSlope",
    "RescaleIntercept",
    "RescaleType",
    "WindowCenter",
    "WindowWidth",
    "VOILUTFunction",
)


@dataclass(frozen=True, eq=False)
class Source:
    """A radiograph in a DICOM file.

    Attributes:
        dataset: Its data set, with the patient.
        reference: What highdicom sees of it: UIDs and how it is displayed, without the patient.
    """

    dataset: Any
    reference: Any

    @property
    def spacing(self) -> tuple[Any, ...] | None:
        """Pixel Spacing, else Imager Pixel Spacing, in mm down and across; None if the file states neither."""
        for name in ("PixelSpacing", "ImagerPixelSpacing"):
            value = self.dataset.get(name)
            if value is not None and len(value) == 2 and all(float(side) > 0 for side in value):
                return tuple(value)
        return None

    def copy(self, made: Any, *names: str) -> None:
        """Copy elements that the file states into a new object."""
        for name in names:
            if name in self.dataset:
                made[name] = self.dataset[name]

    def copy_body_part(self, made: Any) -> None:
        """Copy the body part. A chest has no side, so only an unknown body part gets a Laterality, an unknown one."""
        self.copy(made, "BodyPartExamined")
        if not made.get("BodyPartExamined"):
            made.Laterality = ""

    def copy_patient(self, made: Any) -> None:
        """Copy all elements of patient and study, and the character set that their texts are written in."""
        made.copy_patient_and_study_information(self.dataset)
        self.copy(made, "SpecificCharacterSet")


def read_source(data: bytes) -> Source:
    """Read the radiograph that DICOM objects are made for.

    Raises:
        ImageError: The file is no DICOM file, lacks a UID, or has several frames. The message names no patient.
        ConfigError: The `explain` extra is not installed.
    """
    if is_picture(data):
        raise ImageError(
            "DICOM outputs need a DICOM image, because they belong to its patient and study; this image is PNG or JPEG."
        )
    with quiet_dicom():
        pydicom = import_pydicom()
        try:
            dataset = pydicom.dcmread(io.BytesIO(data), force=True)
            missing = [name for name in _UIDS if not dataset.get(name)]
            frames = int(dataset.get("NumberOfFrames") or 1)
            reference = None if missing else _make_reference(dataset)
        except Exception:  # pydicom raises many types, and their messages may quote the patient
            raise ImageError("The DICOM file is damaged, so no DICOM objects can refer to it.") from None
    if missing:
        raise ImageError(
            f"The DICOM file states no {' and no '.join(missing)}, so DICOM objects cannot refer to it."
        )
    if frames > 1:
        raise ImageError(
            f"The DICOM file has {frames} frames. DICOM outputs are made for images of one frame."
        )
    return Source(dataset, reference)


def import_pydicom() -> Any:
    """Return pydicom. Raise ConfigError if highdicom, which needs it, is not installed."""
    try:
        import highdicom  # noqa: F401
        import pydicom
    except ModuleNotFoundError as error:
        raise ConfigError(EXTRA) from error
    return pydicom


@contextmanager
def quiet_dicom() -> Iterator[None]:
    """Let pydicom neither check nor report the values of a file, because its warnings quote them."""
    from pydicom import config

    before = config.settings.reading_validation_mode, config.settings.writing_validation_mode
    config.settings.reading_validation_mode = config.settings.writing_validation_mode = config.IGNORE
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        config.settings.reading_validation_mode, config.settings.writing_validation_mode = before


def _make_reference(dataset: Any) -> Any:
    from pydicom import Dataset

    reference = Dataset()
    for name in _EMPTY:
        setattr(reference, name, "")
    for name in (*_UIDS, *_SHOWN):
        if dataset.get(name) not in (None, ""):
            reference[name] = dataset[name]
    if not ("WindowCenter" in reference and "WindowWidth" in reference):
        for name in ("WindowCenter", "WindowWidth", "VOILUTFunction"):
            reference.pop(name, None)
        if dataset.get("VOILUTSequence"):
            reference["VOILUTSequence"] = dataset["VOILUTSequence"]
    if dataset.get("ModalityLUTSequence"):
        reference["ModalityLUTSequence"] = dataset["ModalityLUTSequence"]
    return reference
