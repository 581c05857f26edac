// What a forked child and its parent share: mappings with MAP_SHARED, and nothing else.
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#define MIB (1L << 20)
#define RW (PROT_READ | PROT_WRITE)

// Where `turn` is another's number, it is not one's own turn.
static void until(volatile int *turn, int mine)
{
    while (__atomic_load_n(turn, __ATOMIC_ACQUIRE) != mine)
        usleep(100);
}

int main(void)
{
    int fd = open("file", O_RDWR | O_CREAT | O_TRUNC, 0600);
    ftruncate(fd, 4 * MIB);
    volatile int *turn = mmap(NULL, 3 * MIB, RW, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    volatile unsigned char *file = mmap(NULL, 4 * MIB, RW, MAP_SHARED, fd, 0);
    volatile unsigned char *reader = mmap(NULL, 4 * MIB, PROT_READ, MAP_SHARED, fd, 0);
    volatile unsigned char *private = mmap(NULL, MIB, RW, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    private[0] = 1;
    file[1] = 1;
    volatile int *counter = turn + 100;
    pid_t child = fork();
    if (child == 0) {
        for (int i = 1; i < 50; i += 2) {
            until(turn, i);
            file[2 * MIB + i] = reader[2 * MIB + i - 1] + 1; // touched for the first time here
            private[0]++;
            __atomic_store_n(turn, i + 1, __ATOMIC_RELEASE);
        }
        for (int i = 0; i < 100000; i++)
            __atomic_fetch_add(counter, 1, __ATOMIC_RELAXED);
        // A grandchild, and a mapping that the parent does not have.
        volatile int *more = mmap(NULL, 4096, RW, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
        if (fork() == 0) {
            *more = 7;
            turn[2 * MIB / 4] = 8;
            _exit(0);
        }
        wait(NULL);
        _exit(private[0] == 26 && *more == 7 ? 3 : 4);
    }
    // What the parent maps now, the child does not have.
    volatile int *mine = mmap(NULL, 4096, RW, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    *mine = 5;
    for (int i = 0; i < 50; i += 2) {
        file[2 * MIB + i] = i ? reader[2 * MIB + i - 1] + 1 : 1;
        __atomic_store_n(turn, i + 1, __ATOMIC_RELEASE);
        until(turn, i + 2);
    }
    for (int i = 0; i < 100000; i++)
        __atomic_fetch_add(counter, 1, __ATOMIC_RELAXED);
    int status;
    waitpid(child, &status, 0);
    printf("%d %d %d\n", WIFEXITED(status), WEXITSTATUS(status), *counter);
    printf("%d %d %d %d\n", private[0], *mine, reader[2 * MIB + 49], turn[2 * MIB / 4]);
    return 0;
}
