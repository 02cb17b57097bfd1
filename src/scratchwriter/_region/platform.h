/* What differs between operating systems and compilers, for the compiled modules.
 *
 * Linux is what is tested; the other branches are the plain equivalents.
 */
#ifndef SCRATCHWRITER_PLATFORM_H
#define SCRATCHWRITER_PLATFORM_H

#include <errno.h>
#include <stdint.h>
#include <string.h>

#ifdef _WIN32

#include <io.h>
#include <windows.h>

typedef SRWLOCK sw_mutex;
#define SW_NO_THREAD 0
static inline int64_t sw_this_thread(void) {
    static LONG64 last;
    static __declspec(thread) LONG64 mine;
    if (mine == SW_NO_THREAD) mine = InterlockedIncrement64(&last);
    return mine;
}
static inline void sw_mutex_init(sw_mutex *m) { InitializeSRWLock(m); }
static inline void sw_mutex_destroy(sw_mutex *m) { (void)m; }
static inline int sw_mutex_try(sw_mutex *m) { return TryAcquireSRWLockExclusive(m) != 0; }
static inline void sw_mutex_lock(sw_mutex *m) { AcquireSRWLockExclusive(m); }
static inline void sw_mutex_unlock(sw_mutex *m) { ReleaseSRWLockExclusive(m); }

static inline int64_t sw_load_acquire(const int64_t *p) {
    return InterlockedCompareExchange64((volatile LONG64 *)p, 0, 0);
}
static inline void sw_store_release(int64_t *p, int64_t value) {
    InterlockedExchange64((volatile LONG64 *)p, value);
}

static inline void sw_add(int64_t *p, int64_t value) {
    InterlockedExchangeAdd64((volatile LONG64 *)p, value);
}
static inline void sw_raise(int64_t *p, int64_t value) { /* to at least that */
    LONG64 found = sw_load_acquire(p), before;
    while (found < value) {
        before = found;
        found = InterlockedCompareExchange64((volatile LONG64 *)p, value, before);
        if (found == before) break;
    }
}
static inline void sw_nap(int64_t nap_ns) { Sleep((DWORD)(nap_ns / 1000000 + 1)); }
static inline void sw_touch(char *p) { InterlockedOr8((volatile char *)p, 0); }
static inline int64_t sw_now_ns(void) {
    LARGE_INTEGER ticks, per_s;
    QueryPerformanceCounter(&ticks);
    QueryPerformanceFrequency(&per_s);
    return (int64_t)((double)ticks.QuadPart * 1e9 / (double)per_s.QuadPart);
}

static inline int sw_pwrite(int fd, const char *data, size_t nbytes, int64_t offset) {
    if (_lseeki64(fd, offset, SEEK_SET) < 0) return errno;
    while (nbytes) {
        int n = _write(fd, data, nbytes > (1u << 30) ? (1u << 30) : (unsigned)nbytes);
        if (n < 0) return errno;
        data += n;
        nbytes -= (size_t)n;
    }
    return 0;
}
static inline int sw_append(int fd, const char *data, size_t nbytes, int64_t end) {
    int code = sw_pwrite(fd, data, nbytes, end);
    if (code != 0) _chsize_s(fd, end);
    return code;
}

#else

#include <pthread.h>
#include <time.h>
#include <unistd.h>

#define SW_NO_THREAD 0
/* A number that no other thread has or had, as far as one compiled module asks: the system
 * gives the identifier of a thread that has ended to another one. */
static inline int64_t sw_this_thread(void) {
    static int64_t last;
    static __thread int64_t mine;
    if (mine == SW_NO_THREAD) mine = __atomic_add_fetch(&last, 1, __ATOMIC_RELAXED);
    return mine;
}

#if defined(__linux__) && defined(__LP64__)

#include <linux/futex.h>
#include <sys/syscall.h>

/* A mutex that is given back by a plain store. The atomic exchange of pthread's waits until
 * the last bytes of a frame have left the store buffer: half of what an append of 8 KiB took
 * (measured). The price: the thread that unlocks it may look for sleepers a moment too early. So
 * they sleep for a millisecond at the most, and look themselves. */
typedef struct {
    int taken;
    int sleepers;
    int impatient; /* those that have waited for long; they go first */
} sw_mutex;

static inline void sw_mutex_init(sw_mutex *m) { m->taken = m->sleepers = m->impatient = 0; }
static inline void sw_mutex_destroy(sw_mutex *m) { (void)m; }
static inline int sw_mutex_take(sw_mutex *m) {
    int is_free = 0;
    return __atomic_compare_exchange_n(
        &m->taken, &is_free, 1, 0, __ATOMIC_ACQUIRE, __ATOMIC_RELAXED);
}
static inline int sw_mutex_try(sw_mutex *m) {
    return !__atomic_load_n(&m->impatient, __ATOMIC_RELAXED) && sw_mutex_take(m);
}
static inline void sw_mutex_lock(sw_mutex *m) {
    const struct timespec most = {0, 1000000};
    int is_impatient = 0;
    while (!(is_impatient ? sw_mutex_take(m) : sw_mutex_try(m))) {
        __atomic_add_fetch(&m->sleepers, 1, __ATOMIC_SEQ_CST);
        syscall(SYS_futex, &m->taken, FUTEX_WAIT_PRIVATE, 1, &most, NULL, 0);
        __atomic_sub_fetch(&m->sleepers, 1, __ATOMIC_SEQ_CST);
        /* A thread that appends in a loop takes it again before a sleeper is awake. */
        if (!is_impatient) {
            is_impatient = 1;
            __atomic_add_fetch(&m->impatient, 1, __ATOMIC_RELAXED);
        }
    }
    if (is_impatient) __atomic_sub_fetch(&m->impatient, 1, __ATOMIC_RELAXED);
}
static inline void sw_mutex_unlock(sw_mutex *m) {
    __atomic_store_n(&m->taken, 0, __ATOMIC_RELEASE);
    if (__atomic_load_n(&m->sleepers, __ATOMIC_RELAXED))
        syscall(SYS_futex, &m->taken, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
}

#else

typedef pthread_mutex_t sw_mutex;
static inline void sw_mutex_init(sw_mutex *m) { pthread_mutex_init(m, NULL); }
static inline void sw_mutex_destroy(sw_mutex *m) { pthread_mutex_destroy(m); }
static inline int sw_mutex_try(sw_mutex *m) { return pthread_mutex_trylock(m) == 0; }
static inline void sw_mutex_lock(sw_mutex *m) { pthread_mutex_lock(m); }
static inline void sw_mutex_unlock(sw_mutex *m) { pthread_mutex_unlock(m); }

#endif

static inline int64_t sw_load_acquire(const int64_t *p) {
    return __atomic_load_n(p, __ATOMIC_ACQUIRE);
}
static inline void sw_store_release(int64_t *p, int64_t value) {
    __atomic_store_n(p, value, __ATOMIC_RELEASE);
}

static inline void sw_add(int64_t *p, int64_t value) {
    __atomic_add_fetch(p, value, __ATOMIC_ACQ_REL);
}
static inline void sw_raise(int64_t *p, int64_t value) { /* to at least that */
    int64_t found = sw_load_acquire(p);
    while (found < value && !__atomic_compare_exchange_n(
                                p, &found, value, 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE)) {
    }
}
static inline void sw_nap(int64_t nap_ns) {
    const struct timespec nap = {0, (long)nap_ns};
    nanosleep(&nap, NULL);
}
/* Have a page made for a byte; what another thread stores there stays. */
static inline void sw_touch(char *p) { __atomic_fetch_or(p, 0, __ATOMIC_RELAXED); }
/* About 25 ns, without a system call. */
static inline int64_t sw_now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

/* Write all of `data` at `offset`: returns 0 or an errno. */
static inline int sw_pwrite(int fd, const char *data, size_t nbytes, int64_t offset) {
    while (nbytes) {
        ssize_t n = pwrite(fd, data, nbytes, (off_t)offset);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) return n < 0 ? errno : ENOSPC;
        data += n;
        offset += n;
        nbytes -= (size_t)n;
    }
    return 0;
}
/* The same at the end of a file, or nothing: cuts off what a full disk let through. */
static inline int sw_append(int fd, const char *data, size_t nbytes, int64_t end) {
    int code = sw_pwrite(fd, data, nbytes, end);
    if (code != 0 && ftruncate(fd, (off_t)end) != 0) { /* best effort */ }
    return code;
}

#ifdef __linux__

/* Threads that never run Python code. */

#include <fcntl.h>
#include <sched.h>
#include <signal.h>

typedef pthread_t sw_thread;

/* Signals go to the threads of Python. */
static inline int sw_thread_start(sw_thread *thread, void *(*run)(void *), void *arg) {
    sigset_t all, before;
    int code;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    code = pthread_create(thread, NULL, run, arg);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return code;
}
static inline void sw_thread_join(sw_thread thread) { pthread_join(thread, NULL); }
/* Of the calling thread alone: it has its share of the cores, but takes none away from a
 * thread that runs. */
static inline void sw_thread_waits_its_turn(void) {
    struct sched_param none = {0};
    if (sched_setscheduler(0, SCHED_BATCH, &none) != 0) { /* as it is, then */ }
}
static inline void sw_yield(void) { sched_yield(); }

/* Has pages of a file written to the device, and waits for it: 0, or -1 with errno set. */
static inline int sw_write_back(int fd, int64_t offset, int64_t nbytes) {
    return sync_file_range(fd, offset, nbytes, SYNC_FILE_RANGE_WAIT_BEFORE |
                           SYNC_FILE_RANGE_WRITE | SYNC_FILE_RANGE_WAIT_AFTER);
}

/* Rings once; a thread that waits for it sleeps until then, or until a timeout. */
typedef struct {
    pthread_mutex_t mutex;
    pthread_cond_t cond;
    int rung;
} sw_alarm;

static inline void sw_alarm_init(sw_alarm *alarm) {
    pthread_condattr_t attributes;
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_mutex_init(&alarm->mutex, NULL);
    pthread_cond_init(&alarm->cond, &attributes);
    pthread_condattr_destroy(&attributes);
    alarm->rung = 0;
}
static inline void sw_alarm_destroy(sw_alarm *alarm) {
    pthread_cond_destroy(&alarm->cond);
    pthread_mutex_destroy(&alarm->mutex);
}
static inline void sw_alarm_ring(sw_alarm *alarm) {
    pthread_mutex_lock(&alarm->mutex);
    alarm->rung = 1;
    pthread_cond_broadcast(&alarm->cond);
    pthread_mutex_unlock(&alarm->mutex);
}
static inline int sw_alarm_wait(sw_alarm *alarm, int64_t timeout_ns) {
    struct timespec until;
    int rung;
    pthread_mutex_lock(&alarm->mutex);
    if (timeout_ns > 0 && !alarm->rung) {
        clock_gettime(CLOCK_MONOTONIC, &until);
        timeout_ns += until.tv_nsec;
        until.tv_sec += timeout_ns / 1000000000;
        until.tv_nsec = timeout_ns % 1000000000;
        while (!alarm->rung && pthread_cond_timedwait(&alarm->cond, &alarm->mutex, &until) == 0) {
        }
    }
    rung = alarm->rung;
    pthread_mutex_unlock(&alarm->mutex);
    return rung;
}

#endif /* __linux__ */

#endif

/* Store 16 bytes at once where the machine can: one SSE2 or NEON instruction, which a
 * kill cannot divide (signals arrive between instructions). `p` is 16-byte aligned. */
static inline void sw_store_16(char *p, const char *bytes) {
    memcpy(p, bytes, 16);
}

#endif
