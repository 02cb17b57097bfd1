# ruff: noqa: N999
"""Modules that `scratchwriter` imports by name, when they are asked for.

https://pyinstaller.org/en/stable/hooks.html#providing-pyinstaller-hooks-with-your-package
"""

from PyInstaller.utils.hooks import collect_data_files, collect_submodules

hiddenimports = collect_submodules("scratchwriter", on_error="ignore")
datas = collect_data_files("scratchwriter", includes=["napari.yaml"])
