// What a program sees of time and chance. Everything it prints must be the same in every run under simulated time; what
// must hold of it is checked here.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/select.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/timerfd.h>
#include <sys/times.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include <x86intrin.h>

static int failed;
#define CHECK(x)                                                   \
    do {                                                           \
        if (!(x)) {                                                \
            printf("line %d: %s (errno %d)\n", __LINE__, #x, errno); \
            failed = 1;                                            \
        }                                                          \
    } while (0)

static int64_t now(clockid_t c) {
    struct timespec t;
    CHECK(clock_gettime(c, &t) == 0);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static volatile sig_atomic_t alarms;
static void on_alarm(int n) { (void)n; alarms++; }

static void spin(int64_t ns, clockid_t c) {
    for (int64_t end = now(c) + ns; now(c) < end;)
        for (volatile int i = 0; i < 1000; i++);
}

static void hex(const char *what, const unsigned char *b, int n) {
    printf("%s ", what);
    for (int i = 0; i < n; i++) printf("%02x", b[i]);
    printf("\n");
}

static void chance(void) {
    unsigned char b[16];
    CHECK(getrandom(b, sizeof b, 0) == sizeof b);
    hex("getrandom", b, sizeof b);
    int fd = open("/dev/urandom", O_RDONLY);
    CHECK(read(fd, b, sizeof b) == sizeof b);
    hex("urandom", b, sizeof b);
    close(fd);
    unsigned long long r = 0;
    CHECK(syscall(SYS_getpid) == getpid());
    __asm__ volatile("rdrand %0" : "=r"(r) : : "cc");
    printf("rdrand %llx\n", r);
    __asm__ volatile("rdseed %0" : "=r"(r) : : "cc");
    printf("rdseed %llx\n", r);
    int here;
    printf("pid %d ppid %d pgrp %d sid %d tid %d stack %p heap %p code %p\n", getpid(), getppid(), getpgrp(), getsid(0),
           (int)syscall(SYS_gettid), (void *)&here, malloc(1), (void *)chance);
    char link[64] = {0};
    CHECK(readlink("/proc/self", link, sizeof link - 1) > 0 && atoi(link) == getpid());
    char path[64], line[512] = {0};
    snprintf(path, sizeof path, "/proc/%d/status", getpid());
    FILE *f = fopen(path, "r");
    CHECK(f != NULL);
    int found = 0;
    while (f && fgets(line, sizeof line, f))
        if (!strncmp(line, "Pid:", 4)) found = atoi(line + 4);
    CHECK(found == getpid());
    if (f) fclose(f);
}

static void clocks(void) {
    int64_t a = now(CLOCK_MONOTONIC), t0 = __rdtsc();
    for (volatile int i = 0; i < 100000; i++);
    int64_t b = now(CLOCK_MONOTONIC), t1 = __rdtsc();
    unsigned aux;
    CHECK(b > a && t1 > t0 && (int64_t)__rdtscp(&aux) > t1);
    int64_t real = now(CLOCK_REALTIME), mono = now(CLOCK_MONOTONIC);
    struct timeval tv;
    gettimeofday(&tv, NULL);
    CHECK(tv.tv_sec - real / 1000000000 <= 1 && time(NULL) - tv.tv_sec <= 1);
    printf("tsc %lld mono %lld real %lld raw %lld boot %lld coarse %lld tai %lld\n", (long long)t1, (long long)b,
           (long long)real, (long long)now(CLOCK_MONOTONIC_RAW), (long long)now(CLOCK_BOOTTIME),
           (long long)now(CLOCK_MONOTONIC_COARSE), (long long)now(CLOCK_TAI));
    CHECK(mono >= b);
    int64_t cpu = now(CLOCK_PROCESS_CPUTIME_ID), thread = now(CLOCK_THREAD_CPUTIME_ID);
    clockid_t id;
    CHECK(clock_getcpuclockid(0, &id) == 0 && now(id) >= cpu);
    CHECK(thread >= 0 && cpu > 0 && cpu <= now(CLOCK_MONOTONIC));
    struct timespec res;
    CHECK(clock_getres(CLOCK_MONOTONIC, &res) == 0 && res.tv_nsec == 1);
    CHECK(syscall(SYS_clock_gettime, 77, &res) == -1 && errno == EINVAL);
    struct tms tms;
    struct rusage u;
    clock_t ticks = times(&tms);
    CHECK(getrusage(RUSAGE_SELF, &u) == 0);
    printf("times %ld %ld %ld rusage %ld.%06ld %ld.%06ld\n", (long)ticks, tms.tms_utime, tms.tms_stime, u.ru_utime.tv_sec,
           u.ru_utime.tv_usec, u.ru_stime.tv_sec, u.ru_stime.tv_usec);
    char up[64] = {0};
    int fd = open("/proc/uptime", O_RDONLY);
    CHECK(read(fd, up, sizeof up - 1) > 0);
    close(fd);
    CHECK(atof(up) < 10);
    printf("uptime %s", up);
}

static void waits(void) {
    const int64_t s = 1000000000;
    struct timespec hour = {3600, 5}, left;
    int64_t a = now(CLOCK_MONOTONIC), cpu = now(CLOCK_PROCESS_CPUTIME_ID);
    CHECK(nanosleep(&hour, NULL) == 0);
    int64_t b = now(CLOCK_MONOTONIC);
    CHECK(b - a >= 3600 * s + 5 && b - a < 3600 * s + s / 100);
    CHECK(now(CLOCK_PROCESS_CPUTIME_ID) - cpu < s / 100);
    struct timespec at = {(b + 7 * s) / s, (b + 7 * s) % s};
    CHECK(clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &at, NULL) == 0);
    int64_t c = now(CLOCK_MONOTONIC);
    CHECK(c >= b + 7 * s && c < b + 7 * s + s / 100);
    CHECK(poll(NULL, 0, 100000) == 0);
    int64_t d = now(CLOCK_MONOTONIC);
    CHECK(d - c >= 100 * s && d - c < 101 * s);
    struct timeval tv = {50, 0};
    CHECK(select(0, NULL, NULL, NULL, &tv) == 0 && tv.tv_sec == 0 && tv.tv_usec == 0);
    int pipes[2];
    CHECK(pipe(pipes) == 0);
    fd_set set;
    FD_ZERO(&set);
    FD_SET(pipes[0], &set);
    struct timespec ts = {20, 0};
    CHECK(pselect(pipes[0] + 1, &set, NULL, NULL, &ts, NULL) == 0);
    int64_t e = now(CLOCK_MONOTONIC);
    CHECK(e - d >= 70 * s && e - d < 71 * s);
    int ep = epoll_create1(0);
    struct epoll_event ev = {.events = EPOLLIN};
    CHECK(epoll_ctl(ep, EPOLL_CTL_ADD, pipes[0], &ev) == 0 && epoll_wait(ep, &ev, 1, 30000) == 0);
    int64_t f = now(CLOCK_MONOTONIC);
    CHECK(f - e >= 30 * s && f - e < 31 * s);
    CHECK(write(pipes[1], "x", 1) == 1 && epoll_wait(ep, &ev, 1, 30000) == 1);
    CHECK(now(CLOCK_MONOTONIC) - f < s / 10);
    sigset_t none;
    sigemptyset(&none);
    sigaddset(&none, SIGUSR2);
    sigprocmask(SIG_BLOCK, &none, NULL);
    struct timespec ten = {10, 0};
    CHECK(sigtimedwait(&none, NULL, &ten) == -1 && errno == EAGAIN);
    uint32_t word = 0;
    CHECK(syscall(SYS_futex, &word, 128, 0, &ten, NULL, 0) == -1 && errno == ETIMEDOUT);
    int64_t g = now(CLOCK_MONOTONIC);
    CHECK(g - f >= 20 * s && g - f < 21 * s);
    // A signal cuts a sleep short, and says what is left.
    struct sigaction sa = {.sa_handler = on_alarm};
    sigaction(SIGALRM, &sa, NULL);
    CHECK(alarm(60) == 0);
    CHECK(nanosleep(&hour, &left) == -1 && errno == EINTR && alarms == 1);
    CHECK(left.tv_sec == 3539 || left.tv_sec == 3540);
    int64_t h = now(CLOCK_MONOTONIC);
    CHECK(h - g >= 60 * s && h - g < 61 * s);
    printf("waited until %lld\n", (long long)h);
}

static void timers(void) {
    const int64_t s = 1000000000;
    alarms = 0;
    struct itimerval it = {{0, 10000}, {0, 10000}};
    CHECK(setitimer(ITIMER_REAL, &it, NULL) == 0);
    int64_t a = now(CLOCK_MONOTONIC);
    while (alarms < 5) pause();
    int64_t b = now(CLOCK_MONOTONIC);
    CHECK(b - a >= s / 20 && b - a < s / 20 + s / 100);
    struct itimerval old;
    it.it_value.tv_usec = it.it_interval.tv_usec = 0;
    CHECK(setitimer(ITIMER_REAL, &it, &old) == 0 && old.it_interval.tv_usec == 10000 && old.it_value.tv_usec <= 10000);
    // Into code that computes.
    alarms = 0;
    signal(SIGVTALRM, on_alarm);
    it.it_value.tv_usec = 1000;
    CHECK(setitimer(ITIMER_VIRTUAL, &it, NULL) == 0);
    long loops = 0;
    for (volatile int i = 0; !alarms; i++) loops++;
    printf("virtual %ld loops\n", loops);
    timer_t t;
    struct sigevent se = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGRTMIN, .sigev_value.sival_int = 42};
    sigset_t rt;
    sigemptyset(&rt);
    sigaddset(&rt, SIGRTMIN);
    sigprocmask(SIG_BLOCK, &rt, NULL);
    CHECK(timer_create(CLOCK_MONOTONIC, &se, &t) == 0);
    struct itimerspec its = {{0, 1000000}, {5, 0}}, its2;
    a = now(CLOCK_MONOTONIC);
    CHECK(timer_settime(t, 0, &its, NULL) == 0 && timer_gettime(t, &its2) == 0 && its2.it_value.tv_sec <= 5);
    siginfo_t si;
    CHECK(sigwaitinfo(&rt, &si) == SIGRTMIN && si.si_value.sival_int == 42 && si.si_code == SI_TIMER);
    b = now(CLOCK_MONOTONIC);
    CHECK(b - a >= 5 * s && b - a < 5 * s + s / 100);
    struct timespec more = {0, 10500000};
    nanosleep(&more, NULL);
    CHECK(sigwaitinfo(&rt, &si) == SIGRTMIN);
    printf("overrun %d\n", timer_getoverrun(t));
    CHECK(timer_delete(t) == 0);
    int fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC);
    struct itimerspec every = {{1, 0}, {2, 0}};
    CHECK(timerfd_settime(fd, 0, &every, NULL) == 0);
    uint64_t n = 0;
    a = now(CLOCK_MONOTONIC);
    CHECK(read(fd, &n, 8) == 8 && n == 1);
    b = now(CLOCK_MONOTONIC);
    CHECK(b - a >= 2 * s - s / 100 && b - a < 2 * s + s / 100);
    struct timespec five = {5, 500000000};
    nanosleep(&five, NULL);
    struct pollfd p = {fd, POLLIN, 0};
    CHECK(poll(&p, 1, 0) == 1 && read(fd, &n, 8) == 8 && n == 5);
    CHECK(timerfd_gettime(fd, &its2) == 0 && its2.it_interval.tv_sec == 1);
    CHECK(poll(&p, 1, -1) == 1);
    close(fd);
}

static void children(void) {
    const int64_t s = 1000000000;
    int64_t a = now(CLOCK_MONOTONIC);
    pid_t pid = fork();
    if (pid == 0) {
        struct timespec t = {2, 0};
        nanosleep(&t, NULL);
        unsigned char b[8];
        getrandom(b, sizeof b, 0);
        hex("child", b, sizeof b);
        printf("child %d of %d\n", getpid(), getppid());
        fflush(stdout);
        spin(s / 1000, CLOCK_PROCESS_CPUTIME_ID);
        _exit(getpid() % 50);
    }
    int status = 0;
    struct rusage u;
    CHECK(wait4(pid, &status, 0, &u) == pid && WIFEXITED(status) && WEXITSTATUS(status) == pid % 50);
    int64_t b = now(CLOCK_MONOTONIC);
    CHECK(b - a >= 2 * s && b - a < 2 * s + s / 10);
    CHECK(u.ru_utime.tv_usec + u.ru_stime.tv_usec >= 1000);
    struct tms tms;
    times(&tms);
    printf("child was %d, %ld us\n", pid, u.ru_utime.tv_usec);
    CHECK(kill(pid, 0) == -1 && errno == ESRCH);
    CHECK(waitpid(-1, NULL, 0) == -1 && errno == ECHILD);
}

int main(void) {
    setvbuf(stdout, NULL, _IOLBF, 0);
    chance();
    clocks();
    waits();
    timers();
    children();
    printf(failed ? "failed\n" : "passed\n");
    return failed;
}
