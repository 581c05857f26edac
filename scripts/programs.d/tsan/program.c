// Free of races: every shared word is atomic, under a lock, or handed over.
#include <pthread.h>
#include <semaphore.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
enum { THREADS = 6, TURNS = 2000 };
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t condition = PTHREAD_COND_INITIALIZER;
static pthread_rwlock_t rwlock = PTHREAD_RWLOCK_INITIALIZER;
static pthread_barrier_t barrier;
static sem_t full;
static atomic_long hits;
static long guarded, written;
static int turn;
static long *handed;
static void *work(void *argument) {
    long me = (long)argument;
    pthread_barrier_wait(&barrier);
    for (int i = 0; i < TURNS; i++) {
        atomic_fetch_add_explicit(&hits, 1, memory_order_relaxed);
        pthread_mutex_lock(&mutex);
        guarded += me;
        pthread_mutex_unlock(&mutex);
        if (i % 100 == 0) {
            pthread_rwlock_wrlock(&rwlock);
            written++;
        } else {
            pthread_rwlock_rdlock(&rwlock);
            if (written < 0) abort();
        }
        pthread_rwlock_unlock(&rwlock);
    }
    pthread_mutex_lock(&mutex);
    while (turn != me) pthread_cond_wait(&condition, &mutex);
    turn++;
    pthread_cond_broadcast(&condition);
    pthread_mutex_unlock(&mutex);
    long *result = malloc(sizeof *result);
    *result = me * me;
    if (me == THREADS - 1) {
        handed = result;
        sem_post(&full);
        return 0;
    }
    return result;
}
int main(void) {
    pthread_t threads[THREADS];
    pthread_barrier_init(&barrier, 0, THREADS);
    sem_init(&full, 0, 0);
    long sum = 0;
    for (long i = 0; i < THREADS; i++) pthread_create(&threads[i], 0, work, (void *)i);
    sem_wait(&full);
    sum += *handed;
    free(handed);
    for (int i = 0; i < THREADS; i++) {
        void *result;
        pthread_join(threads[i], &result);
        if (result) sum += *(long *)result;
        free(result);
    }
    printf("%ld %ld %ld %ld\n", atomic_load(&hits), guarded, written, sum);
    return sum == 55 ? 0 : 1;
}
