"""The radiograph that new DICOM objects refer to.

highdicom writes a doubtful patient's name into a log, and refuses some values that hospitals write. So it never sees
the patient: it gets a reference without personal data, and the elements of patient and study are copied afterwards, as
they stand in the file.
"""

import logging
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from contract.errors import ConfigError, ImageError
from contract.image.dicom_file import is_picture, read_dataset

EXTRA: Final = "DICOM outputs need the 'explain' extra: pip install 'cxr-serving[explain]'."
_SETTINGS: Final = threading.RLock()  # of the libraries
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

    def copy_tables(self, made: Any) -> None:
        """Copy the look-up tables that the radiograph is displayed with. A window replaces a VOI LUT.

        highdicom would declare tables of fewer bits as 16 bits without scaling them, so the image would be too dark.
        """
        from pydicom import Dataset

        big = not self.dataset.original_encoding[1]
        found = {
            name: [table for item in self.dataset.get(name) or () if (table := _copy_table(item, big=big))]
            for name in ("ModalityLUTSequence", "VOILUTSequence")
        }
        if found["ModalityLUTSequence"]:
            for name in ("RescaleIntercept", "RescaleSlope", "RescaleType"):
                made.pop(name, None)
            made.ModalityLUTSequence = found["ModalityLUTSequence"][:1]
        if found["VOILUTSequence"] and "SoftcopyVOILUTSequence" not in made:
            shown = Dataset()
            shown.VOILUTSequence = [_widen_table(table) for table in found["VOILUTSequence"]]
            made.SoftcopyVOILUTSequence = [shown]

    def copy_patient(self, made: Any) -> None:
        """Copy all elements of patient and study, and the character set that their texts are written in."""
        made.copy_patient_and_study_information(self.dataset)
        self.copy(made, "SpecificCharacterSet")


def read_source(data: bytes) -> Source:
    """Read the radiograph that DICOM objects are made for.

    Raises:
        ImageError: The file is no readable radiograph in DICOM, lacks a UID, or has several frames. The message names
            no patient.
        ConfigError: The `explain` extra is not installed.
    """
    if is_picture(data):
        raise ImageError(
            "DICOM outputs need a DICOM image, because they belong to its patient and study; this image is PNG or JPEG."
        )
    _require_packages()
    with quiet_dicom():
        dataset = read_dataset(data)
        try:
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


def _require_packages() -> None:
    """Raise ConfigError if highdicom, which needs pydicom, is not installed."""
    try:
        import highdicom  # noqa: F401
    except ModuleNotFoundError as error:
        raise ConfigError(EXTRA) from error


@contextmanager
def quiet_dicom() -> Iterator[None]:
    """Let the libraries neither check nor report the values of a file, because what they report quotes them.

    Their settings belong to the whole process, so one thread at a time changes them and puts them back.
    """
    from pydicom import config

    logger = logging.getLogger("highdicom")
    with _SETTINGS:
        level = logger.level
        before = config.settings.reading_validation_mode, config.settings.writing_validation_mode
        logger.setLevel(logging.CRITICAL)
        config.settings.reading_validation_mode = config.settings.writing_validation_mode = config.IGNORE
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                yield
        finally:
            config.settings.reading_validation_mode, config.settings.writing_validation_mode = before
            logger.setLevel(level)


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
    return reference


def _widen_table(table: Any) -> Any:
    """Return a VOI LUT of 8 or 16 bits, because a presentation state has no other ones (DICOM PS3.3 C.11.8.1)."""
    count, first, bits = table.LUTDescriptor
    if bits not in (8, 16):
        words = np.frombuffer(table.LUTData, "<u2")
        most = max(2 ** min(max(bits, 1), 16) - 1, int(words.max()))
        table.LUTData = np.rint(words * (65535 / most)).astype("<u2").tobytes()
        table["LUTDescriptor"].value = [count, first, 16]
    return table


def _copy_table(item: Any, *, big: bool) -> Any:
    """Return a look-up table as words in little endian, which the new objects are written in; None if it is empty."""
    from pydicom import Dataset

    data = item.get("LUTData")
    if not item.get("LUTDescriptor") or data in (None, "", b""):
        return None
    table = Dataset()
    for name in ("LUTDescriptor", "LUTExplanation", "ModalityLUTType"):
        if name in item:
            table[name] = deepcopy(item[name])
    if not isinstance(data, bytes):
        data = np.atleast_1d(np.asarray(data)).astype("<u2").tobytes()
    elif big and len(data) > int(item.LUTDescriptor[0] or 2**16) + 1:  # pairs of bytes, and not single ones
        data = np.frombuffer(data, ">u2").astype("<u2").tobytes()
    table.add_new("LUTData", "OW", data)
    return table
