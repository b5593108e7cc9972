"""Every error this project raises on purpose.

CxrError
├── InputError                 the caller's data cannot be used      INVALID_ARGUMENT  exit 2
│   ├── ImageError             not a radiograph that can be read
│   ├── ReportError            not a report that can be read
│   └── TensorError            a tensor of the wrong name, type or shape
├── ConfigError                a setting or a command cannot be used                   exit 2
├── ArtifactError              a file made by this project is wrong                    exit 3
│   ├── FingerprintError       two artifacts come from different models
│   └── ParityError            an exported graph answers differently
└── ServiceError               a server did not answer as it should                    exit 4
    ├── UnavailableError       nothing answers at the address
    ├── BusyError              the server's queue is full
    ├── DeadlineError          no answer within the time given
    ├── CancelledError         the call was given up before its answer
    └── ServerError            the server failed

A message is one sentence for a person: what is wrong and, where known, what to do. It never holds a
patient identifier or the content of a report.
"""


class CxrError(Exception):
    """Base of every error raised on purpose; `exit_code` is what a command exits with."""

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
    """A setting, a path or a missing package makes the command impossible."""

    exit_code = 2


class ArtifactError(CxrError):
    """A bundle, model repository or index is damaged, incomplete or cannot be written."""

    exit_code = 3


class FingerprintError(ArtifactError):
    """Two artifacts that must come from the same model do not."""


class ParityError(ArtifactError):
    """An exported graph does not answer as the model it was made from."""


class ServiceError(CxrError):
    """A server did not answer as it should."""

    exit_code = 4


class UnavailableError(ServiceError):
    """Nothing answers at the address, or the server is not ready."""


class BusyError(ServiceError):
    """The server is there, but its queue is full: the same request may succeed in a moment."""


class DeadlineError(ServiceError):
    """No answer came within the time given."""


class CancelledError(ServiceError):
    """The call was given up before its answer, by this client or by the server."""


class ServerError(ServiceError):
    """The server failed while working on the request."""
