"""This program and the model, as DICOM names equipment, and the UIDs of new objects."""

import uuid
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final

MANUFACTURER: Final = "cxr-serving"
ALGORITHM: Final = "cxr-serving chest X-ray model"
RESEARCH: Final = "Research only, not for diagnosis"  # burned into each picture and stated in each object
_SERIES: Final = {"OT": 9901, "SR": 9902, "PR": 9903}  # modality -> number of the series


@dataclass(frozen=True)
class Series:
    """A new series.

    Attributes:
        modality: "OT" for pictures, "SR" for the report, "PR" for outlines.
        uid: Its UID.
    """

    modality: str
    uid: str

    @classmethod
    def start(cls, modality: str) -> "Series":
        """Return a series with a fresh UID."""
        return cls(modality, make_uid())


def make_uid() -> str:
    """Return a fresh UID (DICOM PS3.5 B.2): 2.25 and a random UUID. An object is never written under an older UID."""
    return f"2.25.{uuid.uuid4().int}"


def make_device_uid(fingerprint: str) -> str:
    """Return the UID of a model: the same for each of its reports."""
    return f"2.25.{uuid.uuid5(uuid.NAMESPACE_OID, fingerprint).int}"


def find_version() -> str:
    """Return the version of this program; "source" where it is not installed."""
    try:
        return version("cxr-serving")
    except PackageNotFoundError:
        return "source"


def describe_equipment(fingerprint: str) -> dict[str, Any]:
    """Return what highdicom is told of the equipment (DICOM PS3.3 C.7.5.1).

    Args:
        fingerprint: Fingerprint of the model. It is the serial number, so that each object states which model made it.
    """
    return {
        "manufacturer": MANUFACTURER,
        "manufacturer_model_name": ALGORITHM,
        "software_versions": find_version(),
        "device_serial_number": fingerprint[:64],
    }


def place_in_series(series: Series, number: int) -> dict[str, Any]:
    """Return what highdicom is told of a new object and its series.

    Args:
        series: The series.
        number: Number of the object in it, from 1 on.
    """
    return {
        "series_instance_uid": series.uid,
        "series_number": _SERIES[series.modality],
        "sop_instance_uid": make_uid(),
        "instance_number": number,
        "series_description": f"Explanation. {RESEARCH}",
    }
