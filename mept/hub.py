"""Where a model's files are: in a directory, or in one commit of a repository on the Hugging Face hub."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mept.errors import InputError, one_line

ONLINE = "put the model's directory under --model-dir, or go online once so that it is cached"


@dataclass(frozen=True)
class Home:
    """The files of one model, all from the same version of it."""

    location: str
    """A directory or a hub id."""
    revision: str | None = None
    """The commit if it is a hub id."""
    cached_only: bool = False
    """Whether to use only cached files and download nothing."""

    @property
    def options(self) -> dict[str, Any]:
        """Arguments for ``from_pretrained`` besides the location."""
        if self.revision is None:
            return {}
        return {"revision": self.revision, "local_files_only": self.cached_only}

    @property
    def shown(self) -> str:
        """Where that is, as messages name it."""
        return self.location if self.revision is None else f"{self.location}@{self.revision}"

    def file(self, name: str) -> Path | None:
        """Return a file, downloading it if needed; None if there is no file of that name."""
        if self.revision is None:
            path = Path(self.location) / name
            return path if path.is_file() else None
        from huggingface_hub import hf_hub_download
        from huggingface_hub.constants import is_offline_mode
        from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError

        try:
            found = hf_hub_download(self.location, name, revision=self.revision, local_files_only=self.cached_only)
        except LocalEntryNotFoundError as error:
            if self.cached_only or is_offline_mode():
                return None
            raise InputError(f"{name} of {self.shown} cannot be fetched: {one_line(error)}; {ONLINE}") from None
        except EntryNotFoundError:
            return None
        except (HfHubHTTPError, OSError) as error:
            raise InputError(f"{name} of {self.shown} cannot be fetched: {one_line(error)}; {ONLINE}") from None
        return Path(found)


def at_commit(repository: str, revision: str | None, cached_only: bool = False) -> Home:
    """Return the commit that a branch, a tag or a shortened commit stands for now; if offline, the one last cached.

    Args:
        repository: ``owner/name``.
        revision: None for the main branch.
        cached_only: look only in the cache.

    Raises:
        InputError: there is no such model, or it cannot be reached and is not cached.
    """
    from huggingface_hub import hf_hub_download

    try:
        # The cache has a folder for each commit, and remembers which one a branch stood for.
        path = hf_hub_download(repository, "config.json", revision=revision, local_files_only=cached_only)
    except Exception as error:  # of many types: errors of the hub and of the network libraries
        at = f" at {revision!r}" if revision else ""
        raise InputError(f"cannot be loaded from {repository}{at}: {one_line(error)}") from None
    return Home(repository, Path(path).parent.name, cached_only)


def only_cached_commit(repository: str) -> str | None:
    """Return the commit of a repository that is cached; None if there is none, or more than one."""
    from huggingface_hub import try_to_load_from_cache

    path = try_to_load_from_cache(repository, "config.json")
    if not isinstance(path, str):
        return None
    snapshots = [folder.name for folder in Path(path).parent.parent.iterdir()]
    return snapshots[0] if len(snapshots) == 1 else None
