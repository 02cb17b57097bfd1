/* scratchwriter from C: frames from any native thread, without Python.
 *
 * A stream is handed over as a `scratchwriter_stream`: from a PyCapsule (`stream.capsule`)
 * or by its address (`stream.c_address`, an integer). Its functions take its `state` as
 * their first argument. They may be called from any thread, with or without the GIL; they
 * need neither a Python thread state nor the GIL, but for what Python has to decide (memory
 * has reached its limit, the disk is full): for that they take it themselves.
 *
 * They may be called at any time, also after the stream was closed: that is a status.
 * Whoever holds the capsule, or has asked for an address, keeps alive what they touch.
 * Memory that `reserve` gave can be written until `commit`, also when the stream is closed
 * and dropped meanwhile; what is written there after `close` is no frame.
 *
 * Frames are in C order, of `height` rows with `width` pixels of `itemsize` bytes, and go
 * to the slots in acquisition order, as those that are appended from Python.
 */
#ifndef SCRATCHWRITER_H
#define SCRATCHWRITER_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* The struct grows at its end only: check `abi_version`, and `nbytes` for what came later. */
#define SCRATCHWRITER_ABI_VERSION 1
#define SCRATCHWRITER_CAPSULE "scratchwriter.stream"

/* The most frames that `reserve` gives at a time. */
#define SCRATCHWRITER_MOST_SLOTS 65536

/* For a timestamp or a frame number that is not known. */
#define SCRATCHWRITER_UNKNOWN (-1)

typedef enum {
    SCRATCHWRITER_OK = 0,
    SCRATCHWRITER_CLOSED = 1,   /* the stream is closed, or no slot is reserved any more */
    SCRATCHWRITER_BUSY = 2,     /* this very thread has a slot open, or is growing the stream */
    SCRATCHWRITER_FULL = 3,     /* the dimensions have no more frames */
    SCRATCHWRITER_FAILED = 4,   /* no room in memory or on the disk: see `error_text` */
    SCRATCHWRITER_INVALID = 5,  /* an argument is out of range */
    SCRATCHWRITER_APART = 6     /* the slots asked for are not next to each other */
} scratchwriter_status;

typedef struct {
    uint32_t abi_version;
    uint32_t nbytes;            /* of this struct */
    void *state;                /* the first argument of each function */

    int64_t frame_nbytes;       /* height * width * itemsize */
    int64_t height;
    int64_t width;
    int64_t itemsize;
    char dtype[16];             /* numpy's, as "<u2"; ends with a zero */

    /* Store a frame whose rows follow each other without a gap. */
    int (*append)(void *state, const void *frame);

    /* Store a frame whose rows begin `pitch_nbytes` from each other (negative: bottom row
     * first in memory), with the camera's time and frame number, each zero or positive, or
     * SCRATCHWRITER_UNKNOWN. */
    int (*append_rows)(void *state, const void *frame, int64_t pitch_nbytes,
                       int64_t timestamp_ns, int64_t frame_id);

    /* Get the memory of the next `count` frames, to be filled in place. Until `commit` other
     * threads that append wait. At most SCRATCHWRITER_MOST_SLOTS. For more than one, the status
     * is SCRATCHWRITER_APART if they do not lie one behind the other, or (in a ring) would take
     * the place of frames that are still shown. */
    int (*reserve)(void *state, int64_t count, void **frames);

    /* Store the first `count` of the reserved frames, and give the others back; 0 gives back
     * all. `timestamps_ns` and `frame_ids` are NULL or have one number for each frame. From
     * whichever thread. After SCRATCHWRITER_INVALID the frames are still reserved; after any
     * other status they are not, and their memory must not be touched any more. Call it also
     * when the stream was closed meanwhile: it gives the memory back. */
    int (*commit)(void *state, int64_t count, const int64_t *timestamps_ns,
                  const int64_t *frame_ids);

    /* Leave out the next frames. */
    int (*skip)(void *state, int64_t frames);

    /* Frames appended and skipped so far. */
    int64_t (*frames_written)(void *state);

    /* A short text for a status; never NULL. */
    const char *(*status_text)(int status);

    /* Copy what the last SCRATCHWRITER_FAILED was about, as Python words it, ended by a zero;
     * returns its length without it, which may be more than fits. */
    int64_t (*error_text)(void *state, char *text, int64_t capacity_nbytes);
} scratchwriter_stream;

#ifdef Py_PYTHON_H
/* The stream of a capsule; NULL with an exception set if it is none, or of another ABI. */
static inline scratchwriter_stream *scratchwriter_from_capsule(PyObject *capsule) {
    scratchwriter_stream *stream =
        (scratchwriter_stream *)PyCapsule_GetPointer(capsule, SCRATCHWRITER_CAPSULE);
    if (stream != NULL && stream->abi_version != SCRATCHWRITER_ABI_VERSION) {
        PyErr_Format(PyExc_ImportError,
                     "the installed scratchwriter has ABI version %u, this was built for %u",
                     (unsigned)stream->abi_version, (unsigned)SCRATCHWRITER_ABI_VERSION);
        return NULL;
    }
    return stream;
}
#endif

#ifdef __cplusplus
}
#endif

#endif
