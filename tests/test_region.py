"""Regions: memory that grows, in memory and in files, and what the system tells."""

import errno
import os
import resource
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from scratchwriter._region import make_region, system
from scratchwriter._region.portable import PortableRegion

KINDS = ["portable"]
if sys.platform == "linux":
    from scratchwriter._region.mapped import MappedRegion

    KINDS.append("mapped")
U8 = np.dtype("uint8")


@pytest.fixture(params=KINDS)
def new(request):
    """Make a region of the kind."""
    if request.param == "portable":
        return lambda reserve_nbytes, path=None: PortableRegion(path)
    return MappedRegion


@pytest.fixture(params=["memory", "file"])
def path(request, tmp_path):
    return None if request.param == "memory" else tmp_path / "a.dat"


def poke(region, at, data):
    """Write as the core does: to an address."""
    import ctypes

    ctypes.memmove(region.address + at, data, len(data))


def test_a_new_region_is_zero(new, path):
    region = new(1 << 20, path)
    region.extend(10_000)
    assert region.nbytes == 10_000
    assert not region.array(U8, (10_000,)).any()


def test_what_was_written_stays_when_it_grows(new, path):
    region = new(1 << 22, path)
    region.allocate(0, 5000)
    poke(region, 4000, b"hello")
    region.allocate(5000, 3_000_000)
    poke(region, 2_999_990, b"world")
    region.extend(4_000_000)
    array = region.array(U8, (4_000_000,))
    assert bytes(array[4000:4005]) == b"hello"
    assert bytes(array[2_999_990:2_999_995]) == b"world"
    assert np.count_nonzero(array) == 10


def test_a_file_holds_what_is_written_through_the_address(new, tmp_path):
    region = new(1 << 20, tmp_path / "a.dat")
    region.allocate(0, 8192)
    poke(region, 8000, b"hello")
    assert (tmp_path / "a.dat").read_bytes()[8000:8005] == b"hello"
    assert (tmp_path / "a.dat").stat().st_size == 8192


def test_allocated_bytes_have_blocks_and_skipped_ones_do_not(new, tmp_path):
    region = new(1 << 30, tmp_path / "a.dat")
    region.allocate(0, 4096)
    region.extend(100 << 20)
    region.allocate(100 << 20, (100 << 20) + 8192)
    status = (tmp_path / "a.dat").stat()
    assert status.st_size == (100 << 20) + 8192
    assert 3 * 4096 <= status.st_blocks * 512 < 1 << 20


def test_an_existing_file_is_not_touched(new, tmp_path):
    (tmp_path / "a.dat").write_text("precious")
    with pytest.raises(FileExistsError):
        new(1 << 20, tmp_path / "a.dat")
    assert (tmp_path / "a.dat").read_text() == "precious"


@pytest.mark.parametrize("start", [0, 5000, 8192, 1_000_003])
def test_going_on_in_a_file_keeps_the_bytes_and_save_completes_the_file(
    new, tmp_path, start
):
    region = new(1 << 22)
    region.allocate(0, max(start, 10))
    region.extend(1_500_000)
    before = np.arange(start, dtype="uint32").astype(U8)
    poke(region, 0, before.tobytes())
    held = region.array(U8, (start,))
    region.spill(tmp_path / "a.dat", start)
    assert region.path == tmp_path / "a.dat"
    np.testing.assert_array_equal(held, before)
    region.allocate(start, 2_000_000)
    poke(region, start, b"after")
    poke(region, 1_999_995, b"grown")
    np.testing.assert_array_equal(region.array(U8, (start,)), before)
    region.save()
    data = (tmp_path / "a.dat").read_bytes()
    assert data[:start] == before.tobytes()
    assert data[start : start + 5] == b"after"
    assert data[1_999_995:] == b"grown"


def test_saving_leaves_holes_where_nothing_was_written(new, tmp_path):
    region = new(1 << 28)
    region.extend(100 << 20)
    poke(region, 90 << 20, b"hello")
    region.spill(tmp_path / "a.dat", 100 << 20)
    region.save()
    with (tmp_path / "a.dat").open("rb") as file:
        file.seek(90 << 20)
        assert file.read(5) == b"hello"
    if type(region) is not PortableRegion:
        assert (tmp_path / "a.dat").stat().st_blocks * 512 <= 2 << 20


def test_a_file_in_the_way_leaves_the_region_in_memory(new, tmp_path):
    region = new(1 << 20)
    region.allocate(0, 5000)
    poke(region, 0, b"hello")
    (tmp_path / "a.dat").write_text("precious")
    with pytest.raises(FileExistsError):
        region.spill(tmp_path / "a.dat", 5000)
    assert region.path is None
    assert bytes(region.array(U8, (5,))) == b"hello"
    assert (tmp_path / "a.dat").read_text() == "precious"


@pytest.mark.parametrize(("start", "stop"), [(0, 100_000), (5000, 9001), (8192, 8193)])
def test_populating_changes_no_byte(new, path, start, stop):
    region = new(1 << 20, path)
    region.allocate(0, 100_000)
    data = np.arange(100_000, dtype="uint32").astype(U8)
    poke(region, 0, data.tobytes())
    region.populate(start, stop)
    np.testing.assert_array_equal(region.array(U8, (100_000,)), data)


@pytest.mark.parametrize("stop", [0, 100_001, 1 << 30])
def test_populating_ends_where_the_region_ends(new, path, stop):
    region = new(1 << 20, path)
    region.allocate(0, 100_000)
    region.populate(0, stop)
    assert region.nbytes == 100_000


def test_trim_gives_the_file_its_exact_size(new, tmp_path):
    region = new(1 << 20, tmp_path / "a.dat")
    region.allocate(0, 100_000)
    poke(region, 0, b"hello")
    region.trim(12_345)
    assert (tmp_path / "a.dat").stat().st_size == 12_345
    assert bytes(region.array(U8, (12_345,))[:5]) == b"hello"


def test_arrays_are_read_only_and_cannot_be_made_writable(new, path):
    region = new(1 << 20, path)
    region.extend(8192)
    array = region.array(np.dtype("uint16"), (2, 3))
    assert array.shape == (2, 3)
    with pytest.raises(ValueError, match="read-only"):
        array[0, 0] = 1
    with pytest.raises(ValueError, match="WRITEABLE"):
        array.flags.writeable = True


def test_an_array_outlives_its_region(new, path):
    region = new(1 << 20, path)
    region.allocate(0, 8192)
    poke(region, 0, b"hello")
    array = region.array(U8, (8192,))
    del region
    assert bytes(array[:5]) == b"hello"


@pytest.mark.skipif("mapped" not in KINDS, reason="no MappedRegion here")
class TestMapped:
    def test_it_never_moves(self, path):
        region = MappedRegion(1 << 30, path)
        address = region.address
        for stop in range(1 << 20, 1 << 24, 1 << 20):
            region.allocate(stop - (1 << 20), stop)
            assert region.address == address

    def test_an_array_from_before_it_went_on_in_a_file_sees_what_comes_after(
        self, tmp_path
    ):
        region = MappedRegion(1 << 20)
        region.allocate(0, 5000)
        region.extend(20_000)
        array = region.array(U8, (20_000,))
        region.spill(tmp_path / "a.dat", 5000)
        region.allocate(5000, 20_000)
        poke(region, 5000, b"hello")
        poke(region, 19_000, b"world")
        assert bytes(array[5000:5005]) == b"hello"
        assert bytes(array[19_000:19_005]) == b"world"

    @pytest.mark.skipif("LD_PRELOAD" in os.environ, reason="a sanitizer needs addresses")
    def test_reserved_addresses_cost_no_memory(self):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        regions = [MappedRegion(1 << 40) for _ in range(16)]
        after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        assert len(regions) == 16
        assert after - before < 20_000  # KiB

    @pytest.mark.parametrize("nbytes", [1 << 47, 1 << 73, 0, -1])
    def test_sizes_that_are_no_addresses_are_a_memory_error(self, nbytes):
        with pytest.raises(MemoryError):
            MappedRegion(nbytes)

    def test_it_cannot_outgrow_its_reserve(self, path):
        region = MappedRegion(8192, path)
        for grow in (lambda: region.extend(8193), lambda: region.allocate(0, 8193)):
            with pytest.raises(MemoryError, match="8193"):
                grow()
        region.allocate(0, 8192)

    def test_files_are_not_kept_open(self, tmp_path):
        regions = [MappedRegion(1 << 20, tmp_path / f"{i}.dat") for i in range(50)]
        for region in regions:
            region.allocate(0, 8192)
        # Others may be opened and closed meanwhile, by threads and by what is collected.
        for fd in Path("/proc/self/fd").iterdir():
            with suppress(FileNotFoundError):
                assert tmp_path not in fd.readlink().parents

    def test_what_an_array_is_made_of_is_read_only_and_stays_when_the_rest_ends(self):
        region = MappedRegion(1 << 30)
        region.extend(1 << 20)
        array = region.array(np.dtype("uint8"), (100,), 10)
        data = memoryview(array.base)
        assert (data.readonly, data.nbytes) == (True, 100)
        region.end(110)
        assert bytes(data) == bytes(100)
        with pytest.raises(ValueError, match="111 bytes of 110"):
            region.array(np.dtype("uint8"), (101,), 10)
        with pytest.raises(TypeError):
            memoryview(region)

    def test_a_spill_that_is_refused_changes_nothing_and_the_next_one_works(self, tmp_path):
        region = MappedRegion(1 << 20)
        region.extend(10_000)
        poke(region, 0, b"hello")
        (tmp_path / "there").touch()
        with pytest.raises(FileExistsError):
            region.spill(tmp_path / "there", 5000)
        assert (region.path, region.memory_nbytes) == (None, 10_000)
        region.spill(tmp_path / "a.dat", 5000)
        region.allocate(5000, 20_000)
        assert (region.path, region.memory_nbytes) == (tmp_path / "a.dat", 4096)
        assert bytes(region.array(np.dtype("uint8"), (5,))) == b"hello"


def test_a_full_disk_is_an_error_and_leaves_the_file_as_it_was(new, small_disk):
    region = new(1 << 30, small_disk / "a.dat")
    region.allocate(0, 100_000)
    poke(region, 0, b"hello")
    with pytest.raises(OSError, match="No space") as error:
        region.allocate(100_000, 100 << 20)
    assert error.value.errno == errno.ENOSPC
    assert error.value.filename == str(small_disk / "a.dat")
    assert bytes(region.array(U8, (100_000,))[:5]) == b"hello"
    region.allocate(100_000, 200_000)
    poke(region, 199_995, b"world")


def test_what_cannot_be_saved_stays_in_memory(new, small_disk):
    region = new(1 << 30)
    region.allocate(0, 50 << 20)
    poke(region, 0, b"x" * (50 << 20))
    with pytest.raises(OSError, match="No space"):
        region.spill(small_disk / "a.dat", 50 << 20)
        region.save()
    assert region.array(U8, (50 << 20,)).min() == ord("x")


def test_the_kind_can_be_chosen_by_environment(monkeypatch):
    monkeypatch.setenv("SCRATCHWRITER_REGION", "portable")
    assert type(make_region(8192)) is PortableRegion
    monkeypatch.setenv("SCRATCHWRITER_REGION", "nonsense")
    with pytest.raises(ValueError, match="nonsense"):
        make_region(8192)


class TestSystem:
    """Read from a copy of /proc and /sys that the test writes."""

    @pytest.fixture(autouse=True)
    def fake(self, tmp_path, monkeypatch):
        monkeypatch.setattr(system, "_PROC", tmp_path / "proc")
        monkeypatch.setattr(system, "_CGROUP", tmp_path / "cgroup")
        (tmp_path / "proc" / "self").mkdir(parents=True)
        (tmp_path / "proc" / "meminfo").write_text("MemFree: 1 kB\nMemAvailable: 1000 kB\n")
        self.tmp_path = tmp_path

    def cgroup(self, line, files):
        (self.tmp_path / "proc" / "self" / "cgroup").write_text(line)
        for name, text in files.items():
            path = self.tmp_path / "cgroup" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    def test_available_memory_is_the_machines(self):
        assert system.available_memory_nbytes() == 1_024_000

    def test_a_control_group_may_leave_less(self):
        self.cgroup(
            "0::/a/b\n",
            {
                "a/b/memory.max": "max\n",
                "a/b/memory.current": "7\n",
                "a/memory.max": "100000\n",
                "a/memory.current": "60000\n",
                "a/memory.stat": "anon 5\ninactive_file 10000\n",
            },
        )
        assert system.available_memory_nbytes() == 50_000

    def test_a_control_group_of_version_1_may_leave_less(self):
        self.cgroup(
            "4:cpu:/\n5:memory:/a\n",
            {
                "memory/a/memory.limit_in_bytes": "100000\n",
                "memory/a/memory.usage_in_bytes": "100001\n",
            },
        )
        assert system.available_memory_nbytes() == 0

    def test_a_folder_in_memory_is_known_by_its_mount(self):
        (self.tmp_path / "proc" / "self" / "mounts").write_text(
            "/dev/vda / ext4 rw 0 0\n"
            f"tmpfs {self.tmp_path}/ram\\040disk tmpfs rw 0 0\n"
            f"/dev/vdb {self.tmp_path}/ram\\040disk/inner xfs rw 0 0\n"
        )
        assert system.is_ram_backed(self.tmp_path / "ram disk" / "x")
        assert not system.is_ram_backed(self.tmp_path / "ram disk" / "inner" / "x")
        assert not system.is_ram_backed(self.tmp_path)


def test_a_lock_is_for_one_and_ends_with_its_file(tmp_path):
    with (tmp_path / "a").open("wb") as one, (tmp_path / "a").open("rb") as other:
        assert system.lock_file(one.fileno())
        assert not system.lock_file(other.fileno())
        one.close()
        assert system.lock_file(other.fileno())


def test_a_file_system_without_locks_says_so(tmp_path, monkeypatch):
    def flock(fd, operation):
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr(system.fcntl, "flock", flock)
    with (tmp_path / "a").open("wb") as one:
        assert system.lock_file(one.fileno()) is None


@pytest.mark.skipif(not hasattr(resource, "RLIMIT_AS"), reason="no such limit here")
@pytest.mark.skipif("LD_PRELOAD" in os.environ, reason="a sanitizer needs addresses")
def test_a_limit_of_addresses_is_known():
    code = (
        "import resource; resource.setrlimit(resource.RLIMIT_AS, (8 << 30, -1));"
        "from scratchwriter._region.system import addresses_nbytes;"
        "print(addresses_nbytes())"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert out.stdout == f"{8 << 30}\n"
    assert system.addresses_nbytes() in (None, resource.getrlimit(resource.RLIMIT_AS)[0])


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux")
def test_the_system_tells_its_available_memory():
    available = system.available_memory_nbytes()
    assert available is not None
    assert 1 << 20 < available <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGESIZE")
