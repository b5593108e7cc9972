"""Small DICOM files, built in the tests."""

import io
import warnings
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRBigEndian, ExplicitVRLittleEndian


class DicomBuilder:
    """Builds CR images whose header names a patient, whom no message may name."""

    secrets = ("QUINCY", "ZOE", "4711")

    def dataset(
        self,
        values: np.ndarray,
        *,
        bits: int = 12,
        photometric: str = "MONOCHROME2",
        syntax: UID = ExplicitVRLittleEndian,
        **elements: Any,
    ) -> Dataset:
        """Return an image of `values`, (rows, columns), (frames, rows, columns) or (rows, columns, 3)."""
        colour = photometric == "RGB"
        allocated = 8 * values.dtype.itemsize
        dataset = Dataset()
        dataset.file_meta = FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = syntax
        dataset.SOPClassUID, dataset.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.1", "1.2.3"
        dataset.Modality, dataset.PatientName, dataset.PatientID = "CR", "QUINCY^ZOE", "MRN-4711"
        shape = values.shape[:-1] if colour else values.shape
        dataset.Rows, dataset.Columns = shape[-2:]
        if len(shape) == 3:
            dataset.NumberOfFrames = shape[0]
        dataset.SamplesPerPixel = 3 if colour else 1
        if colour:
            dataset.PlanarConfiguration = 0
        dataset.PhotometricInterpretation = photometric
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = allocated, bits, bits - 1
        dataset.PixelRepresentation = int(np.issubdtype(values.dtype, np.signedinteger))
        order = ">" if syntax == ExplicitVRBigEndian else "<"
        pixels = values.astype(values.dtype.newbyteorder(order)).tobytes()
        dataset.PixelData = pixels + b"\0" * (len(pixels) % 2)
        dataset["PixelData"].VR = "OB" if allocated == 8 else "OW"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of values that are wrong on purpose
            for name, value in elements.items():
                setattr(dataset, name, value)
        return dataset

    def write(self, dataset: Dataset, *, part10: bool = True) -> bytes:
        """Return the bytes of a file; without `part10` it lacks preamble and file meta information."""
        file = io.BytesIO()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if part10:
                pydicom.dcmwrite(file, dataset, enforce_file_format=True)
            else:
                syntax = dataset.file_meta.TransferSyntaxUID
                del dataset.file_meta
                encoding = {"implicit_vr": syntax.is_implicit_VR, "little_endian": syntax.is_little_endian}
                pydicom.dcmwrite(file, dataset, **encoding)
        return file.getvalue()

    def build(self, values: np.ndarray, **settings: Any) -> bytes:
        """Return the bytes of a file; settings as for `dataset`."""
        return self.write(self.dataset(values, **settings))

    def compress(self, values: np.ndarray, syntax: UID, *, encoder: dict[str, Any] | None = None) -> bytes:
        """Return a file whose 12 bit pixels are compressed by pydicom."""
        dataset = pydicom.dcmread(io.BytesIO(self.build(values)))
        dataset.compress(syntax, **(encoder or {}))
        return self.write(dataset)


@pytest.fixture(scope="session")
def dicom() -> DicomBuilder:
    """The builder of DICOM files."""
    return DicomBuilder()
