"""manifest.json, which describes a dataset for any reader.

While an unbounded dataset is recorded, the length of each array is in it as digits of
fixed width, right-aligned in white space. The writer renews them in place, right after it
commits frames, so that they never count a frame that is not committed.

Everything read here is untrusted.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, NonNegativeInt, model_validator

from scratchwriter._files.faults import faults_of
from scratchwriter._files.layout import (
    DIGITS,
    MANIFEST,
    MANIFEST_MAX_NBYTES,
    draft_name,
)
from scratchwriter._files.mapped_file import MappedFile
from scratchwriter._region.descriptor import Descriptor
from scratchwriter._region.system import errors_name, open_regular, sync_file, write_all
from scratchwriter._version import __version__
from scratchwriter.errors import DatasetError
from scratchwriter.plan import FramePlan
from scratchwriter.settings import EVERY_FIELD, WITHOUT_WARNINGS, AcquisitionSettings


class ManifestDraft:
    """A manifest written beside the one it is to replace.

    Attributes
    ----------
    file : MappedFile
        The mapped file.
    length_addresses : list of int
        Where the length of each position's array is stored, if the plan is unbounded.
    """

    def __init__(
        self,
        folder: Path,
        settings_fields: Mapping[str, Any],
        plan: FramePlan,
        cursor: int,
        global_metadata: Mapping[str, Any],
        *,
        durable: bool = False,
    ) -> None:
        text, offsets = _manifest_text(settings_fields, plan, cursor, global_metadata)
        self._folder = folder
        self._path = draft_path(folder)
        try:
            with errors_name(self._path, len(text)), write_draft(self._path, text) as file:
                if durable:
                    sync_file(self._path)
                status = os.fstat(file.fileno())
                # While it is mapped, no other file can get its inode number.
                self._identity = status.st_dev, status.st_ino
                self.file = MappedFile(file)
        except BaseException:
            self.discard()
            raise
        self.length_addresses = [self.file.address + offset for offset in offsets]

    def replace(self) -> None:
        """Put it in place of the manifest, atomically."""
        self._path.replace(self._folder / MANIFEST)

    @property
    def is_in_place(self) -> bool:
        """Whether it is the manifest now."""
        with suppress(OSError):
            status = (self._folder / MANIFEST).lstat()
            return (status.st_dev, status.st_ino) == self._identity
        return False

    def discard(self) -> None:
        """Remove it."""
        self._path.unlink(missing_ok=True)


def need_manifest(
    settings_fields: Mapping[str, Any],
    plan: FramePlan,
    global_metadata: Mapping[str, Any],
) -> None:
    """Check that a dataset could have a manifest, also if it never comes to a folder.

    Raises
    ------
    ValueError
        If it would be longer than a reader takes.
    """
    _manifest_text(settings_fields, plan, 0, global_metadata)


def dump_settings(settings: AcquisitionSettings) -> dict[str, Any]:
    """Return settings as a manifest has them: every field, plain JSON.

    Called once, before the first frame, because pydantic turns a KeyboardInterrupt that
    arrives meanwhile into an error of its own.
    """
    return settings.model_dump(mode="json", context=EVERY_FIELD)


def draft_path(folder: Path) -> Path:
    """Return where this process writes what is to replace the manifest of a folder."""
    return folder / draft_name(os.getpid())


def write_draft(path: Path, text: bytes) -> Descriptor:
    """Write a new file; a link that another program put there is not followed."""
    path.unlink(missing_ok=True)
    file = Descriptor(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
    write_all(file, text)
    return file


def _manifest_text(
    settings_fields: Mapping[str, Any],
    plan: FramePlan,
    cursor: int,
    global_metadata: Mapping[str, Any],
) -> tuple[bytes, list[int]]:
    """Return the manifest, ASCII, and the offsets of the lengths that may grow.

    Raises
    ------
    ValueError
        If it is longer than a reader takes.
    """
    fields = {
        "version": __version__,
        **settings_fields,
        "global_metadata": global_metadata,
        "position_dims": [plan.file_dims] * plan.num_positions,
    }
    text = "{\n"
    for name, value in fields.items():
        text += f"{json.dumps(name)}: {json.dumps(value)},\n"
    lines = [text + '"position_shapes": [']
    end, offsets = len(lines[0]), []
    for position in range(plan.num_positions):
        shape = plan.file_shape(position, cursor)
        line = "\n[" if position == 0 else ",\n["
        if plan.is_unbounded:
            line += " " * (-(end + len(line)) % DIGITS)
            offsets.append(end + len(line))
            line += f"{shape[0]:{DIGITS}d}, {json.dumps(shape[1:])[1:]}"
        else:
            line += json.dumps(shape)[1:]
        lines.append(line)
        end += len(line)
    lines.append("\n]\n}\n")
    manifest = "".join(lines).encode("ascii")
    if len(manifest) > MANIFEST_MAX_NBYTES:
        raise ValueError(
            f"The manifest would have {len(manifest):,} bytes, the limit is "
            f"{MANIFEST_MAX_NBYTES:,}. Keep less in the global metadata (large values in a "
            "file of your own, say, and its name here), or have fewer positions."
        )
    return manifest, offsets


class Manifest(BaseModel):
    """What a reader needs of a manifest besides the settings, checked.

    Attributes
    ----------
    version : str
        Version of the library that wrote it.
    position_shapes : list of tuple of int
        Shape of each position's file.
    position_dims : list of tuple of str, or None
        Names of its axes; manifests of ome-writers have none.
    global_metadata : dict
        Metadata of the acquisition by namespace.
    disk_io : {'direct', 'page_cache'} or None
        How its files are written; manifests of ome-writers do not say it.
    why_not_direct : str
        In words, if they are not written directly.
    """

    model_config = ConfigDict(defer_build=True)

    version: str
    position_shapes: list[tuple[NonNegativeInt, ...]]
    position_dims: list[tuple[str, ...]] | None = None
    global_metadata: dict[str, Any] = {}
    disk_io: Literal["direct", "page_cache"] | None = None
    why_not_direct: str = ""

    @model_validator(mode="after")
    def _check_lengths(self) -> Self:
        if self.position_dims is not None:
            lengths = [len(shape) for shape in self.position_shapes]
            if lengths != [len(dims) for dims in self.position_dims]:
                raise ValueError("position_dims does not match position_shapes")
        return self


def read_manifest(folder: Path) -> tuple[Manifest, AcquisitionSettings]:
    """Read the manifest of a scratch dataset, of this library or of ome-writers.

    Raises
    ------
    FileNotFoundError
        If the folder does not exist.
    DatasetError
        If it has no manifest, or one that is not valid.
    """
    path = folder / MANIFEST
    if not folder.exists():
        raise FileNotFoundError(errno.ENOENT, "The folder does not exist", str(folder))
    if not folder.is_dir():
        raise DatasetError(f"{folder} is not a scratch dataset: it is not a folder")
    if not os.path.lexists(path):
        raise DatasetError(f"{folder} is not a scratch dataset: it has no {MANIFEST}")
    with faults_of(path):
        with open_regular(path) as file:
            nbytes = os.fstat(file.fileno()).st_size
            if nbytes > MANIFEST_MAX_NBYTES:
                raise ValueError(
                    f"it has {nbytes} bytes, the limit is {MANIFEST_MAX_NBYTES}"
                )
            fields = json.loads(file.read())
        if not isinstance(fields, dict):
            raise ValueError("content: it is not a JSON object")
        manifest = Manifest.model_validate(fields)
        _check_position_counts(fields.get("dimensions"), len(manifest.position_shapes))
        settings = AcquisitionSettings.model_validate(
            {k: v for k, v in fields.items() if k in AcquisitionSettings.model_fields},
            context=WITHOUT_WARNINGS,  # given when the settings were made
        )
        settings.validate_stream_ready()
    return manifest, settings


def _check_position_counts(dims: Any, most: int) -> None:
    """Check a count before it becomes a list of that length: it is untrusted."""
    for dim in dims if isinstance(dims, list) else []:
        is_position = isinstance(dim, dict) and dim.get("type") == "position"
        if is_position and int(dim.get("count") or 0) > most:
            raise ValueError("position_shapes does not match the dimensions")


def manifest_with_shapes(folder: Path, shapes: Sequence[Sequence[int]]) -> bytes:
    """Return the manifest in a folder with other shapes.

    Raises
    ------
    DatasetError
        If it cannot be read, or would be longer than a reader takes.
    """
    path = folder / MANIFEST
    with faults_of(path), open_regular(path) as file:
        fields = json.loads(file.read())
        text = json.dumps({**fields, "position_shapes": shapes}).encode("ascii")
        # It may have become longer: the file's own white space can be shorter than json's.
        if len(text) > MANIFEST_MAX_NBYTES:
            raise ValueError(
                f"it would have {len(text)} bytes, the limit is {MANIFEST_MAX_NBYTES}"
            )
    return text


def replace_shapes(folder: Path, shapes: Sequence[Sequence[int]]) -> None:
    """Replace the shapes in a manifest that no other process writes, atomically."""
    path, text = folder / MANIFEST, manifest_with_shapes(folder, shapes)
    draft = draft_path(folder)
    try:
        write_draft(draft, text).close()
        sync_file(draft)
        draft.replace(path)
        sync_file(folder)
    finally:
        draft.unlink(missing_ok=True)
