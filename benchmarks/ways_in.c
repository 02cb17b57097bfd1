/* Frames by the C ABI: as fast as they can be, and at a rate from a thread of their own. */
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "scratchwriter.h"

static int64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

/* Nanoseconds that it takes to append a frame `count` times, or the status if it fails. */
int64_t append_all(const scratchwriter_stream *stream, const void *frame, int64_t count) {
    int64_t start_ns = now_ns();
    for (int64_t i = 0; i < count; i++) {
        int status = stream->append(stream->state, frame);
        if (status != SCRATCHWRITER_OK) return -status;
    }
    return now_ns() - start_ns;
}

/* A function of the library, so that no compiler merges or drops the copies. */
static void *(*volatile copy)(void *, const void *, size_t) = memcpy;

int64_t copy_all(char *to, const void *frame, int64_t frame_nbytes, int64_t count) {
    int64_t start_ns = now_ns();
    for (int64_t i = 0; i < count; i++) copy(to + i * frame_nbytes, frame, frame_nbytes);
    return now_ns() - start_ns;
}

typedef struct {
    const scratchwriter_stream *stream;
    int64_t period_ns, count;
    int64_t *took_ns;
    int status;
    pthread_t thread;
} camera;

static void *run(void *arg) {
    camera *self = arg;
    const scratchwriter_stream *stream = self->stream;
    uint64_t *frame = calloc(1, stream->frame_nbytes);
    int64_t due_ns = now_ns(), start_ns;
    for (int64_t i = 0; i < self->count && self->status == SCRATCHWRITER_OK; i++) {
        while ((start_ns = now_ns()) < due_ns) {
        }
        due_ns += self->period_ns;
        frame[0] = i;
        self->status = stream->append_rows(
            stream->state, frame, stream->width * stream->itemsize, start_ns, i);
        self->took_ns[i] = now_ns() - start_ns;
    }
    free(frame);
    return NULL;
}

camera *camera_start(const scratchwriter_stream *stream, int64_t period_ns, int64_t count,
                     int64_t *took_ns) {
    camera *self = calloc(1, sizeof(camera));
    self->stream = stream;
    self->period_ns = period_ns;
    self->count = count;
    self->took_ns = took_ns;
    pthread_create(&self->thread, NULL, run, self);
    return self;
}

int camera_join(camera *self) {
    int status;
    pthread_join(self->thread, NULL);
    status = self->status;
    free(self);
    return status;
}
