// What can be waited for: eventfd, timerfd, signalfd, inotify, epoll, POSIX timers.
#include "check.h"
#include <poll.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/inotify.h>
#include <sys/select.h>
#include <sys/signalfd.h>
#include <sys/timerfd.h>
#include <time.h>

static int readable(int fd, int ms) {
    struct pollfd p = {fd, POLLIN, 0};
    return poll(&p, 1, ms);
}

static void counters(void) {
    int fd = eventfd(3, EFD_SEMAPHORE | EFD_NONBLOCK);
    uint64_t n = 0;
    SHOW(read(fd, &n, 8));
    SHOW(n);
    n = 5;
    SHOW(write(fd, &n, 8));
    SHOW(read(fd, &n, 4));
    for (int i = 0; i < 7; i++) read(fd, &n, 8);
    SHOW(read(fd, &n, 8));
    close(fd);
    fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
    struct itimerspec its = {{0, 5000000}, {0, 5000000}}, old;
    SHOW(timerfd_settime(fd, 0, &its, NULL));
    SHOW(readable(fd, 1000));
    SHOW(read(fd, &n, 8));
    SHOW(n >= 1);
    SHOW(timerfd_gettime(fd, &old));
    SHOW(old.it_interval.tv_nsec);
    close(fd);
}

static void signals(void) {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    sigaddset(&set, SIGALRM);
    sigaddset(&set, SIGRTMIN + 3);
    sigprocmask(SIG_BLOCK, &set, NULL);
    int fd = signalfd(-1, &set, SFD_NONBLOCK | SFD_CLOEXEC);
    struct signalfd_siginfo info[4];
    SHOW(read(fd, info, sizeof info));
    SHOW(readable(fd, 0));
    raise(SIGUSR1);
    SHOW(readable(fd, 0));
    int copy = dup(fd);
    SHOW(readable(copy, 0));
    union sigval v = {.sival_int = 77};
    sigqueue(getpid(), SIGRTMIN + 3, v);
    SHOW(read(fd, info, 10));
    SHOW(read(fd, info, sizeof info) / 128);
    SHOW(info[0].ssi_signo);
    SHOW(info[0].ssi_pid == (unsigned)getpid());
    SHOW(info[1].ssi_signo == (unsigned)SIGRTMIN + 3);
    SHOW(info[1].ssi_int);
    SHOW(info[1].ssi_code);
    SHOW(readable(fd, 0));
    SHOW(readable(copy, 0));
    // one that comes from outside while somebody waits
    int ep = epoll_create1(0);
    struct epoll_event ev = {EPOLLIN, {.fd = fd}}, got;
    SHOW(epoll_ctl(ep, EPOLL_CTL_ADD, fd, &ev));
    ualarm(20000, 0);
    SHOW(epoll_wait(ep, &got, 1, 5000));
    SHOW(got.data.fd == fd);
    SHOW(read(copy, info, sizeof info) / 128);
    SHOW(info[0].ssi_signo);
    struct timespec ts = {0, 1000000};
    SHOW(syscall(SYS_epoll_pwait2, ep, &got, 1, &ts, NULL, 8));
    // blocking read
    fcntl(fd, F_SETFL, 0);
    ualarm(20000, 0);
    SHOW(read(fd, info, sizeof info) / 128);
    SHOW(info[0].ssi_signo);
    // another set for the same descriptor
    sigdelset(&set, SIGUSR1);
    SHOW(signalfd(fd, &set, 0) == fd);
    raise(SIGUSR1);
    SHOW(readable(fd, 0));
    SHOW(signalfd(0, &set, 0));
    SHOW(signalfd(99, &set, 0));
    SHOW(signalfd(-1, &set, 0x1234));
    struct timespec none = {0, 0};
    sigaddset(&set, SIGUSR1);
    SHOW(sigtimedwait(&set, NULL, &none));
    close(fd), close(copy), close(ep);
    sigprocmask(SIG_UNBLOCK, &set, NULL);
}

static volatile int ticks, value, code, overruns;
static timer_t timer;
static void on_timer(int s, siginfo_t *info, void *c) {
    (void)s, (void)c;
    ticks++;
    value = info->si_value.sival_int;
    code = info->si_code;
    overruns += timer_getoverrun(timer);
}

static void timers(void) {
    struct sigaction sa = {.sa_sigaction = on_timer, .sa_flags = SA_SIGINFO | SA_RESTART};
    sigaction(SIGRTMIN + 1, &sa, NULL);
    struct sigevent ev = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGRTMIN + 1, .sigev_value.sival_int = 42};
    SHOW(timer_create(CLOCK_MONOTONIC, &ev, &timer));
    struct itimerspec its = {{0, 0}, {0, 10000000}}, now;
    SHOW(timer_settime(timer, 0, &its, NULL));
    while (!ticks) {} // busy: the signal interrupts a loop
    SHOW(ticks);
    SHOW(value);
    SHOW(code == SI_TIMER);
    SHOW(timer_gettime(timer, &now));
    SHOW(now.it_value.tv_sec + now.it_value.tv_nsec);
    its.it_interval.tv_nsec = 2000000;
    SHOW(timer_settime(timer, 0, &its, NULL));
    while (ticks < 5) pause();
    SHOW(ticks >= 5);
    // expirations while it is blocked are one signal and an overrun
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGRTMIN + 1);
    sigprocmask(SIG_BLOCK, &set, NULL);
    usleep(50000);
    siginfo_t info;
    SHOW(sigwaitinfo(&set, &info) == SIGRTMIN + 1);
    SHOW(info.si_value.sival_int);
    SHOW(timer_delete(timer));
    struct timespec none = {0, 0};
    while (sigtimedwait(&set, NULL, &none) > 0) {}
    sigprocmask(SIG_UNBLOCK, &set, NULL);
    int before = ticks;
    usleep(10000);
    SHOW(ticks == before);
    SHOW(timer_settime(timer, 0, &its, NULL));
    // absolute time, and no signal at all
    struct sigevent none_ev = {.sigev_notify = SIGEV_NONE};
    SHOW(timer_create(CLOCK_REALTIME, &none_ev, &timer));
    struct timespec at;
    clock_gettime(CLOCK_REALTIME, &at);
    its = (struct itimerspec){{0, 0}, {at.tv_sec + 100, 0}};
    SHOW(timer_settime(timer, TIMER_ABSTIME, &its, NULL));
    SHOW(timer_gettime(timer, &now));
    SHOW(now.it_value.tv_sec > 90 && now.it_value.tv_sec <= 100);
    SHOW(timer_getoverrun(timer));
    SHOW(timer_delete(timer));
    timer_t cpu;
    ticks = 0;
    SHOW(timer_create(CLOCK_PROCESS_CPUTIME_ID, &ev, &cpu));
    its = (struct itimerspec){{0, 0}, {0, 20000000}};
    SHOW(timer_settime(cpu, 0, &its, NULL));
    while (!ticks) {}
    SHOW(timer_delete(cpu));
    SHOW(syscall(SYS_timer_create, 99, NULL, &cpu));
    ev.sigev_signo = 100;
    SHOW(timer_create(CLOCK_MONOTONIC, &ev, &cpu));
}

static volatile int called;
static void in_a_thread(union sigval v) { __atomic_add_fetch(&called, v.sival_int, __ATOMIC_SEQ_CST); }

// The C library's own signal, to a thread of its own.
static void thread_timer(void) {
    struct sigevent ev = {.sigev_notify = SIGEV_THREAD, .sigev_value.sival_int = 5};
    ev.sigev_notify_function = in_a_thread;
    timer_t t;
    SHOW(timer_create(CLOCK_MONOTONIC, &ev, &t));
    struct itimerspec its = {{0, 0}, {0, 1000000}};
    SHOW(timer_settime(t, 0, &its, NULL));
    while (!called) usleep(1000);
    SHOW(called);
    SHOW(timer_delete(t));
}

static void watches(void) {
    int fd = inotify_init1(IN_NONBLOCK);
    char buf[4096];
    SHOW(inotify_add_watch(fd, ".", IN_CREATE | IN_DELETE | IN_MOVED_TO));
    SHOW(read(fd, buf, sizeof buf));
    close(open("watched", O_CREAT | O_WRONLY, 0600));
    rename("watched", "moved");
    unlink("moved");
    int n = read(fd, buf, sizeof buf);
    for (int at = 0; at < n;) {
        struct inotify_event *e = (void *)(buf + at);
        printf("mask %x name %s\n", e->mask, e->name);
        at += sizeof *e + e->len;
    }
    SHOW(inotify_rm_watch(fd, 1));
    SHOW(inotify_rm_watch(fd, 7));
    SHOW(inotify_add_watch(fd, "nosuch", IN_CREATE));
    close(fd);
}

static void waits(void) {
    int p[2];
    pipe(p);
    fd_set set;
    FD_ZERO(&set);
    FD_SET(p[0], &set);
    struct timespec ts = {0, 1000000};
    SHOW(pselect(p[0] + 1, &set, NULL, NULL, &ts, NULL));
    write(p[1], "x", 1);
    FD_SET(p[0], &set);
    SHOW(pselect(p[0] + 1, &set, NULL, NULL, &ts, NULL));
    SHOW(FD_ISSET(p[0], &set) != 0);
    struct pollfd pf[2] = {{p[0], POLLIN, 0}, {-1, POLLIN, 0}};
    SHOW(ppoll(pf, 2, &ts, NULL));
    SHOW(pf[0].revents);
    int ep = epoll_create1(EPOLL_CLOEXEC);
    struct epoll_event ev = {EPOLLIN | EPOLLET, {.u64 = 0x123456789}}, got[3];
    SHOW(epoll_ctl(ep, EPOLL_CTL_ADD, p[0], &ev));
    SHOW(epoll_ctl(ep, EPOLL_CTL_ADD, p[0], &ev));
    SHOW(epoll_wait(ep, got, 3, 0));
    SHOW(got[0].data.u64);
    SHOW(epoll_wait(ep, got, 3, 0));
    SHOW(epoll_ctl(ep, EPOLL_CTL_DEL, p[0], NULL));
    SHOW(epoll_wait(ep, got, 0, 0));
}

int main(void) {
    start();
    counters();
    waits();
    watches();
    signals();
    timers();
    thread_timer();
    return 0;
}
