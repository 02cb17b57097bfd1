/* Threads that count together under the mutex of platform.h, and one that is greedy.
 *
 *   cc -I src/scratchwriter/_region tests/mutex.c -o mutex -lpthread && ./mutex
 *
 * Prints the sum, which is right if nobody was in the way of anybody else. Some hold the
 * mutex for long now and then, so that others fall asleep waiting for it. Then one takes it
 * again and again without a pause, and ends only if another gets it often enough.
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

static int64_t turns;

static void *take_turns(void *unused) {
    (void)unused;
    for (int i = 0; i < 200; i++) {
        sw_mutex_lock(&mutex);
        turns++;
        sw_mutex_unlock(&mutex);
    }
    return NULL;
}

static void be_greedy(void) {
    pthread_t other;
    int64_t done = 0;
    pthread_create(&other, NULL, take_turns, NULL);
    while (done < 200) {
        if (!sw_mutex_try(&mutex)) sw_mutex_lock(&mutex);
        for (volatile int i = 0; i < 300000; i++) { /* much longer than the pause */ }
        done = turns;
        sw_mutex_unlock(&mutex);
    }
    pthread_join(other, NULL);
}

int main(void) {
    pthread_t threads[THREADS];
    sw_mutex_init(&mutex);
    for (int i = 0; i < THREADS; i++) pthread_create(&threads[i], NULL, count, NULL);
    for (int i = 0; i < THREADS; i++) pthread_join(threads[i], NULL);
    be_greedy();
    sw_mutex_destroy(&mutex);
    printf("%lld\n", (long long)sum);
    return 0;
}
