/* The copy of a frame into its slot.
 *
 * Frames are stored past the cache (non-temporal stores, x86-64 only): they are not read
 * soon, and the memory they go to need not be fetched first. Very small ones stay in the
 * cache.
 */
#ifndef SCRATCHWRITER_COPY_H
#define SCRATCHWRITER_COPY_H

#include <stdint.h>
#include <string.h>

/* Measured into memory that is in no cache: from 4 KiB on faster than memcpy, twice as
 * fast from 32 KiB on; below it makes no difference. */
#define SW_STREAM_NBYTES 4096

#if defined(__x86_64__) && defined(__SSE2__)

#include <emmintrin.h>

static inline void sw_copy_past_cache(char *to, const char *from, int64_t nbytes) {
    int64_t head = -(intptr_t)to & 63;
    memcpy(to, from, head);
    to += head;
    from += head;
    nbytes -= head;
    for (; nbytes >= 64; nbytes -= 64, to += 64, from += 64) {
        _mm_prefetch(from + 1024, _MM_HINT_T0);
        __m128i a = _mm_loadu_si128((const __m128i *)(from + 0));
        __m128i b = _mm_loadu_si128((const __m128i *)(from + 16));
        __m128i c = _mm_loadu_si128((const __m128i *)(from + 32));
        __m128i d = _mm_loadu_si128((const __m128i *)(from + 48));
        _mm_stream_si128((__m128i *)(to + 0), a);
        _mm_stream_si128((__m128i *)(to + 16), b);
        _mm_stream_si128((__m128i *)(to + 32), c);
        _mm_stream_si128((__m128i *)(to + 48), d);
    }
    _mm_sfence(); /* before the frame is committed */
    memcpy(to, from, nbytes);
}

#else

#define sw_copy_past_cache memcpy

#endif

/* Copy a frame. It may be a view of the very array that it goes into. */
static inline void sw_copy(char *to, const char *from, int64_t nbytes) {
    if (to < from + nbytes && from < to + nbytes)
        memmove(to, from, nbytes);
    else if (nbytes >= SW_STREAM_NBYTES)
        sw_copy_past_cache(to, from, nbytes);
    else
        memcpy(to, from, nbytes);
}

/* Copy a frame whose rows begin `pitch_nbytes` from each other. */
static inline void sw_copy_rows(char *to, const char *from, int64_t rows, int64_t row_nbytes,
                                int64_t pitch_nbytes) {
    if (pitch_nbytes == row_nbytes) {
        sw_copy(to, from, rows * row_nbytes);
        return;
    }
    for (; rows; rows--, to += row_nbytes, from += pitch_nbytes)
        sw_copy(to, from, row_nbytes);
}

#endif
