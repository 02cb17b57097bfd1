"""The commands: `scratchwriter demo` and `scratchwriter info`, as a shell runs them."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import ome_writers
import pytest

import scratchwriter
from marks import needs_direct_writes
from scratchwriter import ScratchFormat, create_stream, open_scratch
from scratchwriter._showing import disk
from scratchwriter._writing import policy
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
    [
        [],
        ["nonsense"],
        ["info"],
        ["demo", "--frames", "0"],
        ["demo", "--frames", "a"],
        ["disk"],
    ],
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
        "written": open_scratch(dataset).disk_io,
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


KILLED_THEIRS = """
    import os, numpy as np, ome_writers
    stream = ome_writers.create_stream(ome_writers.AcquisitionSettings(
        root_path="theirs", dtype="uint8", format="scratch",
        dimensions=ome_writers.dims_from_standard_axes({"t": %s, "y": 4, "x": 5}),
    ))
    for i in range(3):
        stream.append(np.full((4, 5), i, "uint8"))
    os._exit(9)
"""


@pytest.mark.filterwarnings("ignore:.*did not close this dataset:UserWarning")
@pytest.mark.parametrize(
    ("length", "state"), [(None, "not closed"), (6, "closed or killed")]
)
def test_info_and_verify_say_that_nobody_counted_the_frames_of_a_killed_ome_writers(
    tmp_path, capsys, length, state
):
    program = [sys.executable, "-c", textwrap.dedent(KILLED_THEIRS % length)]
    assert subprocess.run(program, cwd=tmp_path).returncode == 9
    assert main(["info", str(tmp_path / "theirs")]) == 0
    out = capsys.readouterr().out
    assert re.search(rf"^state +{state}", out, re.MULTILINE)
    assert re.search(
        r"^frames +not known: .*does not record how many came", out, re.MULTILINE
    )
    assert main(["verify", str(tmp_path / "theirs")]) == (length is None)
    out = capsys.readouterr().out
    assert f"theirs: {state}" in out
    assert "frames that came: ome-writers wrote it, which does not record how many" in out


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


# ------------------------------------------------------------------ disk


@pytest.fixture
def little_is_written(monkeypatch):
    """A measurement of 48 MB."""
    monkeypatch.setattr(policy, "_PIECE_NBYTES", 1 << 20)
    monkeypatch.setattr(disk, "_STAGING_NBYTES", 8 << 20)
    monkeypatch.setattr(disk, "_LEAST_NBYTES", 1)
    monkeypatch.setattr(disk, "_MOST_NBYTES", 48 << 20)
    monkeypatch.setattr(disk, "_LOOK_S", 0)


@needs_direct_writes
def test_disk_tells_what_it_takes_and_leaves_nothing(tmp_path, little_is_written, capsys):
    assert main(["disk", str(tmp_path)]) == 0
    told = capsys.readouterr()
    assert told.err == ""
    assert str(tmp_path) in told.out
    assert "it takes " in told.out
    assert "2304 x 2304" in told.out
    assert all(len(line) <= 80 or str(tmp_path) in line for line in told.out.splitlines())
    assert list(tmp_path.iterdir()) == []


@needs_direct_writes
def test_disk_as_json_has_its_rate_and_the_cameras(tmp_path, little_is_written, capsys):
    status, told = as_json(capsys, "disk", tmp_path)
    assert status == 0
    assert told["path"] == str(tmp_path)
    assert 0 < told["slowest_nbytes_per_s"] <= told["nbytes_per_s"]
    rates = [camera["frames_per_s"] for camera in told["cameras"]]
    assert rates == sorted(rates, reverse=True)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def interrupts():
    """SIGINT as in a terminal; a program in the background ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@needs_direct_writes
def test_an_interrupt_ends_disk_and_leaves_nothing(
    tmp_path, little_is_written, interrupts, monkeypatch, capsys
):
    monkeypatch.setattr(
        "scratchwriter.cli._show_measuring",
        lambda *_: signal.raise_signal(signal.SIGINT),
    )
    assert main(["disk", str(tmp_path)]) == 130
    assert capsys.readouterr().err == "scratchwriter: interrupted\n"
    assert list(tmp_path.iterdir()) == []


@needs_direct_writes
def test_a_killed_disk_is_cleaned_up_by_the_next_one(
    tmp_path, little_is_written, monkeypatch
):
    code = """if True:
        import os
        from pathlib import Path
        from scratchwriter._showing import disk
        disk.measure_disk(Path({!r}), on_sample=lambda *_: os._exit(9))"""
    command = [sys.executable, "-c", code.format(str(tmp_path))]
    assert subprocess.run(command, timeout=120).returncode == 9
    assert len(list(tmp_path.iterdir())) == 1
    assert main(["disk", str(tmp_path)]) == 0
    assert list(tmp_path.iterdir()) == []


@needs_direct_writes
def test_disk_shows_on_a_terminal_how_far_it_is(
    tmp_path, little_is_written, monkeypatch, capsys
):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert main(["disk", str(tmp_path)]) == 0
    told = capsys.readouterr().err
    assert " written" in told
    assert told.endswith("\r\x1b[K")  # nothing of it stays


def test_disk_refuses_what_is_no_folder(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    for name in ("file", "nothing"):
        assert main(["disk", str(tmp_path / name)]) == 1
        assert "does not exist" in one_line(capsys.readouterr().err)


def test_disk_refuses_a_folder_that_cannot_be_written_to(small_disk, capsys):
    remount = ["mount", "-o", "remount,ro", str(small_disk)]
    subprocess.run(remount, check=True)
    assert main(["disk", str(small_disk)]) == 1
    assert "cannot be written to" in one_line(capsys.readouterr().err)


def test_disk_refuses_what_takes_no_direct_writes_and_says_why(small_disk, capsys):
    assert main(["disk", str(small_disk)]) == 1
    told = one_line(capsys.readouterr().err)
    assert "not written directly: " in told
    assert "page cache" in told
    assert list(small_disk.iterdir()) == []


def test_disk_refuses_portable_regions(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SCRATCHWRITER_REGION", "portable")
    assert main(["disk", str(tmp_path)]) == 1
    assert "mapped by portable means" in one_line(capsys.readouterr().err)


@needs_direct_writes
def test_disk_refuses_too_little_room(tmp_path, monkeypatch, capsys):
    usage = shutil.disk_usage(tmp_path)._replace(free=(1 << 30) - 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    assert main(["disk", str(tmp_path)]) == 1
    assert "1.0 GB are free" in one_line(capsys.readouterr().err)
    assert list(tmp_path.iterdir()) == []


def samples(*moments):
    return [disk.Sample(*moment) for moment in moments]


def test_the_rate_of_a_disk_counts_from_the_first_frame_that_waited():
    rate = disk.make_disk_rate(
        samples(
            (10.0, 0, 0),
            (10.5, 900, 0),  # into what is staged, which is no rate of a disk
            (11.0, 1000, 1),
            (11.5, 1600, 2),
            (12.0, 2000, 3),
            (13.0, 2800, 4),
            (14.0, 4000, 5),
        ),
        most_staged_nbytes=4800,
    )
    assert not rate.is_least
    assert rate.measured_s == 3
    assert rate.nbytes_per_s == pytest.approx((1000, 800, 1200))
    assert rate.median_nbytes_per_s == pytest.approx(1000)
    assert rate.slowest_nbytes_per_s == pytest.approx(800)
    # 20 percent below the slowest second; twice that grows by 480 a second.
    assert rate.camera_nbytes_per_s == pytest.approx(640)
    assert rate.burst_nbytes_per_s == pytest.approx(1280)
    assert rate.burst_s == pytest.approx(10)
    assert rate.frames_per_s((4, 10)) == pytest.approx(8)


def test_a_disk_that_kept_up_takes_at_least_what_came():
    rate = disk.make_disk_rate(samples((0.0, 0, 0), (0.5, 400, 0), (1.0, 1000, 1)), 10**9)
    assert rate.is_least
    assert rate.nbytes_per_s == pytest.approx((1000,))
    assert any("at least 1,000 bytes/s" in line for line in shown(rate))


def shown(rate):
    return list(disk.disk_lines("/data", rate))


def test_what_is_shown_of_a_disk_has_two_digits_rounded_down():
    rate = disk.DiskRate((2.2e9, 2.0e9, 1.99e9), 3.0, False, 5 << 30)
    assert shown(rate) == [
        "disk       /data",
        "measured   for 3.0 s, by recording to it",
        "it takes   2.0 GB/s, 1.9 GB/s in the slowest second",
        "cameras    up to 1.5 GB/s, with a head-room of 20 percent",
        "bursts     up to 3.1 GB/s for 4.4 s: 5.3 GB may wait for it",
        "",
        "camera, 16 bit   frames/s",
        "64 x 64           190,000",
        "512 x 512           3,000",
        "1024 x 1024           750",
        "2048 x 2048           180",
        "2304 x 2304           140",
        "",
        "Many SSDs are slower after a minute: --seconds 120 measures that.",
    ]
    slow = disk.DiskRate((90e6,), 100.0, False, 5 << 30)
    assert shown(slow)[2] == "it takes   90.0 MB/s"
    assert shown(slow)[-1] == "2304 x 2304           6.7"


def test_a_disk_that_stalled_has_no_infinite_time():
    rate = disk.make_disk_rate(samples((0.0, 0, 0), (1.0, 0, 1), (2.0, 0, 2)), 10**9)
    assert all(len(line) <= 80 for line in shown(rate))


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


def test_copy_as_json_tells_what_was_made(dataset, tmp_path, capsys):
    made = tmp_path / "copy"
    status, told = as_json(capsys, "copy", dataset, made)
    assert (status, told) == (0, {"copied": str(made), "frames_written": 7})
    assert as_json(capsys, "verify", made) == (
        0,
        {
            "path": str(made),
            "state": "closed",
            "frames_written": 7,
            "missing": [],
            "faults": [],
        },
    )


def test_recover_and_clean_as_json_tell_what_was_done(dataset, tmp_path, capsys):
    assert as_json(capsys, "recover", dataset) == (0, {"path": str(dataset), "done": []})
    assert as_json(capsys, "clean", tmp_path) == (0, {"removed": []})


COMMANDS = [
    *("demo", "info", "watch", "monitor", "preview", "report"),
    *("export", "copy", "verify", "recover", "disk", "clean"),
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
