"""The exception that this library has of its own."""


class DatasetError(ValueError):
    """What is in a folder is no scratch dataset, or a damaged one.

    The message names the file and the fault.
    """


class ExportCancelledError(Exception):
    """An export was cancelled; the same call goes on where it was."""
