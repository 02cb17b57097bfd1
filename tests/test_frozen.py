"""Programs that PyInstaller has frozen."""

import importlib.util
import subprocess
import sys
import textwrap

import pytest

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("PyInstaller") is None, reason="PyInstaller is not installed"
)
# What is named here only is found by the hook: no import of it is seen.
PROGRAM = """
    import sys
    import numpy as np
    import scratchwriter
    from scratchwriter import AcquisitionSettings, create_stream, open_scratch

    for root_path in ("", "data"):
        settings = AcquisitionSettings(
            root_path=root_path,
            dimensions=scratchwriter.dims_from_standard_axes({"t": 3, "y": 8, "x": 8}),
            dtype="uint16",
        )
        with create_stream(settings) as stream:
            for i in range(3):
                stream.append(np.full((8, 8), i, "uint16"), frame_metadata={"i": i})
        assert stream.arrays[0][2, 0, 0] == 2
    with open_scratch("data") as dataset:
        assert [line["i"] for line in dataset.frame_metadata] == [0, 1, 2]
        print(dataset.export("last.npy", position=0).name)
        dataset._repr_html_()
    try:
        scratchwriter.useq_to_acquisition_settings(None, 8, 8)
    except (ImportError, ValueError) as error:  # of useq, if it is not installed
        assert "scratchwriter" not in str(error), error
    from scratchwriter.cli import main
    main(["info", "data"])
"""


def test_a_frozen_program_finds_what_is_imported_by_name(tmp_path):
    source = tmp_path / "program.py"
    source.write_text(textwrap.dedent(PROGRAM))
    command = [sys.executable, "-m", "PyInstaller", "--noconfirm", "--log-level=ERROR"]
    command += ["--exclude-module=matplotlib", "--exclude-module=PyQt6"]
    built = subprocess.run(
        [*command, source.name], cwd=tmp_path, capture_output=True, text=True
    )
    assert built.returncode == 0, built.stderr
    program = tmp_path / "dist" / "program" / "program"
    ran = subprocess.run([program], cwd=tmp_path, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert "last.npy" in ran.stdout
    assert "state            closed" in ran.stdout
