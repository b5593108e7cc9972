"""Small DICOM files, built in the tests."""

import io
import warnings
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom import uid
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import UID, ExplicitVRBigEndian, ExplicitVRLittleEndian

from contract.errors import ImageError
from contract.image.read import load_pixels


class DicomBuilder:
    """Builds CR images whose header names a patient, whom no message may name."""

    secrets = ("QUINCY", "ZOE", "4711")

    @staticmethod
    def ramp(bits: int, dtype=np.uint16, low: int = 0, side: int = 32) -> np.ndarray:
        """Values from `low` over the whole range of `bits`, (side, side)."""
        return (np.linspace(0, 2**bits - 1, side * side).round() + low).astype(dtype).reshape(side, side)

    @staticmethod
    def show(grey: np.ndarray) -> np.ndarray:
        """Pixels of grey 0..1."""
        return np.rint(np.clip(grey, 0, 1) * 255).astype(np.uint8)[None]

    @staticmethod
    def window_linear(values: np.ndarray, centre: float, width: float) -> np.ndarray:
        """The formula of DICOM PS3.3 C.11.2.1.2.1 with an output range of 0 to 1."""
        return (values - (centre - 0.5)) / (width - 1) + 0.5

    @staticmethod
    def assert_close(found: np.ndarray, expected: np.ndarray, tolerance: int = 1) -> None:
        """Pixels differ by `tolerance` at most."""
        assert found.shape == expected.shape
        assert np.abs(found.astype(int) - expected.astype(int)).max() <= tolerance

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

    @staticmethod
    def encode(words: np.ndarray, syntax: UID, *, bits: int, level: int | None = None) -> bytes:
        """Return a stream of the coding that a transfer syntax names."""
        import imagecodecs

        if syntax in uid.JPEGLSTransferSyntaxes:
            return imagecodecs.jpegls_encode(words, level or 0)
        if syntax in {uid.HTJ2KLossless, uid.HTJ2KLosslessRPCL, uid.HTJ2K}:
            return imagecodecs.htj2k_encode(words, level, reversible=level is None)
        if syntax in uid.JPEG2000TransferSyntaxes:
            return imagecodecs.jpeg2k_encode(words, level or 0, codecformat="j2k", reversible=level is None)
        if syntax in {uid.JPEGLossless, uid.JPEGLosslessSV1}:
            predictor = 1 if syntax == uid.JPEGLosslessSV1 else 6
            return imagecodecs.jpeg8_encode(words, lossless=True, predictor=predictor, bitspersample=bits)
        return imagecodecs.jpeg8_encode(words, level or 95, bitspersample=12 if words.itemsize == 2 else 8)

    def compress(
        self, values: np.ndarray, syntax: UID, *, level: int | None = None, **settings: Any
    ) -> bytes:
        """Return a file whose pixels, (rows, columns[, 3]), are compressed; settings as for `dataset`."""
        dataset = self.dataset(values, **settings)
        if syntax == uid.RLELossless:
            dataset = pydicom.dcmread(io.BytesIO(self.write(dataset)))
            dataset.compress(syntax, encoding_plugin="pydicom")
            return self.write(dataset)
        dataset.file_meta.TransferSyntaxUID = syntax
        words = values.view(f"u{values.itemsize}")
        stream = self.encode(words, syntax, bits=settings.get("bits", 12), level=level)
        dataset.PixelData = encapsulate([stream])
        return self.write(dataset)

    def refuse(self, data: bytes) -> str:
        """Check that a file is refused in one sentence that names no patient, and return it."""
        with pytest.raises(ImageError) as info:
            load_pixels(data, size=32)
        message = str(info.value)
        assert message.endswith(".")
        assert "\n" not in message
        assert 10 < len(message) < 200
        assert not any(secret in message.upper() for secret in self.secrets), message
        return message


@pytest.fixture(scope="session")
def dicom() -> DicomBuilder:
    """The builder of DICOM files."""
    return DicomBuilder()
