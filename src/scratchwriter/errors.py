"""The exceptions of this library, and the messages for a full disk."""

from __future__ import annotations

import errno
import os
import shutil
from contextlib import suppress
from pathlib import Path


class DatasetError(ValueError):
    """A folder holds no scratch dataset, or a damaged one.

    The message names the file and the fault.
    """


class ExportCancelledError(Exception):
    """An export was cancelled; the same call resumes it."""


class DeviceError(OSError):
    """A device has not taken what was written. The system reports that only once."""


def device_error(code: int, path: Path) -> DeviceError:
    """Return the error for a device that has not taken what was written."""
    return DeviceError(
        code,
        f"{os.strerror(code)}: the device has not taken all that was written, and may "
        "never do so. It can still be read: copy it to another device before this "
        "machine is turned off",
        str(path),
    )


def disk_error(code: int, path: Path, needed_nbytes: int = 0) -> OSError:
    """Return an OSError that names the path and, on a full disk, the space that is left."""
    text = os.strerror(code)
    if needed_nbytes > 0 and code in (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)):
        with suppress(OSError):
            free_nbytes = shutil.disk_usage(path.parent).free
            text += (
                f": {needed_nbytes:,} more bytes are needed, {free_nbytes:,} are "
                "free. Free some space and continue; what was stored is safe"
            )
    elif needed_nbytes > 0 and code == errno.EFBIG:
        text += f": {needed_nbytes:,} more bytes would exceed the limit (ulimit -f)"
    elif code == errno.ESTALE:
        text = "The file was replaced by another, which is left unchanged"
    return OSError(code, text, str(path))


def too_small_disk_error(needed_nbytes: int, free_nbytes: int, folder: Path) -> OSError:
    """Return the error for an acquisition that does not fit on a disk."""
    return OSError(
        errno.ENOSPC,
        f"The arrays need {size_text(needed_nbytes)}, the disk has "
        f"{size_text(free_nbytes)} free. Free some space, choose another folder "
        "(root_path; for temporary files ScratchFormat.spill_dir or TMPDIR), or record "
        "less",
        str(folder),
    )


def size_text(nbytes: int) -> str:
    """Return a number of bytes as readable text; exact for any integer."""
    if nbytes < 1_000_000:
        return f"{nbytes:,} bytes"
    unit, name = (10**9, "GB") if nbytes >= 10**9 else (10**6, "MB")
    tenths = nbytes * 10 // unit
    return f"{tenths // 10:,}.{tenths % 10} {name}"
