/* Makes the n-th call of the operating system, or allocation, of scratchwriter fail.
 *
 *   cc -shared -fPIC -O1 -o faults.so faults.c -ldl
 *   LD_PRELOAD=faults.so python ...
 *
 * A call counts if it is about a file below a folder, or comes from a compiled module of
 * the package. Python arms it through ctypes.
 *
 * It also makes a disk slow: each direct write, and each write-back, takes longer.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <link.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

extern void *__libc_malloc(size_t), *__libc_calloc(size_t, size_t);
extern void *__libc_realloc(void *, size_t);

static char folder[4096];
static int64_t fault_at, fault_errno, fault_stays, count;
static int no_fallocate;         /* as on a file system that has none */
static __thread int first_struck; /* the call that is made to fail is the first */
static char what[64]; /* the call that failed first */
static int slow_us, disk_is_full, refuses_write_backs;
static int64_t direct_writes, write_backs;
static struct { uintptr_t start, stop; } modules[16];
static int num_modules;

static int note_module(struct dl_phdr_info *info, size_t size, void *data) {
    (void)size, (void)data;
    if (!strstr(info->dlpi_name, "scratchwriter/")) return 0;
    for (int i = 0; i < info->dlpi_phnum && num_modules < 16; i++) {
        const ElfW(Phdr) *header = &info->dlpi_phdr[i];
        if (header->p_type != PT_LOAD || !(header->p_flags & PF_X)) continue;
        modules[num_modules].start = info->dlpi_addr + header->p_vaddr;
        modules[num_modules++].stop = info->dlpi_addr + header->p_vaddr + header->p_memsz;
    }
    return 0;
}

/* Fail the `at`-th call from now on with `code`; all that come later too if `stays`. If
 * that is 2, the first one, should it write, writes half: as a disk does that fills up. */
void faults_arm(const char *below, int64_t at, int64_t code, int64_t stays) {
    __atomic_store_n(&fault_at, 0, __ATOMIC_SEQ_CST);
    strncpy(folder, below, sizeof folder - 1);
    num_modules = 0;
    dl_iterate_phdr(note_module, NULL);
    count = 0;
    what[0] = 0;
    fault_errno = code;
    fault_stays = stays;
    __atomic_store_n(&fault_at, at, __ATOMIC_SEQ_CST);
}
void faults_without_fallocate(int without) { no_fallocate = without; }
void faults_slow_disk(int us) { __atomic_store_n(&slow_us, us, __ATOMIC_SEQ_CST); }
void faults_full_disk(int is) { __atomic_store_n(&disk_is_full, is, __ATOMIC_SEQ_CST); }
void faults_refuse_write_backs(int refuses) { refuses_write_backs = refuses; }
int64_t faults_direct_writes(void) { return __atomic_load_n(&direct_writes, __ATOMIC_SEQ_CST); }
int64_t faults_write_backs(void) { return __atomic_load_n(&write_backs, __ATOMIC_SEQ_CST); }
void faults_heal(void) { __atomic_store_n(&fault_at, 0, __ATOMIC_SEQ_CST); }
int64_t faults_counted(void) { return count; }
const char *faults_what(void) { return what; }

static int strikes(const char *name) {
    int64_t at = __atomic_load_n(&fault_at, __ATOMIC_SEQ_CST);
    int64_t n;
    if (!at) return 0;
    n = __atomic_add_fetch(&count, 1, __ATOMIC_SEQ_CST);
    first_struck = n == at;
    if (n == at) strncpy(what, name, sizeof what - 1);
    if (n == at || (fault_stays && n > at)) {
        errno = (int)fault_errno;
        return 1;
    }
    return 0;
}
static int is_ours(const void *caller) {
    for (int i = 0; i < num_modules; i++)
        if ((uintptr_t)caller >= modules[i].start && (uintptr_t)caller < modules[i].stop)
            return 1;
    return 0;
}
static int is_path(const char *path) { return fault_at && path && strstr(path, folder); }
static int is_fd(int fd) {
    char link[64], path[4096];
    ssize_t n;
    if (!fault_at || fd < 0) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    n = readlink(link, path, sizeof path - 1);
    if (n <= 0) return 0;
    path[n] = 0;
    return strstr(path, folder) != NULL;
}
#define CALLER __builtin_return_address(0)
#define NEXT(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

void *malloc(size_t n) {
    if (fault_at && is_ours(CALLER) && strikes("malloc")) { errno = ENOMEM; return NULL; }
    return __libc_malloc(n);
}
void *calloc(size_t n, size_t m) {
    if (fault_at && is_ours(CALLER) && strikes("calloc")) { errno = ENOMEM; return NULL; }
    return __libc_calloc(n, m);
}
void *realloc(void *p, size_t n) {
    if (fault_at && is_ours(CALLER) && strikes("realloc")) { errno = ENOMEM; return NULL; }
    return __libc_realloc(p, n);
}

#define OPEN(name)                                                        \
    int name(const char *path, int flags, ...) {                          \
        va_list args;                                                     \
        mode_t mode;                                                      \
        va_start(args, flags);                                            \
        mode = va_arg(args, mode_t);                                      \
        va_end(args);                                                     \
        if (is_path(path) && strikes(#name)) return -1;                   \
        return NEXT(name)(path, flags, mode);                             \
    }
OPEN(open)
OPEN(open64)

#define MAP(name, offset_t)                                               \
    void *name(void *p, size_t n, int prot, int flags, int fd, offset_t at) { \
        if (((fd >= 0 && is_fd(fd)) || (fault_at && is_ours(CALLER))) && strikes(#name)) { \
            errno = ENOMEM;                                               \
            return MAP_FAILED;                                            \
        }                                                                 \
        return NEXT(name)(p, n, prot, flags, fd, at);                     \
    }
MAP(mmap, off_t)
MAP(mmap64, off64_t)

int mprotect(void *p, size_t n, int prot) {
    if (fault_at && is_ours(CALLER) && strikes("mprotect")) { errno = ENOMEM; return -1; }
    return NEXT(mprotect)(p, n, prot);
}
int madvise(void *p, size_t n, int advice) {
    if (fault_at && is_ours(CALLER) && strikes("madvise")) { errno = ENOMEM; return -1; }
    return NEXT(madvise)(p, n, advice);
}

static void use_disk(int64_t *counter) {
    __atomic_add_fetch(counter, 1, __ATOMIC_SEQ_CST);
    usleep((useconds_t)__atomic_load_n(&slow_us, __ATOMIC_SEQ_CST));
}
/* A write that fails does so after its time, and even if there is room again by then. */
static int is_refused(int fd) {
    int is_full = __atomic_load_n(&disk_is_full, __ATOMIC_SEQ_CST);
    if (!(fcntl(fd, F_GETFL) & O_DIRECT)) return 0;
    use_disk(&direct_writes);
    errno = ENOSPC;
    return is_full;
}

#define OF_FD(type, name, parameters, arguments)                          \
    type name parameters {                                                \
        if (is_fd(fd) && strikes(#name)) return -1;                       \
        return NEXT(name) arguments;                                      \
    }
#define WRITE(name, parameters, arguments, half)                          \
    ssize_t name parameters {                                             \
        if (is_refused(fd)) return -1;                                    \
        if (is_fd(fd) && strikes(#name)) {                                \
            if (fault_stays != 2 || !first_struck || n < 2) return -1;    \
            return NEXT(name) half;                                       \
        }                                                                 \
        return NEXT(name) arguments;                                      \
    }
WRITE(write, (int fd, const void *data, size_t n), (fd, data, n), (fd, data, n / 2))
WRITE(pwrite, (int fd, const void *data, size_t n, off_t at), (fd, data, n, at),
      (fd, data, n / 2, at))
WRITE(pwrite64, (int fd, const void *data, size_t n, off64_t at), (fd, data, n, at),
      (fd, data, n / 2, at))
OF_FD(int, ftruncate, (int fd, off_t n), (fd, n))
OF_FD(int, ftruncate64, (int fd, off64_t n), (fd, n))
#define FALLOCATE(name, offset_t)                                         \
    int name(int fd, int mode, offset_t at, offset_t n) {                 \
        if (no_fallocate && is_fd(fd)) {                                  \
            errno = EOPNOTSUPP;                                           \
            return -1;                                                    \
        }                                                                 \
        if (is_fd(fd) && strikes(#name)) return -1;                       \
        return NEXT(name)(fd, mode, at, n);                               \
    }
FALLOCATE(fallocate, off_t)
FALLOCATE(fallocate64, off64_t)
OF_FD(int, fsync, (int fd), (fd))
int sync_file_range(int fd, off64_t at, off64_t n, unsigned flags) {
    use_disk(&write_backs);
    if (refuses_write_backs) { errno = EIO; return -1; }
    if (is_fd(fd) && strikes("sync_file_range")) return -1;
    return NEXT(sync_file_range)(fd, at, n, flags);
}

#define OF_PATH(name, parameters, arguments)                              \
    int name parameters {                                                 \
        if (is_path(path) && strikes(#name)) return -1;                   \
        return NEXT(name) arguments;                                      \
    }
OF_PATH(truncate, (const char *path, off_t n), (path, n))
OF_PATH(truncate64, (const char *path, off64_t n), (path, n))
OF_PATH(rename, (const char *path, const char *to), (path, to))
OF_PATH(mkdir, (const char *path, mode_t mode), (path, mode))
