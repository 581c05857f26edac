// What a vfork child does to the memory that it shares with its parent, as the parent finds it.
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

enum { PAGE = 4096 };

static char *brk_before, *fresh, *gone, *guarded, *emptied, *mapped, *moved, *half, *file;
static volatile int data = 1;

static void child(void) {
    data = 2;
    brk_before = sbrk(3 * PAGE);
    memset(brk_before, 'b', 3 * PAGE);
    fresh[5] = 'f'; // of the parent's, but not touched by it
    munmap(gone, 2 * PAGE);
    mprotect(guarded, PAGE, PROT_READ);
    madvise(emptied, 2 * PAGE, MADV_DONTNEED);
    mapped = mmap(0, 600 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    for (int i = 0; i < 600; i += 7)
        mapped[i * PAGE] = (char)i;
    moved = mremap(moved, 4 * PAGE, 64 * PAGE, MREMAP_MAYMOVE);
    moved[60 * PAGE] = 'm';
    // Unmapped and mapped again at the same place.
    mmap(half, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    mprotect(file, PAGE, PROT_READ | PROT_WRITE);
    file[1] = 'F';
}

static int sum(const char *at, int pages) {
    int all = 0;
    for (int i = 0; i < pages * PAGE; i++)
        all = all * 31 + at[i];
    return all;
}

static char *some(int pages) {
    char *at = mmap(0, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    for (int i = 0; i < pages; i++)
        at[i * PAGE + 9] = (char)(i + 1);
    return at;
}

int main(int argc, char **argv) {
    fresh = mmap(0, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    gone = some(4);
    guarded = some(3);
    emptied = some(4);
    moved = some(4);
    half = some(2);
    int fd = open("input", O_RDONLY);
    file = mmap(0, 2 * PAGE, PROT_READ, MAP_PRIVATE, fd, 0);
    close(fd);
    char *heap = sbrk(0);
    for (int round = 0; round < 2; round++) {
        pid_t pid = vfork();
        if (pid == 0) {
            if (round == 0)
                child();
            else
                data++;
            if (argc > 1)
                execl("/bin/true", "true", (char *)0);
            _exit(7);
        }
        int status;
        waitpid(pid, &status, 0);
        printf("round %d: data %d, status %d\n", round, data, WEXITSTATUS(status));
    }
    printf("heap %d %d\n", brk_before == heap, (int)((char *)sbrk(0) - heap));
    printf("brk %x, fresh %x %x\n", sum(brk_before, 3), sum(fresh, 4), fresh[5]);
    printf("emptied %x\n", sum(emptied, 4));
    printf("mapped %x, moved %x, half %x\n", sum(mapped, 600), sum(moved, 64), sum(half, 2));
    printf("file %x\n", sum(file, 2));
    file[2] = 'G';
    printf("file %x\n", sum(file, 2));
    // Only the heap is still told apart from what lies behind it.
    char *more = malloc(3 << 20), *small = malloc(100000);
    memset(more, 1, 3 << 20);
    memset(small, 2, 100000);
    printf("malloc %x %x\n", more[77], small[99999]);
    // Rights and holes, by the system calls that look at them.
    int ends[2];
    if (pipe(ends) == 0) {
        printf("gone %d %d\n", (int)write(ends[1], gone, 1), (int)write(ends[1], gone + 2 * PAGE, 1));
        printf("guarded %d %d\n", (int)read(ends[0], guarded, 1), (int)write(ends[1], guarded, 1));
        printf("behind %d\n", (int)read(ends[0], guarded + PAGE, 1));
    }
    return 0;
}
