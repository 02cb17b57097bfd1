"""The commands: `scratchwriter demo` and `scratchwriter info`, as a shell runs them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import ome_writers
import pytest

import scratchwriter
from scratchwriter import ScratchFormat, create_stream, open_scratch
from scratchwriter.cli import main


def run(*args, code="import sys; from scratchwriter.cli import main; sys.exit(main())"):
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code, *map(str, args)],
        capture_output=True,
        text=True,
        timeout=120,
    )


def one_line(text):
    assert text.startswith("scratchwriter: ")
    assert text.count("\n") == 1
    return text


@pytest.fixture
def dataset(make_settings, tmp_path, frames):
    """A closed dataset of two positions, frame metadata on one frame."""
    folder = tmp_path / "data"
    sizes = {"t": None, "p": ["left", "right"], "y": 4, "x": 5}
    with create_stream(make_settings(sizes, root_path=str(folder))) as stream:
        for frame in frames[:5]:
            stream.append(frame)
        stream.append(frames[5], frame_metadata={"exposure_ms": 3})
        stream.append(frames[6])
        stream.set_global_metadata("mine", {"a": 1})
    return folder


# ------------------------------------------------------------------ the program


@pytest.mark.parametrize(
    "error",
    [
        OSError("first line\n  second line"),
        json.JSONDecodeError("first line; second line", "{", 1),
        UnicodeDecodeError("utf-8", b"first line; second line", 0, 1, "bad"),
    ],
)
def test_any_error_of_an_export_is_one_line(dataset, tmp_path, monkeypatch, capsys, error):
    pytest.importorskip("rich")

    def fail(self, *args, **options):
        raise error

    monkeypatch.setattr("scratchwriter.reader.ScratchDataset.export", fail)
    assert main(["export", str(dataset), str(tmp_path / "out.ome.zarr")]) == 1
    told = one_line(capsys.readouterr().err)
    assert "?" not in told


@pytest.mark.parametrize("command", [["-m", "scratchwriter"], None])
def test_it_is_a_script_and_a_module(command):
    script = Path(sys.executable).with_name("scratchwriter")
    command = [sys.executable, *command] if command else [script]
    out = subprocess.run(
        [*command, "--version"], capture_output=True, text=True, check=True, timeout=60
    )
    assert out.stdout == f"{scratchwriter.__version__}\n"


@pytest.mark.parametrize(
    "args",
    [[], ["nonsense"], ["info"], ["demo", "--frames", "0"], ["demo", "--frames", "a"]],
)
def test_a_wrong_command_line_shows_the_usage(args):
    out = run(*args)
    assert out.returncode == 2
    assert "usage: scratchwriter" in out.stderr
    assert out.stdout == ""


# ------------------------------------------------------------------ info


def test_info_prints_what_a_dataset_holds(dataset, capsys):
    assert main(["info", str(dataset)]) == 0
    lines = {line[:17].strip(): line[17:] for line in capsys.readouterr().out.splitlines()}
    assert lines == {
        "dataset": str(dataset),
        "written by": f"scratchwriter {scratchwriter.__version__}",
        "state": "closed",
        "pixels": "uint16, 280 bytes",
        "frames": "7",
        "position 0": "left: t=4, y=4, x=5",
        "position 1": "right: t=3, y=4, x=5",
        "on the device": "not known: flush() or durability='system' makes sure of it",
        "frame metadata": "1 lines",
        "global metadata": "mine",
    }


def test_info_says_when_a_dataset_is_still_open(make_settings, tmp_path, frames, capsys):
    settings = make_settings({"t": 9, "y": 4, "x": 5}, root_path=str(tmp_path / "data"))
    with create_stream(settings) as stream:
        stream.append(frames[0])
        assert main(["info", str(tmp_path / "data")]) == 0
    out = capsys.readouterr().out
    assert "being recorded" in out
    assert "1 of 9" in out
    assert "t=9, y=4, x=5" in out


def test_info_reads_a_dataset_of_ome_writers(tmp_path, capsys):
    settings = ome_writers.AcquisitionSettings(
        root_path=str(tmp_path / "theirs"),
        dimensions=ome_writers.dims_from_standard_axes({"t": 2, "p": 2, "y": 4, "x": 5}),
        dtype="uint8",
        format="scratch",
    )
    with ome_writers.create_stream(settings) as stream:
        for i in range(4):
            stream.append(np.full((4, 5), i, "uint8"), frame_metadata={"i": i})
    assert main(["info", str(tmp_path / "theirs")]) == 0
    out = capsys.readouterr().out
    assert "uint8, 80 bytes" in out
    assert "position 1" in out
    assert "t=2, y=4, x=5" in out
    assert "4 lines" in out
    assert "ome-writers 0.3.2" in out


def test_info_reads_a_dataset_whose_format_has_fields_of_ours(
    make_settings, tmp_path, capsys
):
    fmt = ScratchFormat(casting="unsafe", spill_dir=str(tmp_path))
    settings = make_settings({"y": 4, "x": 5}, root_path=str(tmp_path / "d"), format=fmt)
    create_stream(settings).close()
    assert main(["info", str(tmp_path / "d")]) == 0
    assert "y=4, x=5" in capsys.readouterr().out


def test_info_of_what_is_no_dataset_is_one_line_and_fails(tmp_path, dataset):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    for path in ["empty", "file", "nothing", "file/below"]:
        out = run("info", tmp_path / path)
        assert out.returncode == 1
        assert out.stdout == ""
        assert str(tmp_path / path) in one_line(out.stderr)


def damage_manifest(folder, **change):
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | change))


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "manifest.json").write_bytes(b"\xff\xfe\x00"),
        lambda folder: os.truncate(folder / "manifest.json", 40),
        lambda folder: (folder / "pos_1.dat").unlink(),
        lambda folder: damage_manifest(folder, position_shapes=[[-1, 4, 5]] * 2),
        lambda folder: damage_manifest(folder, position_shapes="many"),
        lambda folder: damage_manifest(folder, dtype="object"),
        lambda folder: damage_manifest(folder, position_shapes=[[10**30, 4, 5]] * 2),
        lambda folder: damage_manifest(folder, position_shapes=[[3, 4, 5]] * 3),
        lambda folder: os.truncate(folder / "pos_0.dat", 7),
        lambda folder: os.truncate(folder / "progress.bin", 70),
    ],
    ids=[
        "binary",
        "cut",
        "no array",
        "negative",
        "no shapes",
        "objects",
        "huge",
        "too many",
        "short array",
        "short progress",
    ],
)
def test_info_of_a_damaged_dataset_is_one_line_and_fails(dataset, damage):
    damage(dataset)
    out = run("info", dataset)
    assert out.returncode == 1
    one_line(out.stderr)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes in folders here")
@pytest.mark.parametrize("name", ["manifest.json", "progress.bin", "frame_metadata.jsonl"])
def test_info_does_not_wait_for_a_pipe(dataset, name):
    (dataset / name).unlink()
    os.mkfifo(dataset / name)
    out = run("info", dataset)
    assert out.returncode == 1
    assert "regular" in one_line(out.stderr)


def test_info_prints_nothing_that_a_terminal_would_obey(dataset, capsys):
    damage_manifest(dataset, version="1\x1b[31m\n2", global_metadata={"a\x07b": {}})
    assert main(["info", str(dataset)]) == 0
    out = capsys.readouterr().out
    assert "1?[31m?2" in out
    assert "a?b" in out


# ------------------------------------------------------------------ demo


def test_demo_records_the_camera_and_says_what_it_did(tmp_path):
    out = run("demo", "--out", tmp_path / "run1", "--frames", "25")
    assert out.returncode == 0, out.stderr
    summary = [line for line in out.stdout.splitlines() if "recording" not in line]
    names = [line[:15].strip() for line in summary]
    assert names == ["frames", "rate", "append", "dataset", "contact sheet"]
    assert "25, all read back equal" in summary[0]
    assert {path.name for path in tmp_path.iterdir()} == {"run1", "run1.png"}
    assert str(tmp_path / "run1") in summary[3]
    assert "t=25, y=512, x=512" in run("info", tmp_path / "run1").stdout


def test_demo_in_memory_leaves_only_the_contact_sheet(tmp_path):
    out = run("demo", "--out", tmp_path / "new" / "run1", "--frames", "5", "--memory")
    assert out.returncode == 0, out.stderr
    assert "in memory" in out.stdout
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["run1.png"]


def test_demo_into_an_existing_folder_is_one_line_and_fails(tmp_path):
    out = run("demo", "--out", tmp_path, "--frames", "5")
    assert out.returncode == 1
    assert "--out" in one_line(out.stderr)
    assert list(tmp_path.iterdir()) == []


def test_demo_overwrites_no_contact_sheet(tmp_path):
    (tmp_path / "run1.png").write_text("precious")
    out = run("demo", "--out", tmp_path / "run1", "--frames", "5")
    assert out.returncode == 1
    assert "contact sheet" in one_line(out.stderr)
    assert (tmp_path / "run1.png").read_text() == "precious"
    assert [path.name for path in tmp_path.iterdir()] == ["run1.png"]


@pytest.mark.parametrize("module", ["rich", "pymmcore", "mm_test_adapters", "PIL"])
def test_demo_without_its_extra_says_what_to_install(tmp_path, module):
    code = f"""if True:
        import sys
        sys.modules[{module!r}] = None  # as if it were not installed
        from scratchwriter.cli import main
        sys.exit(main())"""
    out = run("demo", "--out", tmp_path / "run1", "--frames", "3", code=code)
    assert out.returncode == 1
    assert "pip install 'scratchwriter[demo]'" in one_line(out.stderr)
    assert list(tmp_path.iterdir()) == []


def test_the_commands_need_no_extra_until_the_demo_runs(dataset):
    code = """if True:
        import sys
        for name in ("rich", "pymmcore", "mm_test_adapters", "PIL", "ome_writers"):
            sys.modules[name] = None
        from scratchwriter.cli import main
        sys.exit(main())"""
    out = run("info", dataset, code=code)
    assert (out.returncode, out.stderr) == (0, "")


# ------------------------------------------------------------------- for other programs


def as_json(capsys, *args):
    status = main([*map(str, args), "--json"])
    return status, json.loads(capsys.readouterr().out)


def test_info_as_json_has_what_a_program_may_want(dataset, capsys):
    status, told = as_json(capsys, "info", dataset)
    with open_scratch(dataset) as opened:
        assert status == 0
        assert told["state"] == "closed"
        assert told["shapes"] == [list(array.shape) for array in opened.arrays]
        assert told["frames_written"] == opened.frames_written
        assert told["dims"][-2:] == ["y", "x"]
        assert told["writer"] == "scratchwriter"


def test_verify_as_json_has_faults_and_the_exit_status(dataset, capsys):
    status, told = as_json(capsys, "verify", dataset)
    assert (status, told["faults"]) == (0, [])
    (dataset / "frame_metadata.jsonl").write_text('{"_pos": 0}\n')
    status, told = as_json(capsys, "verify", dataset)
    assert status == 1
    assert "frame_metadata.jsonl" in told["faults"][0]


def test_recover_and_clean_as_json_tell_what_was_done(dataset, tmp_path, capsys):
    assert as_json(capsys, "recover", dataset) == (0, {"path": str(dataset), "done": []})
    assert as_json(capsys, "clean", tmp_path) == (0, {"removed": []})


COMMANDS = [
    *("demo", "info", "watch", "monitor", "preview", "report"),
    *("export", "verify", "recover", "clean"),
]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(command, capsys):
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    assert f"example: scratchwriter {command} " in capsys.readouterr().out


def test_the_help_names_all_commands_and_the_exit_status(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    told = capsys.readouterr().out
    assert "exit status" in told
    assert all(command in told for command in COMMANDS)


def test_a_shell_completes_commands_and_options(tmp_path, capsys):
    pytest.importorskip("shtab")
    with pytest.raises(SystemExit) as ended:
        main(["--print-completion", "bash"])
    assert ended.value.code == 0
    script = tmp_path / "completion"
    script.write_text(capsys.readouterr().out)
    typed = f"""
source {script}
COMP_WORDS=(scratchwriter {{}}) COMP_CWORD={{}}
$(complete -p scratchwriter | sed 's/.*-F \\([^ ]*\\) .*/\\1/')
echo "${{{{COMPREPLY[@]}}}}"
"""
    for words, number, expected in (("ver", 1, "verify"), ("info --js", 2, "--json")):
        command = ["bash", "-c", typed.format(words, number)]
        ended = subprocess.run(command, capture_output=True, text=True, check=True)
        assert ended.stdout.split() == [expected], ended.stderr


def test_completion_without_shtab_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setattr("scratchwriter.cli.find_spec", lambda name: None)
    with pytest.raises(SystemExit) as ended:
        main(["--print-completion", "bash"])
    assert ended.value.code == 2
    assert "pip install shtab" in capsys.readouterr().err
