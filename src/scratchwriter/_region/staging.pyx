"""Memory under the newest bytes of arrays in files, that is used again and again.

The page cache has a price: each page that is new to it is zeroed, written back, and given
back. At 1 GB/s that took both cores of a machine (measured), and at times a frame waited
for 20 ms. So the bytes of an array that are being written are not in the page cache of its
file, but in a piece of a small file, staging.bin, that is mapped over the array's own
addresses. When frames have filled it, it is written into the array's file directly
(O_DIRECT). It stays where it is until its slot is needed again; then the file is mapped in
its place. A reader of the array sees no difference.

    0 ........ in the file ........ | ...... staged ...... cursor ... ready ... | reserved

Kills: a slot is a part of a file, so what was stored there outlives the process. The table
at the beginning of staging.bin says which bytes of which array each slot holds. A slot is
given other bytes only when those before are in the array's file, and is zeroed first: bytes
without a frame are zero. So what no slot holds is in the file. Each slot says where the one
before it ends, so that a reader notices if the table is damaged.

Bursts: if no slot is free, more are made; when there are enough, the pages of the file
itself take the frames, and are written back. What was not needed for some seconds is given
back to the system. When too many of those wait, `stage` returns
EAGAIN: the camera is faster than the disk.

Both ways in one file: the page cache of a file can have huge pages. What is stored into one
makes all of it dirty, and it is written as a whole. So no huge page may hold bytes that are
written directly and others that are not: pieces are whole huge pages, or none is in the
page cache.

Locks: `lock` guards the list of pieces; it is held for a moment, never for a system call.
`stage` is called by one thread at a time, and so are `write_out` and what follows it.
"""

import os
from contextlib import suppress

cimport cython
from posix.mman cimport (
    MADV_DONTNEED,
    MAP_ANONYMOUS,
    MAP_FAILED,
    MAP_FIXED,
    MAP_NORESERVE,
    MAP_PRIVATE,
    MAP_SHARED,
    PROT_NONE,
    PROT_READ,
    PROT_WRITE,
    madvise,
    mmap,
    munmap,
)
from posix.fcntl cimport O_CREAT, O_DIRECTORY, O_EXCL, O_RDWR, open, openat
from posix.unistd cimport close

from cpython.exc cimport PyErr_CheckSignals
from libc.errno cimport EAGAIN, EFAULT, EINVAL, EIO, ENOSPC, EOPNOTSUPP, errno
from libc.stdint cimport INT64_MAX, int64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset

from scratchwriter._region.mapped cimport (
    MappedRegion,
    Mapping,
    open_mapped,
    populate,
    write_zeros,
)
from scratchwriter._region.platform cimport (
    sw_load_acquire,
    sw_mutex_destroy,
    sw_mutex_init,
    sw_mutex_lock,
    sw_mutex_unlock,
    sw_pwrite,
    sw_store_release,
    sw_write_back,
)

from scratchwriter.errors import disk_error

cdef extern from * nogil:
    """
    #ifndef _GNU_SOURCE
    #define _GNU_SOURCE
    #endif
    #include <fcntl.h>
    #ifndef O_DIRECT
    #define O_DIRECT 040000
    #endif
    """
    int O_DIRECT, O_CLOEXEC, O_PATH
    int unlinkat(int folder, const char* name, int flags)
    int MADV_POPULATE_WRITE "23"
    int MADV_HUGEPAGE "14"
    int FALLOC_FL_PUNCH_HOLE, FALLOC_FL_KEEP_SIZE
    int fallocate(int fd, int mode, int64_t offset, int64_t nbytes)
    int posix_fadvise(int fd, int64_t offset, int64_t nbytes, int advice)
    int POSIX_FADV_DONTNEED

cdef int64_t BLOCK_NBYTES = 4096       # direct writes are of whole ones
# Before the slots: the table. A huge page, so that slots begin at one.
cdef int64_t TABLE_NBYTES = 2 << 20
cdef int64_t HUGE_PAGE_NBYTES = 2 << 20  # of the page cache, the largest ones
# Of the table, for other processes: 64 bytes, then a `Slot` for each slot; then two numbers
# for each position.
cdef int64_t HEADER_NBYTES = 64
cdef int64_t IN_FILE_OFFSET = 1 << 20
cdef int64_t STAGED_OFFSET = 3 << 19
cdef int64_t MOST_PIECES = 1 << 14


cdef int stage(
    Staging* staging, int64_t position, int64_t start, int64_t stop
) noexcept nogil:
    """Make bytes of an array, a piece or a part of one, ready for stores without a fault.

    They have blocks. EAGAIN: when the disk has taken more. If it fails, another try may
    succeed.
    """
    cdef int64_t slot
    cdef int code = _release_written(staging)
    if code:
        return code
    if staging.num_pieces == staging.capacity:
        return EAGAIN
    slot = _take_slot(staging)
    if slot >= 0:
        code = _map_slot(staging, slot, position, start, stop)
        if code:
            _free_slot(staging, slot)
    elif may_be_cached(staging):
        code = _populate_file(staging, position, start, stop)
    elif staging.num_slots == 0:  # there will be none
        code = sw_load_acquire(&staging.refused_code)
    else:
        code = EAGAIN
    if code == 0:
        _add_piece(staging, position, start, stop, slot)
    return code


cdef int _populate_file(
    Staging* staging, int64_t position, int64_t start, int64_t stop
) noexcept nogil:
    """Make pages of an array's file ready, by faults.

    A `write` of zeros waits for the direct writes of the same file, which hold the lock of
    its inode (measured: 8 to 25 ms for a piece, instead of 2).
    """
    cdef Mapping* mapping = staging.mappings[position]
    madvise(mapping.base + start, stop - start, MADV_HUGEPAGE)
    return ENOSPC if populate(mapping, start, stop) == EFAULT else 0


cdef bint may_be_cached(Staging* staging) noexcept nogil:
    """Tell whether pieces may be in the page cache while others are not."""
    return staging.piece_nbytes % HUGE_PAGE_NBYTES == 0


cdef void _add_piece(
    Staging* staging, int64_t position, int64_t start, int64_t stop, int64_t slot
) noexcept nogil:
    cdef Piece* piece = staging.pieces
    staging.num_pieces += 1
    staging.last_serial += 1
    sw_mutex_lock(&staging.lock)
    while piece.serial:  # there are fewer than the capacity
        piece += 1
    piece.position, piece.start, piece.stop = position, start, stop
    piece.slot, piece.written_nbytes, piece.is_written = slot, start, False
    piece.serial = staging.last_serial
    staging.num_used = max(staging.num_used, piece - staging.pieces + 1)
    _show_in_file(staging, position)
    sw_mutex_unlock(&staging.lock)


cdef bint _waits_in_slot(const Piece* piece) noexcept nogil:
    return piece.serial > 0 and piece.slot >= 0 and not piece.is_written


cdef void _show_in_file(Staging* staging, int64_t position) noexcept nogil:
    """Let others know how far a position is in its file. With `lock` held."""
    cdef int64_t i, nbytes = INT64_MAX  # all that is not staged is
    cdef Piece* piece
    for i in range(staging.num_used):
        piece = &staging.pieces[i]
        if piece.position == position and _waits_in_slot(piece):
            nbytes = min(nbytes, piece.written_nbytes)
    staging.in_file_nbytes[position] = nbytes
    if staging.file >= 0:
        sw_store_release(&staging.shown_in_file_nbytes[position], nbytes)


cdef int _release_written(Staging* staging) noexcept nogil:
    """Release pieces that are in their files, the oldest first, until a slot is free."""
    cdef Piece* piece
    cdef int code
    while staging.num_free == 0 or staging.num_pieces == staging.capacity:
        piece = _oldest_written(staging)
        if piece == NULL:
            break
        code = _map_file(staging, piece)
        if code:
            return code  # what is there is still mapped
        if piece.slot >= 0:
            _free_slot(staging, piece.slot)
        staging.num_pieces -= 1
        sw_mutex_lock(&staging.lock)
        piece.serial = 0
        while staging.num_used and staging.pieces[staging.num_used - 1].serial == 0:
            staging.num_used -= 1
        sw_mutex_unlock(&staging.lock)
    return 0


cdef Piece* _oldest_written(Staging* staging) noexcept nogil:
    """Return a piece of which others know that it is in its file."""
    cdef Piece* found = NULL
    cdef Piece* piece
    cdef int64_t i
    sw_mutex_lock(&staging.lock)
    for i in range(staging.num_used):
        piece = &staging.pieces[i]
        if (
            piece.serial and piece.is_written
            and piece.stop <= staging.in_file_nbytes[piece.position]
            and (found == NULL or piece.serial < found.serial)
        ):
            found = piece
    sw_mutex_unlock(&staging.lock)
    return found


cdef int64_t _take_slot(Staging* staging) noexcept nogil:
    """Return a slot of zeros, or -1."""
    cdef int64_t slot = -1
    cdef int code
    if staging.num_free:
        staging.num_free -= 1
        slot = staging.free_slots[staging.num_free]
        _note_slot(staging, slot, -1, 0, 0, 0)
        memset(staging.base + slot * staging.piece_nbytes, 0, staging.piece_nbytes)
    elif staging.num_bare:
        code = _make_slot(staging, staging.bare_slots[staging.num_bare - 1])
        if code == 0:
            staging.num_bare -= 1
            slot = staging.bare_slots[staging.num_bare]
            staging.num_slots += 1
        elif not sw_load_acquire(&staging.refused_code):
            sw_store_release(&staging.refused_code, code)
    return slot


cdef int _map_slot(
    Staging* staging, int64_t slot, int64_t position, int64_t start, int64_t stop
) noexcept nogil:
    """Map a slot over bytes of an array."""
    cdef Mapping* mapping = staging.mappings[position]
    cdef int code
    _note_slot(staging, slot, position, start, stop, staging.staged_nbytes[position])
    if mmap(
        mapping.base + start, stop - start, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED,
        staging.file, TABLE_NBYTES + slot * staging.piece_nbytes,
    ) == MAP_FAILED:
        code = errno
        _note_slot(staging, slot, -1, 0, 0, 0)
        return code
    staging.staged_nbytes[position] = stop
    sw_store_release(&staging.shown_staged_nbytes[position], stop)
    madvise(mapping.base + start, stop - start, MADV_HUGEPAGE)
    populate(mapping, start, stop)
    return 0


cdef void _free_slot(Staging* staging, int64_t slot) noexcept nogil:
    staging.free_slots[staging.num_free] = slot
    staging.num_free += 1


cdef int _make_slot(Staging* staging, int64_t slot) noexcept nogil:
    """Give staging.bin the blocks and the pages of a slot."""
    cdef int64_t nbytes = staging.piece_nbytes
    cdef int64_t start = TABLE_NBYTES + slot * nbytes
    cdef char* base = staging.base + slot * nbytes
    cdef int code = 0 if staging.file >= 0 else _make_file(staging)
    if code:
        return code
    if fallocate(staging.file, 0, start, nbytes) != 0:
        return errno
    code = write_zeros(staging.file, start, start + nbytes)  # in huge pages, if it has any
    if code:
        return code
    if mmap(
        base, nbytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, staging.file, start
    ) == MAP_FAILED:
        return errno
    madvise(base, nbytes, MADV_HUGEPAGE)
    madvise(base, nbytes, MADV_POPULATE_WRITE)
    return 0


cdef int64_t waiting_slots(Staging* staging) noexcept nogil:
    cdef int64_t i, count = 0
    sw_mutex_lock(&staging.lock)
    for i in range(staging.num_used):
        count += _waits_in_slot(&staging.pieces[i])
    sw_mutex_unlock(&staging.lock)
    return count


cdef void give_back(Staging* staging, int64_t most_slots) noexcept nogil:
    cdef int64_t slot
    # One is left: without any, none could be made.
    if staging.keeps_slots or staging.num_slots <= max(most_slots, 1):
        return
    if _release_written(staging) != 0 or staging.num_free == 0:
        return
    slot = staging.free_slots[staging.num_free - 1]
    # First: so nobody takes the zeros for what it held.
    _note_slot(staging, slot, -1, 0, 0, 0)
    # The file stays as long as it is: others have it mapped. What fails may have been done
    # in part: the slot has to be made again in any case.
    staging.keeps_slots = fallocate(
        staging.file, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
        TABLE_NBYTES + slot * staging.piece_nbytes, staging.piece_nbytes,
    ) != 0 and errno == EOPNOTSUPP
    staging.num_free -= 1
    staging.num_slots -= 1
    staging.bare_slots[staging.num_bare] = slot
    staging.num_bare += 1


cdef int _make_file(Staging* staging) noexcept nogil:
    """Make staging.bin with its table."""
    cdef char* header = staging.base - TABLE_NBYTES
    cdef int64_t i
    cdef int code
    cdef int fd = openat(
        staging.folder, staging.name, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0o666
    )
    if fd < 0:
        return errno
    if fallocate(fd, 0, 0, TABLE_NBYTES) == 0 and mmap(
        header, TABLE_NBYTES, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0
    ) != MAP_FAILED:
        memcpy(header, b"staging1", 8)
        (<int64_t*>header)[1] = staging.piece_nbytes
        (<int64_t*>header)[2] = staging.most_slots
        staging.table = <Slot*>(header + HEADER_NBYTES)
        staging.shown_in_file_nbytes = <int64_t*>(header + IN_FILE_OFFSET)
        staging.shown_staged_nbytes = <int64_t*>(header + STAGED_OFFSET)
        sw_mutex_lock(&staging.lock)
        staging.file = fd
        for i in range(staging.num_positions):
            _show_in_file(staging, i)
        sw_mutex_unlock(&staging.lock)
        return 0
    code = errno
    unlinkat(staging.folder, staging.name, 0)
    close(fd)
    return code


cdef void _note_slot(
    Staging* staging, int64_t slot, int64_t position, int64_t start, int64_t stop,
    int64_t after,
) noexcept nogil:
    """Let other processes know what a slot holds from now on."""
    cdef Slot* entry = &staging.table[slot]
    sw_store_release(&entry.generation, entry.generation | 1)
    sw_store_release(&entry.position, position)
    sw_store_release(&entry.start, start)
    sw_store_release(&entry.stop, stop)
    sw_store_release(&entry.after, after)
    sw_store_release(&entry.generation, entry.generation + 1)


cdef int _map_file(Staging* staging, Piece* piece) noexcept nogil:
    """Map the file of an array in place of a piece that is in it."""
    cdef char* base = staging.mappings[piece.position].base
    if mmap(
        base + piece.start, piece.stop - piece.start, PROT_READ | PROT_WRITE,
        MAP_SHARED | MAP_FIXED, staging.files[piece.position], piece.start,
    ) == MAP_FAILED:
        return errno
    return 0


cdef bint _copy_slot(Staging* staging, Piece* piece, int* code) noexcept nogil:
    """Map a copy of a slot in its place; return if it still had the piece.

    For a process in which it is not used: another one may use it again at any moment.
    """
    cdef Slot* entry = &staging.table[piece.slot]
    cdef char* base = staging.mappings[piece.position].base + piece.start
    cdef int64_t generation = sw_load_acquire(&entry.generation)
    if (
        generation % 2 or sw_load_acquire(&entry.position) != piece.position
        or sw_load_acquire(&entry.start) != piece.start
    ):
        return False
    if mmap(
        base, piece.stop - piece.start, PROT_READ | PROT_WRITE,
        MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0,
    ) == MAP_FAILED:
        code[0] = errno
        return True
    memcpy(base, staging.base + piece.slot * staging.piece_nbytes, piece.stop - piece.start)
    return sw_load_acquire(&entry.generation) == generation


cdef bint next_unwritten(Staging* staging, Piece* piece) noexcept nogil:
    cdef int64_t i, after = piece.serial
    cdef Piece* other
    cdef bint is_found = False
    sw_mutex_lock(&staging.lock)
    for i in range(staging.num_used):
        other = &staging.pieces[i]
        if other.serial > after and not other.is_written and (
            not is_found or other.serial < piece.serial
        ):
            piece[0], is_found = other[0], True
    sw_mutex_unlock(&staging.lock)
    return is_found


cdef int write_out(Staging* staging, Piece* piece, int64_t stop) noexcept nogil:
    """Bring a piece into its file, up to a byte of the array; `piece` is a copy.

    If that fails, what is in a slot stays there, to be tried again. What a device has
    refused is lost for it: that is noted, also if the page cache has taken it.
    """
    cdef int64_t i
    cdef int code = 0
    if piece.slot >= 0:
        code = _write_slot(staging, piece, stop)
    else:
        _write_back(staging, piece)
    if code:
        return code
    sw_mutex_lock(&staging.lock)
    for i in range(staging.num_used):
        if staging.pieces[i].serial == piece.serial:
            staging.pieces[i].written_nbytes = stop
            staging.pieces[i].is_written = stop == piece.stop
            _show_in_file(staging, piece.position)
    sw_mutex_unlock(&staging.lock)
    return 0


cdef void _note_lost(Staging* staging, int64_t position, int code) noexcept nogil:
    if not sw_load_acquire(&staging.lost_code):
        staging.lost_position = position
        sw_store_release(&staging.lost_code, code)


cdef int _write_slot(Staging* staging, Piece* piece, int64_t stop) noexcept nogil:
    """Write what is not in the file yet, with the rest of its first and last block.

    The rest of the last one is zeros, whatever a slot has there that somebody still fills.
    """
    cdef int64_t first = piece.written_nbytes // BLOCK_NBYTES * BLOCK_NBYTES
    cdef int64_t last = stop // BLOCK_NBYTES * BLOCK_NBYTES
    cdef char* data = staging.base + piece.slot * staging.piece_nbytes - piece.start
    cdef int code = 0
    cdef int fd = staging.files[piece.position]
    if last > first:
        code = sw_pwrite(fd, data + first, last - first, first)
    if code == 0 and stop > last:
        memset(staging.last_block, 0, BLOCK_NBYTES)
        memcpy(staging.last_block, data + last, stop - last)
        code = sw_pwrite(fd, staging.last_block, BLOCK_NBYTES, last)
    if code != EIO and code != EINVAL:
        return code
    # Now through the page cache. EIO: for those who read it as long as the machine runs.
    # EINVAL: a file may be limited to a size within its last block.
    fd = open_mapped(staging.mappings[piece.position], 0)
    if fd < 0:
        return code
    if sw_pwrite(fd, data + first, stop - first, first) == 0:
        if code == EIO:
            _note_lost(staging, piece.position, code)
        code = 0
    close(fd)
    return code


cdef void _write_back(Staging* staging, Piece* piece) noexcept nogil:
    """Have the pages of a piece written to the disk, and give them back."""
    cdef int fd = staging.files[piece.position]
    cdef int64_t nbytes = piece.stop - piece.start
    if sw_write_back(fd, piece.start, nbytes) != 0:
        _note_lost(staging, piece.position, errno)
        return  # the pages may be all that is left of it
    # They are read from the disk if anybody wants to see them again.
    madvise(staging.mappings[piece.position].base + piece.start, nbytes, MADV_DONTNEED)
    posix_fadvise(fd, piece.start, nbytes, POSIX_FADV_DONTNEED)


cdef int64_t frames_in_files(Staging* staging, int64_t cursor) noexcept nogil:
    cdef int64_t frames = max(cursor, staging.exact_frames)
    cdef int64_t i, own, visit = staging.visit_frames
    cdef Piece* piece
    sw_mutex_lock(&staging.lock)
    for i in range(staging.num_used):
        piece = &staging.pieces[i]
        if not _waits_in_slot(piece):
            continue
        # The first frame of the position that is not whole in the file, by its number.
        own = piece.written_nbytes // staging.frame_nbytes
        frames = min(
            frames,
            own // visit * visit * staging.num_positions + piece.position * visit
            + own % visit,
        )
    sw_mutex_unlock(&staging.lock)
    return frames


def layout():
    """Return what staging.bin has where; see `_files/layout.py`."""
    cdef Slot slot
    cdef char* start = <char*>&slot
    return {
        "header_nbytes": HEADER_NBYTES,
        "slots_nbytes": TABLE_NBYTES,
        "in_file_offset": IN_FILE_OFFSET,
        "staged_offset": STAGED_OFFSET,
        "most_positions": (STAGED_OFFSET - IN_FILE_OFFSET) // <int64_t>sizeof(int64_t),
        "most_slots": (IN_FILE_OFFSET - HEADER_NBYTES) // <int64_t>sizeof(Slot),
        "most_pieces": MOST_PIECES,
        "slot_nbytes": sizeof(Slot),
        "slot_offsets": {
            "generation": <char*>&slot.generation - start,
            "position": <char*>&slot.position - start,
            "start": <char*>&slot.start - start,
            "stop": <char*>&slot.stop - start,
            "after": <char*>&slot.after - start,
        },
    }


@cython.final
cdef class StagingFile:
    """See `staging.pyi`."""

    def __cinit__(self, path, list regions, plan, limits):
        cdef Staging* staging = &self.staging
        cdef int64_t i, n = len(regions)
        staging.file = staging.folder = -1
        sw_mutex_init(&staging.lock)
        self.path, self._regions = path, regions
        staging.num_positions = n
        staging.piece_nbytes = limits.piece_nbytes
        staging.most_slots = limits.most_slots
        staging.from_nbytes = limits.from_nbytes
        staging.keep_ns = limits.keep_ns
        staging.visit_frames, staging.frame_nbytes = plan.visit_frames, plan.frame_nbytes
        staging.most_slots = min(staging.most_slots, MOST_PIECES)
        staging.capacity = min(
            staging.most_slots + <int64_t>limits.most_cached_pieces, MOST_PIECES
        )
        staging.mappings = <Mapping**>calloc(n, sizeof(Mapping*))
        staging.files = <int*>calloc(n, sizeof(int))
        for i in range(n if staging.files != NULL else 0):
            staging.files[i] = -1  # first: what follows may fail
        staging.in_file_nbytes = <int64_t*>calloc(n, sizeof(int64_t))
        staging.staged_nbytes = <int64_t*>calloc(n, sizeof(int64_t))
        staging.pieces = <Piece*>calloc(staging.capacity, sizeof(Piece))
        # As direct writes need it, which begin at a boundary.
        staging.blocks = <char*>calloc(2, BLOCK_NBYTES)
        staging.last_block = staging.blocks + BLOCK_NBYTES
        staging.last_block -= <int64_t>staging.last_block % BLOCK_NBYTES
        staging.free_slots = <int64_t*>calloc(staging.most_slots, sizeof(int64_t))
        staging.bare_slots = <int64_t*>calloc(staging.most_slots, sizeof(int64_t))
        if (
            staging.mappings == NULL or staging.files == NULL or staging.pieces == NULL
            or staging.free_slots == NULL or staging.bare_slots == NULL
            or staging.in_file_nbytes == NULL or staging.staged_nbytes == NULL
            or staging.blocks == NULL
        ):
            raise MemoryError(f"tables of {staging.capacity} pieces")
        while staging.num_bare < staging.most_slots:  # the first ones are taken first
            staging.bare_slots[staging.num_bare] = (
                staging.most_slots - 1 - staging.num_bare
            )
            staging.num_bare += 1
        # The file itself is made when it is needed.
        self._encoded_name = os.fsencode(path.name)
        staging.name = self._encoded_name
        # Before the files: these are checked.
        staging.folder = open(os.fsencode(path.parent), O_PATH | O_DIRECTORY | O_CLOEXEC)
        if staging.folder < 0:
            raise disk_error(errno, path.parent)
        for i in range(n):
            staging.in_file_nbytes[i] = INT64_MAX
            staging.mappings[i] = &(<MappedRegion?>regions[i]).mapping
            # Kept, as another file may come under its name.
            staging.files[i] = open_mapped(staging.mappings[i], O_DIRECT)
            if staging.files[i] < 0:
                raise disk_error(errno, regions[i].path)
        # The number of the first frame that is not in the page cache.
        first = staging.from_nbytes // staging.frame_nbytes
        visits, rest = divmod(first, staging.visit_frames)
        staging.exact_frames = visits * staging.visit_frames * n + rest
        # One range: the table, and the slots as they are made.
        nbytes = staging.most_slots * staging.piece_nbytes
        staging.reserved_nbytes = 2 * TABLE_NBYTES + nbytes
        staging.reserved = <char*>mmap(
            NULL, staging.reserved_nbytes, PROT_NONE,
            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0,
        )
        if staging.reserved == <char*>MAP_FAILED:
            staging.reserved = NULL
            raise MemoryError(f"the system refuses {nbytes} bytes of addresses")
        # At the boundary of a huge page, as the table has the size of one.
        staging.base = staging.reserved + 2 * TABLE_NBYTES
        staging.base -= <int64_t>staging.base % TABLE_NBYTES

    def __dealloc__(self):
        cdef Staging* staging = &self.staging
        cdef int64_t i
        if staging.reserved != NULL:
            munmap(staging.reserved, staging.reserved_nbytes)
        if staging.file >= 0:
            close(staging.file)
        if staging.folder >= 0:
            close(staging.folder)
        if staging.files != NULL:
            for i in range(staging.num_positions):
                if staging.files[i] >= 0:
                    close(staging.files[i])
        free(staging.files)
        free(staging.in_file_nbytes)
        free(staging.staged_nbytes)
        free(staging.mappings)
        free(staging.pieces)
        free(staging.blocks)
        free(staging.free_slots)
        free(staging.bare_slots)
        sw_mutex_destroy(&staging.lock)

    def finish(self, heads):
        """Bring what is staged into the files, and map these in place of the pieces."""
        cdef Staging* staging = &self.staging
        cdef Piece piece
        cdef object first_error = None
        cdef int64_t head
        cdef int code
        piece.serial = 0
        while next_unwritten(staging, &piece):
            head = min(<int64_t>heads[piece.position], piece.stop)
            if piece.slot < 0 or head <= piece.written_nbytes:
                continue  # it is in its file, or no frame came there
            PyErr_CheckSignals()
            with nogil:
                code = write_out(staging, &piece, head)
            if code and first_error is None:
                needed_nbytes = head - piece.written_nbytes
                path = self._regions[piece.position].path
                first_error = disk_error(code, path, needed_nbytes)
        if first_error is not None:
            raise first_error
        self.leave()

    def leave(self, copies=False):
        # Without the lock: the threads have ended, or this is a fork, which has none.
        cdef Staging* staging = &self.staging
        cdef Piece* piece
        cdef int64_t i
        cdef int code
        for i in range(staging.num_used):
            piece = &staging.pieces[i]
            if piece.serial == 0 or piece.slot < 0:
                continue
            code = 0
            if not copies or piece.is_written or not _copy_slot(staging, piece, &code):
                code = _map_file(staging, piece)
            if code:
                raise MemoryError(f"a file cannot be mapped: {os.strerror(code)}")

    def remove(self):
        if self.staging.file < 0:
            return
        name, folder = self.path.name, self.staging.folder
        with suppress(FileNotFoundError):
            status = os.stat(name, dir_fd=folder, follow_symlinks=False)
            if os.path.samestat(os.fstat(self.staging.file), status):
                os.unlink(name, dir_fd=folder)

    @property
    def lost(self):
        cdef int64_t code = sw_load_acquire(&self.staging.lost_code)
        return (code, self.staging.lost_position) if code else None

    @property
    def refused_code(self):
        return sw_load_acquire(&self.staging.refused_code)
