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
static inline uintptr_t sw_this_thread(void) { return (uintptr_t)GetCurrentThreadId(); }
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

static inline int sw_pwrite(int fd, const char *data, size_t nbytes, int64_t offset) {
    if (_lseeki64(fd, offset, SEEK_SET) < 0) return errno;
    while (nbytes) {
        int n = _write(fd, data, nbytes > (1u << 30) ? (1u << 30) : (unsigned)nbytes);
        if (n < 0) {
            int error = errno;
            _chsize_s(fd, offset);
            return error;
        }
        data += n;
        nbytes -= (size_t)n;
    }
    return 0;
}

#else

#include <pthread.h>
#include <unistd.h>

typedef pthread_mutex_t sw_mutex;
#define SW_NO_THREAD 0
static inline uintptr_t sw_this_thread(void) { return (uintptr_t)pthread_self(); }
static inline void sw_mutex_init(sw_mutex *m) { pthread_mutex_init(m, NULL); }
static inline void sw_mutex_destroy(sw_mutex *m) { pthread_mutex_destroy(m); }
static inline int sw_mutex_try(sw_mutex *m) { return pthread_mutex_trylock(m) == 0; }
static inline void sw_mutex_lock(sw_mutex *m) { pthread_mutex_lock(m); }
static inline void sw_mutex_unlock(sw_mutex *m) { pthread_mutex_unlock(m); }

static inline int64_t sw_load_acquire(const int64_t *p) {
    return __atomic_load_n(p, __ATOMIC_ACQUIRE);
}
static inline void sw_store_release(int64_t *p, int64_t value) {
    __atomic_store_n(p, value, __ATOMIC_RELEASE);
}

/* Write all of `data` at `offset`, or nothing: returns 0 or an errno, and cuts off what
 * a full disk let through. */
static inline int sw_pwrite(int fd, const char *data, size_t nbytes, int64_t offset) {
    const int64_t start = offset;
    while (nbytes) {
        ssize_t n = pwrite(fd, data, nbytes, (off_t)offset);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) {
            int error = n < 0 ? errno : ENOSPC;
            if (offset > start && ftruncate(fd, (off_t)start) != 0) { /* best effort */ }
            return error;
        }
        data += n;
        offset += n;
        nbytes -= (size_t)n;
    }
    return 0;
}

#endif

/* Store 16 bytes at once where the machine can: one SSE2 or NEON instruction, which a
 * kill cannot divide (signals arrive between instructions). `p` is 16-byte aligned. */
static inline void sw_store_16(char *p, const char *bytes) {
    memcpy(p, bytes, 16);
}

#endif
