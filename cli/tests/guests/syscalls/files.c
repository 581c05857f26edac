// Files: vectors with flags, holes, locks, seals, copies between descriptors, limits, directories.
#include "check.h"
#include <dirent.h>
#include <linux/openat2.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/sendfile.h>
#include <sys/uio.h>

static void vectors(int fd) {
    char a[8] = "abcdefg", b[8] = "1234567";
    struct iovec v[2] = {{a, 7}, {b, 7}};
    SHOW(pwritev2(fd, v, 2, 0, 0));
    SHOW(pwritev2(fd, v, 2, 100, RWF_DSYNC));
    SHOW(pwritev2(fd, v, 1, 0, RWF_APPEND | RWF_SYNC));
    SHOW(pwritev2(fd, v, 2, -1, 0));
    struct stat st;
    fstat(fd, &st);
    printf("size %ld\n", (long)st.st_size);
    char c[4] = "", d[16] = "";
    struct iovec r[2] = {{c, 3}, {d, 9}};
    SHOW(preadv2(fd, r, 2, 2, RWF_NOWAIT | RWF_HIPRI));
    printf("%.3s %.9s\n", c, d);
    SHOW(preadv2(fd, r, 2, 0, 0x4000000));
    SHOW(preadv(fd, r, 2, -5));
    SHOW(syscall(SYS_readv, fd, r, 2000));
    int p[2];
    pipe2(p, O_NONBLOCK);
    SHOW(preadv2(p[0], r, 2, -1, RWF_NOWAIT));
    SHOW(write(p[1], "xyz", 3));
    SHOW(preadv2(p[0], r, 1, -1, RWF_NOWAIT));
    SHOW(pread(p[0], c, 1, 0));
    SHOW(vmsplice(p[1], v, 2, 0));
    SHOW(vmsplice(p[0], r, 2, SPLICE_F_NONBLOCK));
    printf("%.3s %.9s\n", c, d);
    SHOW(vmsplice(fd, v, 2, 0));
    int q[2];
    pipe(q);
    SHOW(write(p[1], "through the pipes", 17));
    while (read(p[0], c, 2) == 2 && c[0] != 't') {}
    SHOW(tee(p[0], q[1], 100, 0));
    SHOW(splice(p[0], NULL, q[1], NULL, 100, SPLICE_F_MOVE));
    loff_t at = 200;
    SHOW(splice(q[0], NULL, fd, &at, 10, 0));
    printf("offset %ld\n", (long)at);
}

static void copies(int fd) {
    int to = open("copy", O_RDWR | O_CREAT | O_TRUNC, 0600);
    off_t at = 3;
    SHOW(sendfile(to, fd, &at, 10));
    printf("offset %ld\n", (long)at);
    loff_t in = 0, out = 50;
    SHOW(copy_file_range(fd, &in, to, &out, 20, 0));
    printf("offsets %ld %ld\n", (long)in, (long)out);
    SHOW(lseek(to, 0, SEEK_END));
    SHOW(fallocate(to, 0, 0, 100000));
    SHOW(fallocate(to, FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE, 4096, 8192));
    SHOW(lseek(to, 0, SEEK_END));
    SHOW(posix_fadvise(to, 0, 0, POSIX_FADV_SEQUENTIAL));
    SHOW(ftruncate(to, 5));
    SHOW(truncate("nosuch", 5));
    SHOW(syscall(SYS_sync_file_range, to, 0, 0, 7));
    close(to);
}

static void locks(int fd) {
    struct flock l = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = 10, .l_len = 10};
    SHOW(fcntl(fd, F_SETLK, &l));
    int other = open("data", O_RDWR);
    struct flock q = l;
    SHOW(fcntl(other, F_GETLK, &q)); // one's own locks are no obstacle
    printf("type %d\n", q.l_type);
    q = l;
    SHOW(fcntl(other, F_OFD_GETLK, &q));
    printf("type %d start %ld len %ld pid %d\n", q.l_type, (long)q.l_start, (long)q.l_len, q.l_pid == getpid());
    q.l_type = F_WRLCK, q.l_pid = 0;
    SHOW(fcntl(other, F_OFD_SETLK, &q));
    SHOW(flock(fd, LOCK_EX));
    SHOW(flock(other, LOCK_EX | LOCK_NB));
    SHOW(flock(fd, LOCK_UN));
    SHOW(flock(other, LOCK_SH | LOCK_NB));
    SHOW(fcntl(fd, F_SETOWN, getpid()));
    SHOW(fcntl(fd, F_GETOWN) == getpid());
    SHOW(fcntl(fd, F_SETSIG, SIGUSR1));
    SHOW(fcntl(fd, F_GETSIG));
    SHOW(fcntl(fd, F_GETFL) & O_ACCMODE);
    SHOW(fcntl(fd, 999, 0));
    close(other);
}

static void seals(void) {
    int m = memfd_create("sealed", MFD_ALLOW_SEALING | MFD_CLOEXEC);
    SHOW(ftruncate(m, 4096));
    SHOW(fcntl(m, F_GET_SEALS));
    SHOW(fcntl(m, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW));
    SHOW(ftruncate(m, 100));
    SHOW(write(m, "x", 1));
    SHOW(fcntl(m, F_ADD_SEALS, F_SEAL_WRITE | F_SEAL_SEAL));
    SHOW(write(m, "x", 1));
    SHOW(fcntl(m, F_ADD_SEALS, F_SEAL_FUTURE_WRITE));
    SHOW(fcntl(m, F_GET_SEALS));
    SHOW(fcntl(m, F_GETFD));
    close(m);
}

static void descriptors(void) {
    SHOW(fcntl(0, F_DUPFD, 20));
    SHOW(fcntl(0, F_DUPFD_CLOEXEC, 20));
    SHOW(dup2(0, 30));
    SHOW(dup3(0, 31, O_CLOEXEC));
    SHOW(dup3(0, 0, 0));
    SHOW(fcntl(31, F_GETFD));
    SHOW(syscall(SYS_close_range, 20, 40, 4)); // CLOEXEC
    SHOW(fcntl(30, F_GETFD));
    SHOW(syscall(SYS_close_range, 20, 40, 0));
    SHOW(fcntl(30, F_GETFD));
    SHOW(syscall(SYS_close_range, 9, 3, 0));
    SHOW(dup2(77, 3));
    struct rlimit r = {12, 900};
    SHOW(setrlimit(RLIMIT_NOFILE, &r));
    SHOW(dup2(0, 12));
    SHOW(dup2(0, 11));
    SHOW(fcntl(0, F_DUPFD, 12));
    int n = 0;
    while (dup(0) >= 0) n++;
    printf("errno %s, %s\n", strerrorname_np(errno), n > 0 ? "some" : "none");
    int p[2];
    SHOW(pipe(p));
    syscall(SYS_close_range, 3, ~0u, 0);
    r.rlim_cur = 900;
    SHOW(setrlimit(RLIMIT_NOFILE, &r));
}

static void how(void) {
    struct open_how h = {.flags = O_RDONLY};
    int fd = syscall(SYS_openat2, AT_FDCWD, "data", &h, sizeof h);
    printf("openat2 %s\n", fd >= 0 ? "works" : strerrorname_np(errno));
    close(fd);
    h.resolve = RESOLVE_BENEATH;
    SHOW(syscall(SYS_openat2, AT_FDCWD, "/etc/passwd", &h, sizeof h));
    SHOW(syscall(SYS_openat2, AT_FDCWD, "data", &h, 8));
    struct { struct open_how h; long more; } big = {{0}, 0};
    fd = syscall(SYS_openat2, AT_FDCWD, "data", &big, sizeof big);
    printf("longer openat2 %s\n", fd >= 0 ? "works" : strerrorname_np(errno));
    close(fd);
    big.more = 1;
    SHOW(syscall(SYS_openat2, AT_FDCWD, "data", &big, sizeof big));
    SHOW(syscall(SYS_faccessat2, AT_FDCWD, "data", R_OK, AT_EACCESS));
    SHOW(syscall(452, AT_FDCWD, "data", 0640, 0));
    struct stat st;
    stat("data", &st);
    printf("mode %o\n", st.st_mode);
    struct statx sx;
    SHOW(statx(AT_FDCWD, "data", 0, STATX_SIZE, &sx));
    printf("size %d\n", sx.stx_size == (unsigned long)st.st_size);
    SHOW(name_to_handle_at(AT_FDCWD, "data", NULL, NULL, 0x9999) < 0);
}

static void directory(void) {
    char buf[4096];
    mkdir("dir", 0700);
    close(open("dir/one", O_CREAT | O_WRONLY, 0600));
    close(open("dir/two", O_CREAT | O_WRONLY, 0600));
    int fd = open("dir", O_RDONLY | O_DIRECTORY), n, names = 0;
    while ((n = syscall(SYS_getdents, fd, buf, sizeof buf)) > 0)
        for (int at = 0; at < n; at += *(unsigned short *)(buf + at + 16)) names++;
    printf("getdents: %d names, then %d\n", names, n);
    SHOW(lseek(fd, 0, SEEK_SET));
    names = 0;
    while ((n = syscall(SYS_getdents64, fd, buf, sizeof buf)) > 0)
        for (int at = 0; at < n; at += *(unsigned short *)(buf + at + 16)) names++;
    printf("getdents64: %d names, then %d\n", names, n);
    SHOW(syscall(SYS_getdents64, fd, buf, 8));
    close(fd);
}

static volatile int too_large;
static void on_xfsz(int s) { too_large += s; }

static void file_limit(void) {
    signal(SIGXFSZ, on_xfsz);
    struct rlimit r = {100, 1000};
    SHOW(setrlimit(RLIMIT_FSIZE, &r));
    int fd = open("limited", O_RDWR | O_CREAT | O_TRUNC, 0600);
    char buf[300] = {0};
    SHOW(write(fd, buf, 80));
    SHOW(write(fd, buf, 80));
    SHOW(write(fd, buf, 80));
    SHOW(too_large);
    SHOW(pwrite(fd, buf, 50, 90));
    SHOW(pwrite(fd, buf, 50, 200));
    SHOW(ftruncate(fd, 150));
    SHOW(ftruncate(fd, 100));
    struct iovec v = {buf, 30};
    SHOW(pwritev(fd, &v, 1, 95));
    SHOW(lseek(fd, 0, SEEK_END));
    SHOW(too_large);
    r.rlim_cur = 1000;
    setrlimit(RLIMIT_FSIZE, &r);
}

int main(void) {
    start();
    int fd = open("data", O_RDWR | O_CREAT | O_TRUNC, 0600);
    vectors(fd);
    copies(fd);
    locks(fd);
    seals();
    how();
    directory();
    close(fd);
    descriptors();
    file_limit();
    return 0;
}
