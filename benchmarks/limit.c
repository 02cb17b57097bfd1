/* The machine's limit: a camera loop that does for a frame what has to be done, no more.
 *
 * A helper thread prepares memory (or a file) ahead of the frames, and the loop copies
 * them with the fastest copy there is. No checks, no metadata, no readers, no growth.
 * camera_loop.py compiles it, tries its variants and takes the best as the limit.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23 /* Linux 5.14 */
#endif

#define NUM_SOURCES 5              /* as in writers.py */
#define LEAD_NS 50000000           /* as in paced.py: from the start to a paced camera's */
#define SPIN_NS 200000             /* as in paced.py: of a wait, what is not slept */
#define PIECE_NBYTES (2 << 20)     /* prepared at a time: a huge page */
#define WRITEBACK_NBYTES (16 << 20)
#define NUM_VERIFIED 64

enum method { POPULATE, ZEROS, PWRITE };

static struct {
    enum method method;
    int loop_helps;        /* whether the loop prepares pieces too when it has caught up */
    int streaming_stores;
    int early_writeback;
    int64_t frame_nbytes, num_frames, batch, period_ns, window_nbytes;
} job;

static char *base, *sources, *zeros;
static int fd = -1;
static int64_t total_nbytes, num_pieces;
static atomic_char *is_ready;                 /* per piece */
static _Atomic int64_t num_claimed;           /* pieces that somebody prepares or has */
static _Atomic int64_t cursor_nbytes;         /* stored */
static atomic_int stopping;

static void die(const char *what) {
    perror(what);
    exit(1);
}

static int64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

static void sleep_ns(int64_t ns) {
    struct timespec time = {ns / 1000000000, ns % 1000000000};
    nanosleep(&time, NULL);
}

static void wait_until(int64_t due_ns) {
    int64_t left_ns;
    while ((left_ns = due_ns - now_ns()) > 0)
        if (left_ns > SPIN_NS) sleep_ns(left_ns - SPIN_NS);
}

/* --------------------------------------------------------------------- the copy */

#if defined(__x86_64__)
#include <emmintrin.h>
#define pause_cpu _mm_pause

/* Wider registers (AVX2, AVX-512) were measured to be no faster. */
static void copy_past_cache(char *to, const char *from, int64_t nbytes) {
    for (; nbytes >= 64; nbytes -= 64, to += 64, from += 64) {
        _mm_prefetch(from + 1024, _MM_HINT_T0);
        for (int i = 0; i < 64; i += 16)
            _mm_stream_si128((__m128i *)(to + i), _mm_loadu_si128((const __m128i *)(from + i)));
    }
    _mm_sfence();
    memcpy(to, from, (size_t)nbytes);
}
#else
#define copy_past_cache memcpy
static void pause_cpu(void) {}
#endif

/* ------------------------------------------------------------- what is done ahead */

static void write_all(const char *data, int64_t nbytes, int64_t offset) {
    while (nbytes) {
        ssize_t n = pwrite(fd, data, (size_t)nbytes, offset);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) die("pwrite");
        data += n, nbytes -= n, offset += n;
    }
}

/* Prepare the next piece that nobody has claimed; tell whether there was one. */
static int prepare_next(void) {
    int64_t piece = atomic_fetch_add(&num_claimed, 1);
    int64_t start = piece * PIECE_NBYTES;
    int64_t nbytes = total_nbytes - start < PIECE_NBYTES ? total_nbytes - start : PIECE_NBYTES;
    if (piece >= num_pieces) return 0;
    if (job.method == ZEROS) write_all(zeros, nbytes, start);
    if (madvise(base + start, (size_t)nbytes, MADV_POPULATE_WRITE) != 0)
        die("MADV_POPULATE_WRITE");
    atomic_store_explicit(&is_ready[piece], 1, memory_order_release);
    return 1;
}

static void *run_ahead(void *unused) {
    (void)unused;
    while (!atomic_load(&stopping)) {
        int64_t ahead_nbytes = atomic_load(&num_claimed) * PIECE_NBYTES - atomic_load(&cursor_nbytes);
        if (ahead_nbytes > job.window_nbytes) sleep_ns(100000);
        else if (!prepare_next()) break;
    }
    return NULL;
}

static void *run_writeback(void *unused) {
    int64_t done_nbytes = 0;
    (void)unused;
    while (!atomic_load(&stopping)) {
        if (atomic_load(&cursor_nbytes) - done_nbytes < WRITEBACK_NBYTES) {
            sleep_ns(1000000);
            continue;
        }
        if (sync_file_range(fd, done_nbytes, WRITEBACK_NBYTES,
                            SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE |
                                SYNC_FILE_RANGE_WAIT_AFTER) != 0)
            die("sync_file_range");
        done_nbytes += WRITEBACK_NBYTES;
    }
    return NULL;
}

/* -------------------------------------------------------------------- one append */

static void wait_ready(int64_t stop_nbytes) {
    static int64_t num_ready = 0;
    while (num_ready * PIECE_NBYTES < stop_nbytes) {
        if (atomic_load_explicit(&is_ready[num_ready], memory_order_acquire)) num_ready++;
        else if (!job.loop_helps || !prepare_next()) pause_cpu();
    }
}

static void append(int64_t i) {
    const char *frame = sources + i % NUM_SOURCES * job.frame_nbytes;
    int64_t start = i * job.frame_nbytes;
    if (job.method == PWRITE) {
        write_all(frame, job.frame_nbytes, start);
    } else {
        wait_ready(start + job.frame_nbytes);
        if (job.streaming_stores) copy_past_cache(base + start, frame, job.frame_nbytes);
        else memcpy(base + start, frame, (size_t)job.frame_nbytes);
    }
    atomic_store_explicit(&cursor_nbytes, start + job.frame_nbytes, memory_order_release);
}

/* ------------------------------------------------------------- before and after it */

static char *map_memory(int64_t nbytes) {
    char *start = mmap(NULL, (size_t)nbytes + PIECE_NBYTES, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (start == MAP_FAILED) die("mmap");
    start += -(intptr_t)start & (PIECE_NBYTES - 1);
    madvise(start, (size_t)nbytes, MADV_HUGEPAGE); /* where there are none, all the same */
    return start;
}

static void open_target(const char *path) {
    if (path[0] == '\0') {
        base = map_memory(total_nbytes);
        return;
    }
    fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (fd < 0) die(path);
    if (posix_fallocate(fd, 0, total_nbytes) != 0) die("posix_fallocate");
    base = mmap(NULL, (size_t)total_nbytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (base == MAP_FAILED) die("mmap of the file");
}

static void make_sources(void) {
    uint64_t x = 88172645463325252u;
    int64_t nbytes = NUM_SOURCES * job.frame_nbytes;
    sources = map_memory(nbytes + 8);
    zeros = calloc(1, PIECE_NBYTES);
    for (int64_t i = 0; i < nbytes; i += 8) { /* xorshift64 */
        x ^= x << 13, x ^= x >> 7, x ^= x << 17;
        memcpy(sources + i, &x, 8);
    }
}

/* Compare frames spread over all with what was stored: the file's own bytes. */
static int count_wrong(void) {
    char *stored = malloc((size_t)job.frame_nbytes);
    int wrong = 0;
    for (int k = 0; k < NUM_VERIFIED; k++) {
        int64_t i = k * (job.num_frames - 1) / (NUM_VERIFIED - 1);
        int64_t start = i * job.frame_nbytes;
        if (fd < 0) memcpy(stored, base + start, (size_t)job.frame_nbytes);
        else if (pread(fd, stored, (size_t)job.frame_nbytes, start) != job.frame_nbytes)
            die("pread");
        wrong += memcmp(stored, sources + i % NUM_SOURCES * job.frame_nbytes,
                        (size_t)job.frame_nbytes) != 0;
    }
    free(stored);
    return wrong;
}

static int64_t run_loop(int64_t *starts, int64_t *stops) {
    int64_t t0 = now_ns() + (job.period_ns ? LEAD_NS : 0);
    wait_until(t0);
    for (int64_t sample = 0; sample < job.num_frames / job.batch; sample++) {
        if (job.period_ns) wait_until(t0 + sample * job.period_ns);
        starts[sample] = now_ns();
        for (int64_t k = 0; k < job.batch; k++) append(sample * job.batch + k);
        stops[sample] = now_ns();
    }
    return t0;
}

static enum method method_named(const char *name) {
    if (strcmp(name, "populate") == 0) return POPULATE;
    if (strcmp(name, "zeros") == 0) return ZEROS;
    if (strcmp(name, "pwrite") == 0) return PWRITE;
    fprintf(stderr, "unknown method %s\n", name);
    exit(2);
}

int main(int argc, char **argv) {
    pthread_t ahead, writeback;
    struct rusage before, after;
    int64_t t0, *starts, *stops, num_samples;
    FILE *out;
    if (argc != 12) {
        fprintf(stderr, "usage: limit METHOD LOOP_HELPS STREAMING_STORES EARLY_WRITEBACK "
                        "FRAME_NBYTES NUM_FRAMES BATCH PERIOD_NS WINDOW_NBYTES PATH OUT\n");
        return 2;
    }
    job.method = method_named(argv[1]);
    job.loop_helps = atoi(argv[2]);
    job.streaming_stores = atoi(argv[3]);
    job.early_writeback = atoi(argv[4]);
    job.frame_nbytes = atoll(argv[5]);
    job.num_frames = atoll(argv[6]);
    job.batch = atoll(argv[7]);
    job.period_ns = atoll(argv[8]);
    job.window_nbytes = atoll(argv[9]);

    num_samples = job.num_frames / job.batch;
    total_nbytes = job.frame_nbytes * job.num_frames;
    num_pieces = (total_nbytes + PIECE_NBYTES - 1) / PIECE_NBYTES;
    is_ready = calloc((size_t)num_pieces, 1);
    starts = malloc((size_t)num_samples * 16);
    stops = starts + num_samples;
    memset(starts, 1, (size_t)num_samples * 16); /* no page fault in the loop */
    make_sources();
    puts("ready"); /* see Ballast in session.py: memory is set free when it is wanted */
    fflush(stdout);
    if (getchar() == EOF) return 1;
    open_target(argv[10]);

    if (job.method != PWRITE && pthread_create(&ahead, NULL, run_ahead, NULL) != 0)
        die("pthread_create");
    if (job.early_writeback && pthread_create(&writeback, NULL, run_writeback, NULL) != 0)
        die("pthread_create");
    getrusage(RUSAGE_THREAD, &before);
    t0 = run_loop(starts, stops);
    getrusage(RUSAGE_THREAD, &after);
    atomic_store(&stopping, 1);
    if (job.method != PWRITE) pthread_join(ahead, NULL);
    if (job.early_writeback) pthread_join(writeback, NULL);

    out = fopen(argv[11], "wb");
    if (out == NULL || fwrite(starts, 16, (size_t)num_samples, out) != (size_t)num_samples ||
        fclose(out) != 0)
        die(argv[11]);
    printf("{\"t0_ns\": %" PRId64 ", \"page_faults\": %ld, \"preempted\": %ld, \"wrong\": %d}\n",
           t0, after.ru_minflt - before.ru_minflt, after.ru_nivcsw - before.ru_nivcsw,
           count_wrong());
    return 0;
}
