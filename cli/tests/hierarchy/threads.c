// Threads with a fixed amount of work: locks, conditions, barriers, a pipe, sleeps, spinning. What it prints must be the
// same in every run under simulated time.
#define _GNU_SOURCE
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum { THREADS = 4, ROUNDS = 300 };

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t condition = PTHREAD_COND_INITIALIZER;
static pthread_barrier_t barrier;
static atomic_long counter;
static long guarded;
static uint64_t order = 1469598103934665603ull;
static int pipes[2];
static char *data;

static long long now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static void *work(void *arg) {
    long me = (long)arg;
    for (int i = 0; i < ROUNDS; i++) {
        pthread_mutex_lock(&mutex);
        order = (order ^ (uint64_t)me) * 1099511628211ull;
        guarded++;
        if (guarded % 7 == 0) pthread_cond_broadcast(&condition);
        pthread_mutex_unlock(&mutex);
        for (int k = 0; k < 64 * (me + 1); k++) data[(k * 64 + me * 4096 + i * 64) % (1 << 20)]++;
        atomic_fetch_add(&counter, 1);
        if (i % 50 == 0) sched_yield();
        if (i % 100 == me) {
            struct timespec t = {0, 1000 * (me + 1)};
            nanosleep(&t, NULL);
        }
    }
    pthread_barrier_wait(&barrier);
    if (write(pipes[1], &me, sizeof me) != sizeof me) abort();
    return (void *)(long)syscall(SYS_gettid);
}

static void *reader(void *arg) {
    (void)arg;
    long sum = 0;
    for (int i = 0; i < THREADS; i++) {
        long v;
        struct pollfd p = {pipes[0], POLLIN, 0};
        int tries = 0;
        while (poll(&p, 1, 1) == 0) tries++;
        if (read(pipes[0], &v, sizeof v) != sizeof v) abort();
        sum = sum * 10 + v;
        printf("read %ld after %d tries at %lld\n", v, tries, now());
    }
    return (void *)sum;
}

static void *waiter(void *arg) {
    (void)arg;
    long seen = 0;
    pthread_mutex_lock(&mutex);
    while (guarded < THREADS * ROUNDS) {
        struct timespec t;
        clock_gettime(CLOCK_REALTIME, &t);
        t.tv_sec += 1;
        pthread_cond_timedwait(&condition, &mutex, &t);
        seen++;
    }
    pthread_mutex_unlock(&mutex);
    return (void *)seen;
}

int main(void) {
    setvbuf(stdout, NULL, _IOLBF, 0);
    data = malloc(1 << 20);
    pthread_barrier_init(&barrier, NULL, THREADS);
    if (pipe(pipes) != 0) abort();
    pthread_t t[THREADS], r, w;
    pthread_create(&r, NULL, reader, NULL);
    pthread_create(&w, NULL, waiter, NULL);
    for (long i = 0; i < THREADS; i++) pthread_create(&t[i], NULL, work, (void *)i);
    for (int i = 0; i < THREADS; i++) {
        void *tid;
        pthread_join(t[i], &tid);
        printf("thread %ld\n", (long)tid);
    }
    void *sum, *seen;
    pthread_join(r, &sum);
    pthread_join(w, &seen);
    printf("counter %ld guarded %ld order %016llx pipe %ld woken %ld at %lld\n", (long)counter, guarded,
           (unsigned long long)order, (long)sum, (long)seen, now());
    return counter == THREADS * ROUNDS && guarded == THREADS * ROUNDS ? 0 : 1;
}
