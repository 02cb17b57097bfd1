/* The floor of the asv benchmarks: frames copied one after the other, and nothing else. */
#include <stddef.h>
#include <string.h>

/* A function of the library, so that no compiler merges or drops the copies. */
static void *(*volatile copy)(void *, const void *, size_t) = memcpy;

void copy_frames(char *to, const char *frame, size_t frame_nbytes, size_t num_frames) {
    for (size_t i = 0; i < num_frames; i++)
        copy(to + i * frame_nbytes, frame, frame_nbytes);
}
