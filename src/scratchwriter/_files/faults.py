"""Turns whatever is wrong with a file into one kind of error."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import ValidationError

from scratchwriter.errors import DatasetError


@contextmanager
def faults_of(path: Path) -> Iterator[None]:
    """Raise whatever is wrong with a file as a `DatasetError` that names it."""
    try:
        yield
    except DatasetError:
        raise
    except ValidationError as error:
        fault = error.errors(include_url=False, include_context=False)[0]
        where = ".".join(map(str, fault["loc"])) or "content"
        raise DatasetError(f"{path}: {where}: {fault['msg']}") from None
    except OSError as error:
        raise DatasetError(f"{path}: {error.strerror or error}") from None
    except (
        ValueError,
        TypeError,
        LookupError,
        ArithmeticError,
        RuntimeError,
        MemoryError,
    ) as error:
        # Such a text may be as long as the faulty value.
        raise DatasetError(f"{path}: {str(error)[:200] or type(error).__name__}") from None
