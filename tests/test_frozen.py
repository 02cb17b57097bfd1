"""Programs that PyInstaller has frozen."""

import importlib.util
import json
import subprocess
import sys
import textwrap

import numpy as np
import pytest

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("PyInstaller") is None, reason="PyInstaller is not installed"
)
# What is named here only is found by the hook: no import of it is seen.
PROGRAM = """
    import json
    import sys
    import numpy as np
    import scratchwriter
    from scratchwriter import AcquisitionSettings, create_stream, open_scratch

    def record(root_path, **fields):
        settings = AcquisitionSettings(
            root_path=root_path,
            dimensions=scratchwriter.dims_from_standard_axes({"t": 3, "y": 8, "x": 8}),
            dtype="uint16",
            **fields,
        )
        with create_stream(settings) as stream:
            for i in range(3):
                stream.append(np.full((8, 8), i, "uint16"), frame_metadata={"i": i})
        assert stream.arrays[0][2, 0, 0] == 2

    record("")
    record("data")
    with open_scratch("data") as dataset:
        assert [line["i"] for line in dataset.frame_metadata] == [0, 1, 2]
        print(dataset.export("last.npy", position=0).name)
        dataset._repr_html_()
    for number, (out, compression, format) in enumerate(json.loads(sys.argv[1])):
        record(f"data{number}", compression=compression)
        with open_scratch(f"data{number}") as dataset:
            dataset.export(out, format=format)
    try:
        scratchwriter.useq_to_acquisition_settings(None, 8, 8)
    except (ImportError, ValueError) as error:  # of useq, if it is not installed
        assert "scratchwriter" not in str(error), error
    try:
        open_scratch("data").export("none.ome.zarr")
    except ImportError as error:  # of ome-writers, if it is not installed
        assert "scratchwriter[export]" in str(error), error
    from scratchwriter.cli import main
    main(["info", "data"])
"""
# They are large, and the program does not use them.
EXCLUDED = "dask distributed matplotlib pandas PIL polars pyarrow pymmcore PyQt6 xarray"


def possible_exports():
    """Return a name, compression and format for each library that can write here."""

    def has(*names):
        return all(importlib.util.find_spec(name) for name in ("ome_writers", *names))

    for backend, library in {
        "acquire-zarr": "acquire_zarr",
        "tensorstore": "tensorstore",
        "zarr-python": "zarr",
        "zarrs-python": "zarrs",
    }.items():
        if has(library):
            theirs = {"name": "ome-zarr", "backend": backend}
            yield f"{backend}.ome.zarr", "blosc-zstd", theirs
    if has("tifffile", "ome_types", "imagecodecs"):
        yield "lzw.ome.tiff", "lzw", None


def read(path):
    if path.suffix == ".npy":
        return np.load(path)
    if path.suffix == ".tiff":
        tifffile = pytest.importorskip("tifffile")
        return tifffile.imread(path)
    zarr = pytest.importorskip("zarr")
    return np.asarray(zarr.open_group(path, mode="r")["0"])


def test_a_frozen_program_finds_what_is_imported_by_name(tmp_path):
    source = tmp_path / "program.py"
    source.write_text(textwrap.dedent(PROGRAM))
    command = [sys.executable, "-m", "PyInstaller", "--noconfirm", "--log-level=ERROR"]
    command += [f"--exclude-module={name}" for name in EXCLUDED.split()]
    built = subprocess.run(
        [*command, source.name], cwd=tmp_path, capture_output=True, text=True
    )
    assert built.returncode == 0, built.stderr
    assert "not found" not in built.stderr  # the hook names only what is installed
    program = tmp_path / "dist" / "program" / "program"
    exports = list(possible_exports())
    ran = subprocess.run(
        [program, json.dumps(exports)], cwd=tmp_path, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
    assert "state            closed" in ran.stdout
    frames = np.arange(3, dtype="uint16")[:, None, None] * np.ones((8, 8), "uint16")
    for out in ["last.npy", *(out for out, *_ in exports)]:
        np.testing.assert_array_equal(read(tmp_path / out), frames, err_msg=out)
