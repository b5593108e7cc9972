"""Every error this project raises on purpose.

CxrError
├── InputError                 the caller's data cannot be used      INVALID_ARGUMENT  exit 2
│   ├── ImageError             not a readable radiograph
│   ├── ReportError            not a readable report
│   └── TensorError            a tensor of the wrong name, type or shape
├── ConfigError                a setting or a command cannot be used                   exit 2
├── ArtifactError              a file made by this project is wrong                    exit 3
│   ├── FingerprintError       two artifacts come from different models
│   ├── SignatureError         a required signature is missing or not valid
│   └── ParityError            an exported graph answers differently
└── ServiceError               a server failed or did not answer                       exit 4
    ├── UnavailableError       nothing answers at the address
    ├── BusyError              the server's queue is full
    ├── DeadlineError          no answer within the time given
    ├── CancelledError         the call was cancelled before its answer
    └── ServerError            the server failed

A message says what is wrong and, if known, what to do. It never holds a patient identifier or the content of a
report.
"""


class CxrError(Exception):
    """Base of every error raised on purpose. `exit_code` is the exit code of the command."""

    exit_code = 1


class InputError(CxrError):
    """The caller's data cannot be used."""

    exit_code = 2


class ImageError(InputError):
    """The bytes are not a radiograph that this stack can read."""


class ReportError(InputError):
    """The text is not a report that this stack can read."""


class TensorError(InputError):
    """A tensor has the wrong name, data type or shape."""


class ConfigError(CxrError):
    """A setting or a path cannot be used, or a package is missing."""

    exit_code = 2


class ArtifactError(CxrError):
    """A bundle, model repository or index is damaged, incomplete or cannot be written."""

    exit_code = 3


class FingerprintError(ArtifactError):
    """Two artifacts come from different models but must come from the same one."""


class SignatureError(ArtifactError):
    """A required signature is missing, or not valid for the file and the trusted keys."""


class ParityError(ArtifactError):
    """An exported graph gives other answers than its model."""


class ServiceError(CxrError):
    """A server failed or did not answer."""

    exit_code = 4


class UnavailableError(ServiceError):
    """Nothing answers at the address, or the server is not ready."""


class BusyError(ServiceError):
    """The server's queue is full. The same request may succeed later."""


class DeadlineError(ServiceError):
    """No answer came within the deadline."""


class CancelledError(ServiceError):
    """This client or the server cancelled the call before its answer."""


class ServerError(ServiceError):
    """The server failed while working on the request."""


def number_image(error: ImageError, number: int, count: int) -> ImageError:
    """Return the error of one image of a study, with "Image 2 of 3: " before its message. `number` starts at 1."""
    return ImageError(f"Image {number} of {count}: {error}")
