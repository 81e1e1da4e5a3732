"""The place that ``--root`` names: a folder, or an address of an object store that fsspec can open."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from mept.errors import InputError, one_line
from orchestration.options import public

if TYPE_CHECKING:
    import fsspec

PACKAGES = {
    "s3": "mept-bench[s3]",
    "s3a": "mept-bench[s3]",
    "gs": "gcsfs",
    "gcs": "gcsfs",
    "abfs": "adlfs",
    "az": "adlfs",
}
"""What to install for the addresses of a scheme."""


class Root(Protocol):
    """Files by names with ``/`` between their parts; whoever writes a name owns it alone.

    Every method raises an ``OSError`` if the place does not answer or refuses.
    """

    address: str
    folder: Path | None
    """The folder itself; None if files must be brought here before they can be used."""

    def read(self, name: str) -> bytes | None:
        """Return a file's content, or None if there is none."""

    def write(self, name: str, content: bytes) -> None:
        """Replace a file's content: readers see the old or the new one, never a part."""

    def sizes(self, prefix: str) -> dict[str, int]:
        """Return the sizes in bytes of all files below a folder by their names, sorted, as they are now."""

    def names(self, prefix: str) -> list[str]:
        """Return the names of all files below a folder, sorted, as they are now."""

    def upload(self, directory: Path, name: str) -> None:
        """Put every file of a local folder below a name."""

    def download(self, name: str, directory: Path) -> None:
        """Bring a file, or every file below a folder, into a local folder."""

    def remove(self, name: str) -> None:
        """Delete a file or everything below a folder; nothing happens if there is none."""


def open_root(root: Path | str) -> Root:
    """Open a root for reading and writing; nothing is created yet.

    Args:
        root: a folder, or an fsspec address such as ``s3://bucket/folder``.

    Raises:
        InputError: the address is of a kind that is unknown, or whose package is not installed.
    """
    return Folder(root) if isinstance(root, Path) else Bucket(root)


class Folder:
    """A folder of this machine or of a disk that machines share."""

    def __init__(self, path: Path) -> None:
        self._path = path.absolute()
        self.folder: Path | None = self._path
        self.address = str(self._path)

    def read(self, name: str) -> bytes | None:
        """Return a file's content, or None if there is none."""
        try:
            return (self._path / name).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None

    def write(self, name: str, content: bytes) -> None:
        """Replace a file's content."""
        from mept.files import write_atomically

        path = self._path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, content)

    def sizes(self, prefix: str) -> dict[str, int]:
        """Return the sizes of all files below a folder."""
        found = {}
        for path in sorted((self._path / prefix).rglob("*")):
            with suppress(FileNotFoundError):  # another process may be replacing it
                if path.is_file():
                    found[path.relative_to(self._path).as_posix()] = path.stat().st_size
        return found

    def names(self, prefix: str) -> list[str]:
        """Return the names of all files below a folder."""
        files = (path for path in (self._path / prefix).rglob("*") if path.is_file())
        return sorted(path.relative_to(self._path).as_posix() for path in files)

    def upload(self, directory: Path, name: str) -> None:
        """Copy every file of a folder below a name."""
        shutil.copytree(directory, self._path / name, dirs_exist_ok=True)

    def download(self, name: str, directory: Path) -> None:
        """Copy a file, or what is in a folder, into another folder."""
        path = self._path / name
        directory.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            shutil.copytree(path, directory, dirs_exist_ok=True)
        else:
            shutil.copy2(path, directory)

    def remove(self, name: str) -> None:
        """Delete a file or a folder."""
        path = self._path / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


class Bucket:
    """A folder of an object store; a name is an object, so writing one replaces it as a whole."""

    def __init__(self, address: str) -> None:
        self.address = address.rstrip("/")
        self.folder: Path | None = None
        scheme = address.partition("://")[0]
        try:
            import fsspec

            # Listings of a minute ago would hide checkpoints that another machine has just written.
            fs, path = fsspec.core.url_to_fs(self.address, use_listings_cache=False)
        except (ImportError, ValueError) as error:
            package = PACKAGES.get(scheme)
            what = f"`pip install '{package}'` provides it" if package else "see fsspec's list of protocols"
            raise InputError(f"--root {public(address)} cannot be opened: {one_line(error)}; {what}") from error
        self._fs: fsspec.AbstractFileSystem = fs
        self._path = str(path).rstrip("/")

    def read(self, name: str) -> bytes | None:
        """Return an object's content, or None if there is none."""
        with _as_os_error():
            try:
                return bytes(self._fs.cat_file(self._full(name)))
            except FileNotFoundError:
                return None

    def write(self, name: str, content: bytes) -> None:
        """Replace an object."""
        with _as_os_error():
            self._fs.pipe_file(self._full(name), content)

    def sizes(self, prefix: str) -> dict[str, int]:
        """Return the sizes of all objects below a folder."""
        with _as_os_error():
            self._fs.invalidate_cache()
            try:
                found = self._fs.find(self._full(prefix), detail=True)
            except FileNotFoundError:
                return {}
        return {str(path)[len(self._path) :].lstrip("/"): int(found[path]["size"] or 0) for path in sorted(found)}

    def names(self, prefix: str) -> list[str]:
        """Return the names of all objects below a folder."""
        return list(self.sizes(prefix))

    def upload(self, directory: Path, name: str) -> None:
        """Put every file of a local folder below a name."""
        with _as_os_error():
            for path in sorted(path for path in directory.rglob("*") if path.is_file()):
                self._fs.put_file(str(path), self._full(f"{name}/{path.relative_to(directory).as_posix()}"))

    def download(self, name: str, directory: Path) -> None:
        """Bring an object, or every object below a folder, into a local folder."""
        below = self.names(name)
        with _as_os_error():
            for found in below or [name]:
                inside = found[len(name) :].lstrip("/") or name.rpartition("/")[2]
                if ".." in inside.split("/"):
                    raise OSError(f"an object's name must not contain '..', but got {found}")
                (directory / inside).parent.mkdir(parents=True, exist_ok=True)
                self._fs.get_file(self._full(found), str(directory / inside))

    def remove(self, name: str) -> None:
        """Delete an object or everything below a folder."""
        below = self.names(name)
        with _as_os_error():
            for found in below:
                self._fs.rm_file(self._full(found))

    def _full(self, name: str) -> str:
        return f"{self._path}/{name}" if name else self._path


@contextmanager
def _as_os_error() -> Iterator[None]:
    """Let every failure of a store's library look like one of a disk: they share no class."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        raise OSError(f"{type(error).__name__}: {one_line(error)}") from error


def check_writable(root: Root) -> None:
    """Write, read and delete a small file.

    Raises:
        InputError: the place cannot be reached or refuses access; nothing is left there.
    """
    import uuid

    name, content = f".probe-{uuid.uuid4().hex}", b"written by mept to see whether it can write\n"
    advice = "check the address, the bucket and the credentials in this machine's environment"
    if root.folder is not None:
        advice = "give another --root"
    try:
        root.write(name, content)
        found: Any = root.read(name)
        root.remove(name)
    except OSError as error:
        reason = one_line(error.strerror or error)
        raise InputError(f"the root {public(root.address)} cannot be written: {reason}; {advice}") from error
    if found != content:
        raise InputError(f"the root {public(root.address)} does not give back what was written to it; {advice}")
