/* Makes the next calls of sync_file_range fail, as a device does that has lost data.
 *
 *   cc -shared -fPIC -o sync.so edge_sync.c -ldl
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>

static int to_fail, failed;

void sync_fails(int times) { __atomic_store_n(&to_fail, times, __ATOMIC_SEQ_CST); }
int sync_failed(void) { return __atomic_load_n(&failed, __ATOMIC_SEQ_CST); }

int sync_file_range(int fd, off64_t at, off64_t nbytes, unsigned flags) {
    if (__atomic_load_n(&to_fail, __ATOMIC_SEQ_CST) > 0) {
        __atomic_sub_fetch(&to_fail, 1, __ATOMIC_SEQ_CST);
        __atomic_add_fetch(&failed, 1, __ATOMIC_SEQ_CST);
        errno = EIO; /* the kernel tells it once: an fsync that comes later succeeds */
        return -1;
    }
    return ((__typeof__(&sync_file_range))dlsym(RTLD_NEXT, "sync_file_range"))(
        fd, at, nbytes, flags);
}
