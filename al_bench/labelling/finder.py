"""Which listed image a name or a checksum from elsewhere means."""

import os
from functools import cached_property
from pathlib import Path, PurePosixPath, PureWindowsPath

from al_bench.labelling import label_studio
from al_bench.labelling.given import Given
from al_bench.labelling.images import Listing
from al_bench.labelling.tables import path_cell
from al_bench.provenance import sha256_of


class Finder:
    def __init__(self, listing: Listing) -> None:
        self.listing = listing

    def __call__(self, given: Given) -> str | None:
        """The path of the image, or None. A checksum decides where there is one: files may have been renamed."""
        if given.file:
            return self._of_file(given.file)
        path = self.by_name(given.name) if given.name else None
        if given.sha256 is None or (path and self._sum(path) == given.sha256):
            return path
        return self._by_content(given.sha256)

    def _of_file(self, file: Path) -> str | None:
        """A link by where it leads, a copy by its content."""
        try:
            if file.is_symlink() and (path := self.by_name(os.path.join(file.parent, os.readlink(file)))):
                return path
            return self._by_content(sha256_of(file), file.stat().st_size)
        except OSError:
            return None

    def _by_content(self, sha256: str, size: int | None = None) -> str | None:
        """size: bytes, where it is known: no other files are read then."""
        alike = (image.path for image in self.listing.images if size in (None, image.bytes))
        return next((path for path in alike if self._sum(path) == sha256), None)

    def by_name(self, name: str) -> str | None:
        """A path below the folder, below its parent, from the root, as a table shows it, or of Label Studio."""
        folder, shown = self.listing.folder, label_studio.path_in(name) or name
        for text in (shown, str(PurePosixPath(*PureWindowsPath(shown).parts)) if "\\" in shown else shown):
            short = os.path.normpath(text)
            for above in (f"{folder}/", f"{os.path.realpath(folder)}/", f"{folder.name}/"):
                if (found := self._known.get(short) or self._known.get(short.removeprefix(above))) is not None:
                    return found
        return self._known.get(shown)

    @cached_property
    def _known(self) -> dict[str, str]:
        """The canonical path by path, and by what a table shows of it."""
        known = self.listing.canonical
        moved = {self._place(i.path): i.path for i in self.listing.images}
        return {path_cell(path): to for path, to in known.items()} | moved | known

    def _place(self, path: str) -> str:
        return self.listing.file(path).relative_to(self.listing.folder).as_posix()

    def _sum(self, path: str) -> str | None:
        try:
            return self.listing.sha256(path)
        except OSError:
            return None
