"""Order the images of one study: the likeliest frontal view first."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from contract.errors import InputError
from contract.image.header import ImageHeader, describe_verdict, read_image_header
from contract.image.view import rank_view, weigh_study
from contract.image.view_clues import Projection

_HEADER_BYTES: Final = 2**16  # larger than the header of any Open-i file


def order_images(
    images: Sequence[tuple[str, Path]], projections: Sequence[Projection]
) -> list[tuple[str, Path, ImageHeader]]:
    """Return the images of a study with their headers, the likeliest frontal one first.

    The view in each header is decided from all headers of the study (`contract.image.view.weigh_study`).

    Args:
        images: Id and file of each image.
        projections: Projection of each image by a list; "" if the list does not have it.

    Raises:
        InputError: A file cannot be read. A file that is not an image gets an empty header with the format "".
    """
    headers = [_read_header(path) for _, path in images]
    clues = [
        replace(header.clues, projection=projection)
        for header, projection in zip(headers, projections, strict=True)
    ]
    ordered = sorted(
        zip(images, headers, weigh_study(clues), strict=True),
        key=lambda entry: (rank_view(entry[2]), entry[0][0]),
    )
    return [
        (image_id, path, replace(header, **describe_verdict(verdict)))
        for (image_id, path), header, verdict in ordered
    ]


def _read_header(path: Path) -> ImageHeader:
    try:
        with path.open("rb") as file:
            data = file.read(_HEADER_BYTES)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}.") from error
    try:
        return read_image_header(data)
    except InputError:
        return ImageHeader("")
