/* A camera driver as its maker would write it: a thread of its own that delivers frames at
 * a rate, and knows of scratchwriter no more than its header. Of Python it knows nothing. */
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <time.h>

#include "scratchwriter.h"

enum { BY_APPEND, BY_ROWS, BY_SLOT };
enum { GAP_PIXELS = 8 }; /* between two rows, of this camera's buffers */

typedef struct {
    const scratchwriter_stream *stream;
    int64_t frames, period_ns;
    int way;
    int64_t *took_ns;     /* of each call, or NULL */
    int64_t sent;         /* frames delivered so far */
    int status;           /* of the first call that failed */
    uint16_t *buffer;
    pthread_t thread;
} driver;

static int64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

/* Pixels of frame i: i, i + 1, i + 2, ..., modulo 65536. */
static void expose(uint16_t *pixels, int64_t height, int64_t width, int64_t pitch, int64_t i) {
    for (int64_t y = 0; y < height; y++)
        for (int64_t x = 0; x < width; x++)
            pixels[y * pitch + x] = (uint16_t)(i + y * width + x);
}

static int deliver(driver *camera, int64_t i) {
    const scratchwriter_stream *stream = camera->stream;
    int64_t width = stream->width, pitch = width + (camera->way == BY_ROWS ? GAP_PIXELS : 0);
    int64_t timestamp_ns = 1000 * i;
    void *slot;
    int status;
    if (camera->way == BY_SLOT) {
        status = stream->reserve(stream->state, 1, &slot);
        if (status != SCRATCHWRITER_OK) return status;
        expose(slot, stream->height, width, width, i);
        status = stream->commit(stream->state, 1, &timestamp_ns, &i);
        if (status == SCRATCHWRITER_INVALID) stream->commit(stream->state, 0, NULL, NULL);
        return status;
    }
    expose(camera->buffer, stream->height, width, pitch, i);
    if (camera->way == BY_APPEND) return stream->append(stream->state, camera->buffer);
    return stream->append_rows(stream->state, camera->buffer, pitch * 2, timestamp_ns, i);
}

static void *run(void *arg) {
    driver *camera = arg;
    int64_t due_ns = now_ns(), start_ns;
    for (int64_t i = 0; i < camera->frames; i++) {
        while (now_ns() < due_ns) {
        }
        due_ns += camera->period_ns;
        start_ns = now_ns();
        camera->status = deliver(camera, i);
        if (camera->status != SCRATCHWRITER_OK) break;
        if (camera->took_ns) camera->took_ns[i] = now_ns() - start_ns;
        __atomic_store_n(&camera->sent, i + 1, __ATOMIC_RELEASE);
    }
    return NULL;
}

driver *driver_start(const scratchwriter_stream *stream, int64_t frames, int64_t period_ns,
                     int way, int64_t *took_ns) {
    driver *camera = calloc(1, sizeof(driver));
    if (stream->abi_version != SCRATCHWRITER_ABI_VERSION || stream->itemsize != 2) return NULL;
    camera->stream = stream;
    camera->frames = frames;
    camera->period_ns = period_ns;
    camera->way = way;
    camera->took_ns = took_ns;
    camera->buffer = malloc(stream->height * (stream->width + GAP_PIXELS) * 2);
    pthread_create(&camera->thread, NULL, run, camera);
    return camera;
}

int64_t driver_sent(driver *camera) { return __atomic_load_n(&camera->sent, __ATOMIC_ACQUIRE); }

/* Wait for its end; the status of its last call. */
int driver_join(driver *camera) {
    int status;
    pthread_join(camera->thread, NULL);
    status = camera->status;
    free(camera->buffer);
    free(camera);
    return status;
}
