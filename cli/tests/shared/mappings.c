// Shared mappings, as their rules say. Prints what it sees; natively and under sevlab that must be the same.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define PAGE 4096L
#define MIB (1L << 20)

static sigjmp_buf back;
static volatile sig_atomic_t signo, code;
static void *volatile where;

static void on_fault(int n, siginfo_t *info, void *context)
{
    (void)context;
    signo = n;
    code = info->si_code;
    where = info->si_addr;
    siglongjmp(back, 1);
}

// What reading (or writing) one byte does: its value, or minus the signal.
static int touch(volatile unsigned char *p, int write)
{
    if (sigsetjmp(back, 1)) {
        if (where != (void *)p)
            printf("si_addr is wrong\n");
        return -(signo * 100 + code);
    }
    if (write)
        *p = write;
    return *p;
}

static unsigned char *map(int fd, long len, int prot, int flags, long offset)
{
    void *p = mmap(NULL, len, prot, flags, fd, offset);
    if (p == MAP_FAILED) {
        printf("mmap: %s\n", strerror(errno));
        return NULL;
    }
    return p;
}

#define RW (PROT_READ | PROT_WRITE)
#define SHOW(...) (printf(__VA_ARGS__), printf("\n"))

static void two_views(int fd)
{
    unsigned char *a = map(fd, 3 * MIB, RW, MAP_SHARED, 0);
    unsigned char *b = map(fd, 2 * MIB, RW, MAP_SHARED, MIB);
    unsigned char *c = map(fd, 3 * MIB, PROT_READ, MAP_SHARED, 0);
    unsigned char *d = map(fd, 3 * MIB, RW, MAP_PRIVATE, 0);
    for (long i = 0; i < 3 * MIB; i += 5000)
        a[i] = i / 5000;
    int wrong = 0;
    for (long i = 0; i < 3 * MIB; i += 5000)
        wrong += c[i] != (unsigned char)(i / 5000) || (i >= MIB && b[i - MIB] != a[i]);
    SHOW("views differ at %d places", wrong);
    b[17] = 200;
    SHOW("%d %d", a[MIB + 17], c[MIB + 17]);
    char text[32] = {0};
    pwrite(fd, "by pwrite", 9, 100);
    memcpy(text, c + 100, 9);
    SHOW("%s", text);
    memcpy(a + 100, "by store", 9);
    pread(fd, text, 9, 100);
    SHOW("%s", text);
    // A private mapping of the same pages: its own once it is written.
    SHOW("%d", memcmp(d + 100, "by store", 8));
    d[100] = 'B';
    SHOW("%c %c", a[100], d[100]);
    a[200000] = 77;
    SHOW("%d", d[200000]);
    SHOW("write to a read-only view: %d", touch(c, 1));
    SHOW("%d %s", mprotect(c, PAGE, PROT_NONE), "none");
    SHOW("%d", touch(c, 0));
    SHOW("%d %s", mprotect(c, PAGE, RW), "rw");
    SHOW("%d %d", touch(c, 55), a[0]);
    SHOW("msync %d %d", msync(a, 3 * MIB, MS_SYNC), msync(b, PAGE, MS_ASYNC));
    SHOW("madvise %d", madvise(a, 3 * MIB, MADV_DONTNEED));
    SHOW("%d %d", a[0], a[MIB + 17]);
    munmap(a, 3 * MIB);
    SHOW("%d", c[0]);
    munmap(b, 2 * MIB);
    munmap(c, 3 * MIB);
    munmap(d, 3 * MIB);
}

static void sizes(int fd)
{
    ftruncate(fd, 0);
    unsigned char *a = map(fd, 8 * PAGE, RW, MAP_SHARED, 0);
    SHOW("empty: %d", touch(a, 0));
    ftruncate(fd, PAGE + 10);
    SHOW("grown: %d %d %d", touch(a, 1), touch(a + PAGE + 9, 2), touch(a + 2 * PAGE, 3));
    SHOW("behind the end in the last page: %d", touch(a + PAGE + 20, 4));
    ftruncate(fd, 4 * PAGE);
    SHOW("%d %d", touch(a + PAGE + 9, 0), touch(a + 3 * PAGE, 9));
    ftruncate(fd, PAGE);
    SHOW("shrunk: %d %d %d", touch(a, 0), touch(a + PAGE + 9, 0), touch(a + 3 * PAGE, 1));
    ftruncate(fd, 4 * PAGE);
    SHOW("again: %d %d", touch(a + PAGE + 9, 0), touch(a + 3 * PAGE, 5));
    unsigned char got = 0;
    pread(fd, &got, 1, 3 * PAGE);
    SHOW("%d", got);
    SHOW("hole: %d", fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 3 * PAGE, PAGE));
    SHOW("%d %d", touch(a + 3 * PAGE, 0), touch(a, 0));
    munmap(a, 8 * PAGE);
    SHOW("%d", touch(a, 0));
}

static void moved(int fd)
{
    ftruncate(fd, 16 * PAGE);
    unsigned char *a = map(fd, 4 * PAGE, RW, MAP_SHARED, 4 * PAGE);
    unsigned char *other = map(fd, 16 * PAGE, RW, MAP_SHARED, 0);
    a[PAGE] = 42;
    unsigned char *b = mremap(a, 4 * PAGE, 12 * PAGE, MREMAP_MAYMOVE);
    SHOW("moved: %d", b[PAGE]);
    b[10 * PAGE] = 43;
    SHOW("%d %d", other[5 * PAGE], other[14 * PAGE]);
    unsigned char *c = mremap(b, 0, 12 * PAGE, MREMAP_MAYMOVE);
    c[11 * PAGE] = 44;
    SHOW("doubled: %d %d %d", c != b, b[11 * PAGE], other[15 * PAGE]);
    b = mremap(b, 12 * PAGE, PAGE, 0);
    SHOW("%d %d", touch(b + PAGE, 0), touch(c + PAGE, 0));
    munmap(b, PAGE);
    munmap(c, 12 * PAGE);
    munmap(other, 16 * PAGE);
}

static void memory(void)
{
    int fd = memfd_create("shared", MFD_ALLOW_SEALING);
    ftruncate(fd, 2 * PAGE);
    unsigned char *a = map(fd, 2 * PAGE, RW, MAP_SHARED, 0);
    unsigned char *b = map(fd, 2 * PAGE, RW, MAP_SHARED, 0);
    a[1] = 11;
    b[2] = 12;
    SHOW("memfd: %d %d", b[1], a[2]);
    int removed = madvise(a, PAGE, MADV_REMOVE);
    SHOW("remove: %d %d", removed, b[1]);
    munmap(a, 2 * PAGE);
    munmap(b, 2 * PAGE);
    SHOW("seal: %d", fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE));
    map(fd, PAGE, RW, MAP_SHARED, 0);
    SHOW("sealed: %d", *map(fd, PAGE, PROT_READ, MAP_PRIVATE, 0));
    close(fd);
    fd = shm_open("/sevlab-test", O_RDWR | O_CREAT | O_EXCL, 0600);
    shm_unlink("/sevlab-test");
    SHOW("shm %d", fd > 2 && ftruncate(fd, 5 * MIB) == 0);
    a = map(fd, 5 * MIB, RW, MAP_SHARED, 0);
    close(fd);
    memset(a, 7, 5 * MIB);
    long sum = 0;
    for (long i = 0; i < 5 * MIB; i++)
        sum += a[i];
    SHOW("%ld", sum);
    munmap(a, 5 * MIB);
    a = map(-1, 3 * MIB, RW, MAP_SHARED | MAP_ANONYMOUS, 0);
    a[MIB] = 1;
    SHOW("anonymous: %d %d", a[MIB], a[2 * MIB]);
    madvise(a, 3 * MIB, MADV_DONTNEED);
    SHOW("kept: %d", a[MIB]);
    FILE *maps = fopen("/proc/self/maps", "r");
    char line[512];
    while (fgets(line, sizeof line, maps)) {
        unsigned long start;
        char rights[8], name[256] = "";
        sscanf(line, "%lx-%*x %7s %*s %*s %*s %255[^\n]", &start, rights, name);
        if (start == (unsigned long)a)
            SHOW("%s %s", rights, name);
    }
    fclose(maps);
    munmap(a, 3 * MIB);
    fd = open("/dev/zero", O_RDWR);
    a = map(fd, PAGE, RW, MAP_SHARED, 0);
    SHOW("zero: %d", touch(a, 3));
    munmap(a, PAGE);
    close(fd);
}

static void sparse(int fd)
{
    ftruncate(fd, 0);
    ftruncate(fd, 1024 * MIB);
    unsigned char *a = map(fd, 1024 * MIB, RW, MAP_SHARED, 0);
    for (long i = 0; i < 1024; i += 3)
        a[i * MIB + i] = i % 251 + 1;
    int wrong = 0;
    for (long i = 0; i < 1024; i += 3) {
        unsigned char got = 0;
        pread(fd, &got, 1, i * MIB + i);
        wrong += got != i % 251 + 1 || a[i * MIB + i + 1];
    }
    SHOW("sparse: %d", wrong);
    munmap(a, 1024 * MIB);
    struct stat st;
    fstat(fd, &st);
    SHOW("%d", st.st_blocks * 512 < 64 * MIB);
    ftruncate(fd, 100);
}

// A code generator with two views: one to write, one to execute.
static void generated(int flags)
{
    int fd = memfd_create("code", 0);
    ftruncate(fd, PAGE);
    unsigned char *w = map(fd, PAGE, RW, flags, 0);
    unsigned char *x = map(fd, PAGE, PROT_READ | PROT_EXEC, flags, 0);
    long sum = 0;
    for (int i = 0; i < 300; i++) {
        unsigned char code[] = {0xb8, i, i >> 8, 0, 0, 0xc3}; // mov eax, i; ret
        memcpy(w + i % 8 * 16, code, sizeof code);
        sum += ((int (*)(void))(x + i % 8 * 16))();
        sum += x[i % 8 * 16 + 1] == (i & 255);
    }
    SHOW("generated: %ld", sum);
    munmap(w, PAGE);
    munmap(x, PAGE);
    close(fd);
}

static void perror_of(int result)
{
    SHOW("%d %s", result, strerror(errno));
}

static void refused(int fd)
{
    int ro = open("file", O_RDONLY), wo = open("file", O_WRONLY), null = open("/dev/null", O_RDWR);
    map(ro, PAGE, RW, MAP_SHARED, 0);
    map(wo, PAGE, PROT_READ, MAP_SHARED, 0);
    map(null, PAGE, RW, MAP_SHARED, 0);
    map(fd, PAGE, RW, MAP_SHARED, 1);
    map(fd, 0, RW, MAP_SHARED, 0);
    map(999, PAGE, RW, MAP_SHARED, 0);
    // Where nothing can be, often enough to run out of descriptors that are not given back.
    int failed = 0;
    for (int i = 0; i < 10000; i++)
        failed += mmap((void *)1, PAGE, RW, MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == MAP_FAILED;
    SHOW("%d", failed);
    map(fd, PAGE, RW, MAP_SHARED, 0x7fffffffffffe000);
    unsigned char *a = map(ro, PAGE, PROT_READ, MAP_SHARED, 0);
    perror_of(mprotect(a, PAGE, RW));
    perror_of(madvise(a, PAGE, MADV_REMOVE));
    SHOW("%d", touch(a, 0));
    close(ro);
    close(wo);
    SHOW("closed: %d", touch(a, 0));
    munmap(a, PAGE);
}

int main(void)
{
    struct sigaction action = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO};
    sigaction(SIGBUS, &action, NULL);
    sigaction(SIGSEGV, &action, NULL);
    int fd = open("file", O_RDWR | O_CREAT, 0600);
    ftruncate(fd, 3 * MIB);
    two_views(fd);
    sizes(fd);
    moved(fd);
    memory();
    sparse(fd);
    generated(MAP_SHARED);
    refused(fd);
    unsigned char *last = map(fd, PAGE, RW, MAP_SHARED, 0);
    memcpy(last, "left behind\n", 12);
    return 0;
}
