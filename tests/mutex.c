/* Threads that count together under the mutex of platform.h.
 *
 *   cc -I src/scratchwriter/_region tests/mutex.c -o mutex -lpthread && ./mutex
 *
 * Prints the sum, which is right if nobody was in the way of anybody else. Some hold the
 * mutex for long now and then, so that others fall asleep waiting for it.
 */
#define _GNU_SOURCE
#include <stdio.h>

#include "platform.h"

enum { THREADS = 4, ROUNDS = 100000 };

static sw_mutex mutex;
static int64_t sum, inside;

static void *count(void *unused) {
    (void)unused;
    for (int i = 0; i < ROUNDS; i++) {
        if (i % 3 || !sw_mutex_try(&mutex)) sw_mutex_lock(&mutex);
        if (inside++) sum = INT64_MIN / 2; /* somebody else is here */
        sum++;
        if (i % 1000 == 0) usleep(50);
        inside--;
        sw_mutex_unlock(&mutex);
    }
    return NULL;
}

int main(void) {
    pthread_t threads[THREADS];
    sw_mutex_init(&mutex);
    for (int i = 0; i < THREADS; i++) pthread_create(&threads[i], NULL, count, NULL);
    for (int i = 0; i < THREADS; i++) pthread_join(threads[i], NULL);
    sw_mutex_destroy(&mutex);
    printf("%lld\n", (long long)sum);
    return 0;
}
