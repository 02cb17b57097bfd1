# ruff: noqa: N999
"""What is imported by a name in a variable: by scratchwriter, and by what exports use.

It is collected as far as it is installed. All of it is in this one hook: PyInstaller runs
one hook for a module, and one of ours for ome-writers would hide one of its own.

https://pyinstaller.org/en/stable/hooks.html#providing-pyinstaller-hooks-with-your-package
"""

from PyInstaller.utils.hooks import (
    check_requirement,
    collect_data_files,
    collect_entry_point,
    collect_submodules,
)

# What ome-types and zarr ask for among the installed packages, and load.
_GROUPS = ("xsdata.plugins.class_types", "zarr.codec_pipeline")
# imagecodecs has a hundred codecs; ome-writers uses LZW.
_LZW = ("imagecodecs._imcd", "imagecodecs._shared")

datas = collect_data_files("scratchwriter", includes=["napari.yaml"])
hiddenimports = collect_submodules("scratchwriter", on_error="ignore")
hiddenimports += collect_submodules("ome_writers", on_error="ignore")
hiddenimports += collect_submodules("imagecodecs", lambda name: name.startswith(_LZW))
if check_requirement("tensorstore"):
    hiddenimports.append("ml_dtypes")  # it imports this in C
for group in _GROUPS:
    found = collect_entry_point(group)
    datas += found[0]
    hiddenimports += found[1]
