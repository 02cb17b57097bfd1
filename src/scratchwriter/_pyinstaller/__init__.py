"""What PyInstaller asks for: where the hook is that finds modules imported by name."""

from __future__ import annotations

from pathlib import Path


def get_hook_dirs() -> list[str]:
    """Return the folder of the hook (the entry point `pyinstaller40`)."""
    return [str(Path(__file__).parent)]
