// touch shared|private BYTES: writes to one byte of each line of a mapping, once. The loop touches nothing else.
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

int main(int argc, char **argv) {
    if (argc != 3) return 2;
    int shared = strcmp(argv[1], "shared") == 0;
    unsigned long bytes = strtoul(argv[2], 0, 0);
    char *at = mmap(0, bytes, PROT_READ | PROT_WRITE, (shared ? MAP_SHARED : MAP_PRIVATE) | MAP_ANONYMOUS, -1, 0);
    if (at == MAP_FAILED) return 1;
    char *end = at + bytes;
    __asm__ volatile(
        "1: movb $1, (%0)\n\t"
        "add $64, %0\n\t"
        "cmp %1, %0\n\t"
        "jb 1b"
        : "+r"(at)
        : "r"(end)
        : "memory", "cc");
    return 0;
}
