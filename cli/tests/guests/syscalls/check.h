// What the guests of this folder share: results as lines that are the same on every Linux.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <unistd.h>

// A call's result in words: a negative one with its error.
#define SHOW(call)                                                                     \
    do {                                                                               \
        errno = 0;                                                                     \
        long result_ = (long)(call);                                                   \
        if (result_ < 0) printf("%s = %ld %s\n", #call, result_, strerrorname_np(errno)); \
        else printf("%s = %ld\n", #call, result_);                                     \
    } while (0)

// Only whether it worked.
#define OK(call)                                                                       \
    do {                                                                               \
        errno = 0;                                                                     \
        long result_ = (long)(call);                                                   \
        if (result_ < 0) printf("%s failed: %s\n", #call, strerrorname_np(errno));        \
        else printf("%s works\n", #call);                                              \
    } while (0)

static inline void start(void) { setvbuf(stdout, NULL, _IOLBF, 0); }
