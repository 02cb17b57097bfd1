"""The layouts of files are the same in Python and in the compiled modules."""

import sys

import numpy as np
import pytest

from scratchwriter import _core, stats
from scratchwriter._files import layout


def test_the_compiled_modules_have_the_layouts_of_the_files():
    assert hasattr(_core, "layout"), "_core.layout() is to return what the core stores"
    compiled = _core.layout()
    fields = layout.RECORD.fields
    assert compiled["record_nbytes"] == layout.RECORD.itemsize
    assert compiled["record_offsets"] == {name: fields[name][1] for name in fields}
    assert compiled["digits"] == layout.DIGITS
    assert compiled["num_buckets"] == stats.NUM_BUCKETS
    assert compiled["num_buckets"] == layout.APPEND_TIMES_RECORD["append_counts"].shape[0]
    assert compiled["knows_time"] == layout.KNOWS_TIME
    assert compiled["knows_id"] == layout.KNOWS_ID
    assert compiled["is_host_time"] == layout.IS_HOST_TIME
    assert compiled["unknown"] == layout.UNKNOWN
    assert compiled["skip_pair_nbytes"] == layout.SKIP_PAIR.itemsize


@pytest.mark.skipif(sys.platform != "linux", reason="is not built elsewhere")
def test_staging_has_the_layout_of_its_file():
    from scratchwriter._region import staging

    compiled, fields = staging.layout(), layout.STAGING_SLOT.fields
    assert compiled["header_nbytes"] == layout.STAGING_HEADER.itemsize
    assert compiled["slots_nbytes"] == layout.STAGING_SLOTS_NBYTES
    assert compiled["in_file_offset"] == layout.STAGING_IN_FILE_OFFSET
    assert compiled["most_positions"] == layout.STAGING_MOST_POSITIONS
    assert compiled["staged_offset"] == layout.STAGING_STAGED_OFFSET
    assert compiled["most_slots"] == layout.STAGING_MOST_SLOTS >= compiled["most_pieces"]
    assert compiled["slot_nbytes"] == layout.STAGING_SLOT.itemsize
    assert compiled["slot_offsets"] == {name: fields[name][1] for name in fields}


def test_what_the_core_stores_into_progress_is_aligned_and_in_its_page():
    header = layout.PROGRESS_HEADER
    assert header.itemsize == layout.PROGRESS_NBYTES
    for name in ("cursor", "synced", "dropped", "confirmed", "in_files"):
        kind, offset = header.fields[name]
        assert kind == np.dtype(np.int64)
        assert offset % 8 == 0


def test_no_two_fields_of_a_file_overlap():
    for dtype in (layout.PROGRESS_HEADER, layout.RECORD, layout.APPEND_TIMES_RECORD):
        ends = 0
        for kind, offset in sorted(dtype.fields.values(), key=lambda field: field[1]):
            assert offset >= ends
            ends = offset + kind.itemsize
        assert ends <= dtype.itemsize
