"""What platform.h has for the compiled modules."""

from libc.stdint cimport int64_t, uintptr_t

cdef extern from "platform.h" nogil:
    ctypedef struct sw_mutex:
        pass
    void sw_mutex_init(sw_mutex* m)
    void sw_mutex_destroy(sw_mutex* m)
    bint sw_mutex_try(sw_mutex* m)
    void sw_mutex_lock(sw_mutex* m)
    void sw_mutex_unlock(sw_mutex* m)

    int64_t SW_NO_THREAD
    int64_t sw_this_thread()

    int64_t sw_load_acquire(const int64_t* p)
    void sw_store_release(int64_t* p, int64_t value)
    void sw_add(int64_t* p, int64_t value)
    void sw_raise(int64_t* p, int64_t value)
    void sw_store_16(char* p, const char* data)

    int64_t sw_now_ns()
    void sw_nap(int64_t nap_ns)
    void sw_touch(char* p)
    int sw_pwrite(int fd, const char* data, size_t nbytes, int64_t offset)
    int sw_append(int fd, const char* data, size_t nbytes, int64_t end)

    # Linux only so far
    ctypedef struct sw_thread:
        pass
    int sw_thread_start(sw_thread* thread, void* (*run)(void*) noexcept nogil, void* arg)
    void sw_thread_join(sw_thread thread)
    void sw_thread_waits_its_turn()
    void sw_yield()
    int sw_write_back(int fd, int64_t offset, int64_t nbytes)
    ctypedef struct sw_alarm:
        pass
    void sw_alarm_init(sw_alarm* alarm)
    void sw_alarm_destroy(sw_alarm* alarm)
    bint sw_alarm_wait(sw_alarm* alarm, int64_t timeout_ns)
    void sw_alarm_ring(sw_alarm* alarm)
