/* The machine's limit: a camera loop that does for a frame what has to be done, no more.
 *
 * A helper thread prepares memory (or a file) ahead of the frames, and the loop copies
 * them with the fastest copy there is. No checks, no metadata, no readers, no growth.
 * camera_loop.py compiles it, tries its variants and takes the best as the limit;
 * long_recording.py takes the staged one.
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
#define STAGED_NBYTES (8 << 20)    /* written directly at a time; as scratchwriter's */
#define BLOCK_NBYTES 4096          /* direct writes are of whole ones */
#define NUM_VERIFIED 64

/* STAGED: frames are stored in a small staging file whose pages are used again and again,
 * and a thread behind writes them into the file directly. The others use its page cache. */
enum method { POPULATE, ZEROS, PWRITE, STAGED };

static struct {
    enum method method;
    int loop_helps;        /* whether the loop prepares pieces too when it has caught up */
    int streaming_stores;
    int early_writeback;
    int64_t frame_nbytes, num_frames, batch, period_ns;
    int64_t window_nbytes; /* how far ahead to prepare; STAGED: of the staging file */
} job;

static char *base, *sources, *zeros;
static int fd = -1, direct_fd = -1;
static int64_t total_nbytes, num_pieces;
static atomic_char *is_ready;                 /* per piece */
static _Atomic int64_t num_claimed;           /* pieces that somebody prepares or has */
static _Atomic int64_t cursor_nbytes;         /* stored */
static _Atomic int64_t written_nbytes;        /* STAGED: in the file */
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

static int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

/* --------------------------------------------------------------------- the copy */

#if defined(__x86_64__)
#include <emmintrin.h>
#define pause_cpu _mm_pause

/* Wider registers (AVX2, AVX-512) were measured to be no faster. */
static void copy_past_cache(char *to, const char *from, int64_t nbytes) {
    int64_t head_nbytes = smaller(-(intptr_t)to & 15, nbytes); /* streaming stores are aligned */
    memcpy(to, from, (size_t)head_nbytes);
    to += head_nbytes, from += head_nbytes, nbytes -= head_nbytes;
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

/* Where a byte is stored. */
static char *address_of(int64_t offset) {
    return base + (job.method == STAGED ? offset % job.window_nbytes : offset);
}

static void write_all(int file, const char *data, int64_t nbytes, int64_t offset) {
    while (nbytes) {
        ssize_t n = pwrite(file, data, (size_t)nbytes, offset);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) die("pwrite");
        data += n, nbytes -= n, offset += n;
    }
}

/* Prepare the next piece that nobody has claimed; tell whether there was one. */
static int prepare_next(void) {
    int64_t piece = atomic_fetch_add(&num_claimed, 1);
    int64_t start = piece * PIECE_NBYTES;
    int64_t nbytes = smaller(total_nbytes - start, PIECE_NBYTES);
    if (piece >= num_pieces) return 0;
    if (job.method == ZEROS) write_all(fd, zeros, nbytes, start);
    /* Also of a piece that is used again: the kernel may have written it back meanwhile,
     * and the next store would be a fault. */
    if (madvise(address_of(start), (size_t)nbytes, MADV_POPULATE_WRITE) != 0)
        die("MADV_POPULATE_WRITE");
    atomic_store_explicit(&is_ready[piece], 1, memory_order_release);
    return 1;
}

static void *run_ahead(void *unused) {
    /* What is behind this needs no room any more. */
    _Atomic int64_t *done_nbytes = job.method == STAGED ? &written_nbytes : &cursor_nbytes;
    (void)unused;
    while (!atomic_load(&stopping)) {
        int64_t stop_nbytes = (atomic_load(&num_claimed) + 1) * PIECE_NBYTES;
        if (stop_nbytes - atomic_load(done_nbytes) > job.window_nbytes) sleep_ns(100000);
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

/* Write what is staged, as soon as a piece of it is full. */
static void *run_behind(void *unused) {
    int64_t start = 0;
    (void)unused;
    while (start < total_nbytes) {
        int64_t nbytes = smaller(total_nbytes - start, STAGED_NBYTES);
        if (atomic_load(&cursor_nbytes) < start + nbytes) {
            sleep_ns(200000);
            continue;
        }
        nbytes += -nbytes & (BLOCK_NBYTES - 1); /* the rest is cut off in the end */
        write_all(direct_fd, address_of(start), nbytes, start);
        start += nbytes;
        atomic_store(&written_nbytes, start);
    }
    return NULL;
}

/* -------------------------------------------------------------------- one append */

static void wait_ready(int64_t stop_nbytes) {
    static int64_t num_ready = 0;
    while (num_ready * PIECE_NBYTES < stop_nbytes) {
        if (atomic_load_explicit(&is_ready[num_ready], memory_order_acquire)) num_ready++;
        else if (job.method == STAGED) sleep_ns(20000); /* until the disk has taken more */
        else if (!job.loop_helps || !prepare_next()) pause_cpu();
    }
}

static void store(int64_t start, const char *data, int64_t nbytes) {
    wait_ready(start + nbytes);
    if (job.streaming_stores) copy_past_cache(address_of(start), data, nbytes);
    else memcpy(address_of(start), data, (size_t)nbytes);
    atomic_store_explicit(&cursor_nbytes, start + nbytes, memory_order_release);
}

/* Store what fits into a piece, then the rest: the next piece may be elsewhere. */
static void store_staged(int64_t start, const char *data, int64_t nbytes) {
    while (nbytes) {
        int64_t part_nbytes = smaller(nbytes, STAGED_NBYTES - start % STAGED_NBYTES);
        store(start, data, part_nbytes);
        start += part_nbytes, data += part_nbytes, nbytes -= part_nbytes;
    }
}

static void append(int64_t i) {
    const char *frame = sources + i % NUM_SOURCES * job.frame_nbytes;
    int64_t start = i * job.frame_nbytes;
    if (job.method == PWRITE) {
        write_all(fd, frame, job.frame_nbytes, start);
        atomic_store_explicit(&cursor_nbytes, start + job.frame_nbytes, memory_order_release);
    } else if (job.method == STAGED) {
        store_staged(start, frame, job.frame_nbytes);
    } else {
        store(start, frame, job.frame_nbytes);
    }
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

static char *map_file(int file, int64_t nbytes) {
    char *start = mmap(NULL, (size_t)nbytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (start == MAP_FAILED) die("mmap of the file");
    return start;
}

static int create(const char *path) {
    int file = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (file < 0) die(path);
    return file;
}

/* Make the staging file: with blocks and zeros, so that a store in it changes no metadata. */
static void open_staging(const char *path) {
    char staging_path[4096];
    int file;
    if (job.window_nbytes % STAGED_NBYTES != 0) {
        fprintf(stderr, "WINDOW_NBYTES: expected a multiple of %d\n", STAGED_NBYTES);
        exit(2);
    }
    direct_fd = open(path, O_WRONLY | O_DIRECT | O_CLOEXEC);
    if (direct_fd < 0) die("open for direct writes");
    snprintf(staging_path, sizeof staging_path, "%s.staging", path);
    file = create(staging_path);
    for (int64_t start = 0; start < job.window_nbytes; start += PIECE_NBYTES)
        write_all(file, zeros, PIECE_NBYTES, start);
    if (fsync(file) != 0) die("fsync");
    base = map_file(file, job.window_nbytes);
    close(file);
    madvise(base, (size_t)job.window_nbytes, MADV_HUGEPAGE); /* where there are any */
}

static void open_target(const char *path) {
    if (path[0] == '\0') {
        base = map_memory(total_nbytes);
        return;
    }
    fd = create(path);
    if (posix_fallocate(fd, 0, total_nbytes) != 0) die("posix_fallocate");
    if (job.method == STAGED) open_staging(path);
    else base = map_file(fd, total_nbytes);
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
    if (strcmp(name, "staged") == 0) return STAGED;
    fprintf(stderr, "unknown method %s\n", name);
    exit(2);
}

static double seconds_between(struct timeval start, struct timeval stop) {
    return (double)(stop.tv_sec - start.tv_sec) + (double)(stop.tv_usec - start.tv_usec) / 1e6;
}

int main(int argc, char **argv) {
    pthread_t ahead, behind, writeback;
    struct rusage before, after, process_before, process_after;
    int64_t t0, closed_ns, *starts, *stops, num_samples;
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
    if (job.method == STAGED && pthread_create(&behind, NULL, run_behind, NULL) != 0)
        die("pthread_create");
    if (job.early_writeback && pthread_create(&writeback, NULL, run_writeback, NULL) != 0)
        die("pthread_create");
    getrusage(RUSAGE_THREAD, &before);
    getrusage(RUSAGE_SELF, &process_before);
    t0 = run_loop(starts, stops);
    getrusage(RUSAGE_THREAD, &after);
    getrusage(RUSAGE_SELF, &process_after);
    atomic_store(&stopping, 1);
    if (job.method != PWRITE) pthread_join(ahead, NULL);
    if (job.early_writeback) pthread_join(writeback, NULL);
    if (job.method == STAGED) {
        pthread_join(behind, NULL);
        if (ftruncate(fd, total_nbytes) != 0) die("ftruncate");
    }
    closed_ns = now_ns();

    out = fopen(argv[11], "wb");
    if (out == NULL || fwrite(starts, 16, (size_t)num_samples, out) != (size_t)num_samples ||
        fclose(out) != 0)
        die(argv[11]);
    printf("{\"t0_ns\": %" PRId64 ", \"closed_ns\": %" PRId64 ", \"page_faults\": %ld, "
           "\"preempted\": %ld, \"user_s\": %.6f, \"kernel_s\": %.6f, \"wrong\": %d}\n",
           t0, closed_ns, after.ru_minflt - before.ru_minflt,
           after.ru_nivcsw - before.ru_nivcsw,
           seconds_between(process_before.ru_utime, process_after.ru_utime),
           seconds_between(process_before.ru_stime, process_after.ru_stime), count_wrong());
    return 0;
}
