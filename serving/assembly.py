"""The private folder that a Triton runs from, with its backends, its Python and links to everything else."""

from dataclasses import dataclass, replace
from pathlib import Path

from contract.errors import ConfigError
from serving.runtime import PrivateFolder, find_stub_trouble, list_bases
from serving.triton import (
    TritonInstallation,
    assemble_backends,
    assemble_python,
    build_environment,
    list_import_paths,
)


@dataclass(frozen=True)
class Assembly:
    """A filled private folder. `installation` and `environment` hold only plain paths."""

    folder: PrivateFolder
    installation: TritonInstallation
    environment: dict[str, str]

    @property
    def backends(self) -> Path:
        """The backend directory."""
        return self.folder.path / "backends"

    @property
    def is_whole(self) -> bool:
        """Whether all files for a start still exist."""
        stub = self.backends / "python" / self.installation.stub.name
        return stub.is_file() and self.empty.is_dir() and (self.folder.path / "python").is_dir()

    @property
    def socket(self) -> Path:
        """The socket file for Triton's gRPC. It is in this folder, which other users cannot enter."""
        return self.folder.path / "triton"

    @property
    def empty(self) -> Path:
        """An empty folder as current directory, because models import from the current directory first."""
        return self.folder.path / "empty"


def assemble(installation: TritonInstallation) -> Assembly:
    """Fill a private folder in the first directory that allows running programs (some machines forbid it in /tmp).

    The program of the python models is started once as a test. If it cannot start, the error comes now and not after
    minutes in which Triton waits for it.

    Raises:
        ConfigError: The program cannot be started from any directory. The message gives the reasons.
    """
    troubles = []
    for base in list_bases():
        try:
            folder = PrivateFolder(base)
        except OSError as error:
            troubles.append(f"{base}: {error.strerror}")
            continue
        try:
            assembly = _fill(folder, installation)
            trouble = find_stub_trouble(
                assembly.backends / "python" / installation.stub.name, assembly.environment
            )
        except (OSError, ConfigError) as error:
            trouble = str(error)
        except BaseException:
            folder.close()
            raise
        if trouble is None:
            return assembly
        folder.close()
        troubles.append(trouble)
    raise ConfigError(
        "The python process of Triton's models cannot be started from a folder for temporary files "
        f"({'; '.join(troubles) or 'there is none with a plain path'}). Set TMPDIR to a folder whose path has only "
        "ASCII letters, digits and ._/+- and that allows running programs."
    )


def _fill(folder: PrivateFolder, installation: TritonInstallation) -> Assembly:
    (folder.path / "empty").mkdir()
    assemble_backends(installation, folder.path / "backends")
    link = folder.link_unless_plain
    linked = replace(
        installation,
        caches=link("caches", installation.caches),
        libraries=link("libraries", installation.libraries),
    )
    paths = [link(f"packages/{number}", Path(path)) for number, path in enumerate(list_import_paths())]
    python = assemble_python(folder.path / "python", [str(path) for path in paths])
    return Assembly(folder, linked, build_environment(linked, python))
