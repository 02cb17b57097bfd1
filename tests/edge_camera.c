/* A camera that reserves frames and goes on storing into them until it is stopped. */
#include <pthread.h>
#include <stdlib.h>

#include "scratchwriter.h"

typedef struct {
    const scratchwriter_stream *stream;
    int64_t count, stores;
    int status, is_stopped;
    char *frames;
    pthread_t thread;
} camera;

static void *run(void *arg) {
    camera *c = arg;
    while (!__atomic_load_n(&c->is_stopped, __ATOMIC_ACQUIRE)) {
        for (int64_t i = 0; i < c->count * c->stream->frame_nbytes; i++) c->frames[i] = 7;
        __atomic_add_fetch(&c->stores, 1, __ATOMIC_RELEASE);
    }
    c->status = c->stream->commit(c->stream->state, c->count, NULL, NULL);
    return NULL;
}

camera *camera_start(const scratchwriter_stream *stream, int64_t count) {
    camera *c = calloc(1, sizeof(camera));
    c->stream = stream;
    c->count = count;
    if (stream->reserve(stream->state, count, (void **)&c->frames) != SCRATCHWRITER_OK) abort();
    pthread_create(&c->thread, NULL, run, c);
    return c;
}

int64_t camera_stores(camera *c) { return __atomic_load_n(&c->stores, __ATOMIC_ACQUIRE); }

/* The status of its commit. */
int camera_stop(camera *c) {
    __atomic_store_n(&c->is_stopped, 1, __ATOMIC_RELEASE);
    pthread_join(c->thread, NULL);
    int status = c->status;
    free(c);
    return status;
}
