// The process: identity, limits, prctl, scheduling, resources, and what is refused.
#include "check.h"
#include <grp.h>
#include <linux/capability.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/time.h>
#include <sys/times.h>
#include <sys/utsname.h>
#include <sys/wait.h>

static void identity(void) {
    uid_t r, e, s;
    SHOW(getresuid(&r, &e, &s));
    SHOW(r == getuid() && e == geteuid());
    SHOW(setuid(getuid()));
    SHOW(setgid(getgid()));
    SHOW(setresuid(-1, -1, -1));
    SHOW(setreuid(-1, getuid()));
    SHOW(setresgid(-1, getgid(), -1));
    SHOW(syscall(SYS_setfsuid, getuid()) == getuid());
    gid_t groups[64];
    SHOW(getgroups(64, groups));
    SHOW(getgroups(0, NULL));
    SHOW(getpgrp() == getpgid(0));
    SHOW(getsid(0) == getsid(getpid()));
    SHOW(getppid() > 0);
    SHOW(umask(027));
    SHOW(umask(022));
    struct utsname u;
    SHOW(uname(&u));
    printf("%s %s %s\n", u.sysname, u.release, u.machine);
    struct __user_cap_header_struct h = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct d[2];
    SHOW(syscall(SYS_capget, &h, d));
    printf("%x %x %x\n", d[0].effective, d[0].permitted, d[1].effective);
    h.version = 1;
    SHOW(syscall(SYS_capget, &h, d));
    printf("%x\n", h.version);
    h.version = _LINUX_CAPABILITY_VERSION_1;
    d[1].effective = 0x1234;
    SHOW(syscall(SYS_capget, &h, d));
    printf("%x\n", d[1].effective);
}

static void names(void) {
    char name[17] = "";
    SHOW(prctl(PR_SET_NAME, "a name that is too long"));
    SHOW(prctl(PR_GET_NAME, name));
    puts(name);
    int n = 0;
    SHOW(prctl(PR_SET_PDEATHSIG, SIGTERM));
    SHOW(prctl(PR_GET_PDEATHSIG, &n));
    SHOW(n);
    SHOW(prctl(PR_SET_PDEATHSIG, 999));
    SHOW(prctl(PR_SET_PDEATHSIG, 0));
    SHOW(prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0));
    SHOW(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
    SHOW(prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0));
    SHOW(prctl(PR_GET_SECUREBITS));
    SHOW(prctl(PR_CAPBSET_READ, 0));
    SHOW(prctl(PR_CAPBSET_READ, 999));
    SHOW(prctl(PR_SET_CHILD_SUBREAPER, 1));
    SHOW(prctl(PR_GET_CHILD_SUBREAPER, &n));
    SHOW(n);
    SHOW(prctl(PR_GET_TIMERSLACK));
    SHOW(prctl(PR_SET_TIMERSLACK, 60000));
    SHOW(prctl(PR_GET_TIMERSLACK));
    SHOW(prctl(PR_GET_DUMPABLE));
    SHOW(prctl(PR_GET_SECCOMP));
    SHOW(prctl(PR_GET_KEEPCAPS));
    SHOW(prctl(12345));
    void *p = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    SHOW(prctl(PR_SET_VMA, PR_SET_VMA_ANON_NAME, p, 4096, "named") == 0 || errno == EINVAL);
}

static void scheduling(void) {
    cpu_set_t set, one;
    SHOW(sched_getaffinity(0, sizeof set, &set));
    int cpus = CPU_COUNT(&set);
    SHOW(cpus);
    SHOW(sysconf(_SC_NPROCESSORS_ONLN));
    CPU_ZERO(&one);
    for (int i = 0; i < 1024; i++) if (CPU_ISSET(i, &set)) { CPU_SET(i, &one); break; }
    SHOW(sched_setaffinity(0, sizeof one, &one));
    CPU_ZERO(&set);
    SHOW(sched_getaffinity(0, sizeof set, &set));
    SHOW(CPU_COUNT(&set));
    SHOW(CPU_EQUAL(&set, &one));
    unsigned cpu = 999, node = 999;
    SHOW(getcpu(&cpu, &node));
    SHOW(CPU_ISSET(cpu, &set) != 0);
    CPU_ZERO(&one);
    SHOW(sched_setaffinity(0, sizeof one, &one));
    SHOW(syscall(SYS_sched_getaffinity, 0, 1, &set));
    SHOW(sched_getscheduler(0));
    struct sched_param sp = {7};
    SHOW(sched_getparam(0, &sp));
    SHOW(sp.sched_priority);
    SHOW(sched_setscheduler(0, SCHED_BATCH, &sp));
    SHOW(sched_getscheduler(0));
    SHOW(sched_get_priority_max(SCHED_FIFO));
    SHOW(sched_get_priority_min(99));
    struct { uint32_t size, policy; uint64_t flags; int32_t nice; uint32_t prio; uint64_t a, b, c; } attr = {48};
    SHOW(syscall(SYS_sched_getattr, 0, &attr, sizeof attr, 0));
    printf("%u %d\n", attr.policy, attr.nice);
    SHOW(syscall(SYS_sched_setattr, 0, &attr, 0));
    SHOW(getpriority(PRIO_PROCESS, 0));
    SHOW(setpriority(PRIO_PROCESS, 0, 5));
    SHOW(getpriority(PRIO_PROCESS, 0));
    SHOW(syscall(SYS_ioprio_get, 1, 0) >= 0);
    SHOW(syscall(SYS_membarrier, 0, 0, 0) & 8);
    SHOW(syscall(SYS_membarrier, 16, 0, 0));
    SHOW(syscall(SYS_membarrier, 8, 0, 0));
    SHOW(syscall(SYS_membarrier, 3, 0, 0));
    SHOW(syscall(SYS_kcmp, getpid(), getpid(), 0, 0, 0));
    SHOW(syscall(SYS_kcmp, getpid(), getpid(), 1, 0, 0));
    SHOW(syscall(SYS_kcmp, getpid(), getpid(), 0, 0, 500));
    SHOW(syscall(SYS_kcmp, getpid(), getpid(), 99, 0, 0));
}

static void resources(void) {
    struct rusage u;
    SHOW(getrusage(RUSAGE_SELF, &u));
    SHOW(u.ru_maxrss > 100 && u.ru_maxrss < 100000);
    SHOW(u.ru_utime.tv_sec >= 0);
    SHOW(getrusage(RUSAGE_CHILDREN, &u));
    SHOW(u.ru_utime.tv_sec);
    SHOW(getrusage(99, &u));
    struct tms t;
    SHOW(times(&t) != -1);
    struct rlimit r;
    SHOW(getrlimit(RLIMIT_STACK, &r));
    SHOW(r.rlim_cur);
    SHOW(getrlimit(99, &r));
    r = (struct rlimit){5, 4};
    SHOW(setrlimit(RLIMIT_CORE, &r));
    SHOW(syscall(SYS_prlimit64, getpid(), RLIMIT_CORE, NULL, &r));
    // address space and data
    r = (struct rlimit){300 << 20, RLIM_INFINITY};
    SHOW(setrlimit(RLIMIT_AS, &r));
    void *p = mmap(NULL, 400 << 20, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    printf("%s\n", p == MAP_FAILED ? strerrorname_np(errno) : "mapped");
    p = mmap(NULL, 100 << 20, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    printf("%s\n", p == MAP_FAILED ? strerrorname_np(errno) : "mapped");
    SHOW(mremap(p, 100 << 20, 350 << 20, MREMAP_MAYMOVE) == MAP_FAILED);
    SHOW(sbrk(400 << 20) == (void *)-1);
    SHOW(malloc(400 << 20) == NULL);
    r.rlim_cur = RLIM_INFINITY;
    SHOW(setrlimit(RLIMIT_AS, &r));
    r = (struct rlimit){50 << 20, RLIM_INFINITY};
    SHOW(setrlimit(RLIMIT_DATA, &r));
    p = mmap(NULL, 100 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    printf("%s\n", p == MAP_FAILED ? strerrorname_np(errno) : "mapped");
    p = mmap(NULL, 100 << 20, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    printf("%s\n", p == MAP_FAILED ? strerrorname_np(errno) : "mapped");
    SHOW(sbrk(100 << 20) == (void *)-1);
    r.rlim_cur = RLIM_INFINITY;
    SHOW(setrlimit(RLIMIT_DATA, &r));
    SHOW(mlock(p, 4096));
    SHOW(munlock(p, 4096));
    SHOW(mlock((void *)4096, 4096));
    SHOW(mlockall(0));
    SHOW(munlockall());
    int mode = 99;
    unsigned long nodes = 99;
    SHOW(syscall(SYS_get_mempolicy, &mode, NULL, 0, NULL, 0));
    SHOW(mode);
    SHOW(syscall(SYS_get_mempolicy, NULL, &nodes, 64, NULL, 4));
    SHOW(nodes);
    nodes = 1;
    SHOW(syscall(SYS_set_mempolicy, 3, &nodes, 64));
    SHOW(syscall(SYS_mbind, p, 4096, 2, &nodes, 64, 0));
    SHOW(syscall(SYS_set_mempolicy, 77, NULL, 0));
}

int getrandom_works(void);

static void refusals(void) {
    SHOW(syscall(SYS_ustat, 1, 8) < 0);
    SHOW(syscall(400));
    SHOW(syscall(9999));
    SHOW(getrandom_works());
}

int getrandom_works(void) {
    unsigned char b[32] = {0};
    if (syscall(SYS_getrandom, b, 32, 0) != 32) return -1;
    for (int i = 0; i < 32; i++) if (b[i]) return 1;
    return 0;
}

static volatile int cpu_signals;
static void on_cpu(int s) { cpu_signals += s == SIGXCPU; }

int main(void) {
    start();
    identity();
    names();
    scheduling();
    resources();
    refusals();
    signal(SIGXCPU, on_cpu);
    struct rlimit r = {1, 60};
    SHOW(setrlimit(RLIMIT_CPU, &r));
    while (!cpu_signals) {}
    SHOW(cpu_signals);
    SHOW(setsid() > 0 || errno == EPERM);
    return 0;
}
