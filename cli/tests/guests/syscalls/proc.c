// /proc: what a process can learn about itself there must be true of itself.
#include "check.h"
#include <dirent.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>

static char text[1 << 18];

static int slurp_at(int dir, const char *path) {
    int fd = openat(dir, path, O_RDONLY), n = 0, got;
    if (fd < 0) return -1;
    while ((got = read(fd, text + n, sizeof text - 1 - n)) > 0) n += got;
    text[n] = 0;
    close(fd);
    return n;
}
static int slurp(const char *path) { return slurp_at(AT_FDCWD, path); }

// Whether an area of `maps` (or a file like it) contains an address, with these rights.
static int mapped(const char *path, void *p, const char *rights) {
    slurp(path);
    for (char *line = strtok(text, "\n"); line; line = strtok(NULL, "\n")) {
        unsigned long from, to;
        char r[5];
        if (sscanf(line, "%lx-%lx %4s", &from, &to, r) == 3 && from <= (unsigned long)p && (unsigned long)p < to)
            return strcmp(r, rights) == 0;
    }
    return -1;
}

// The file that an address is mapped from.
static const char *mapped_from(void *p) {
    slurp("/proc/self/maps");
    for (char *line = strtok(text, "\n"); line; line = strtok(NULL, "\n")) {
        unsigned long from, to;
        if (sscanf(line, "%lx-%lx", &from, &to) == 2 && from <= (unsigned long)p && (unsigned long)p < to) {
            char *slash = strrchr(line, '/');
            return slash ? slash + 1 : "no file";
        }
    }
    return "nothing";
}

static long field(const char *path, const char *name) {
    slurp(path);
    char *at = strstr(text, name);
    return at ? atol(at + strlen(name)) : -1;
}

static int static_data;
long main_address(void);

static void sizes(void) {
    long before = field("/proc/self/status", "VmSize:"), rss = field("/proc/self/status", "VmRSS:");
    char *p = mmap(NULL, 64 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    memset(p, 1, 32 << 20);
    SHOW(field("/proc/self/status", "VmSize:") - before == 65536);
    long grown = field("/proc/self/status", "VmRSS:") - rss;
    SHOW(grown >= 32768 && grown < 36000);
    SHOW(slurp("/proc/self/statm") > 0);
    long size = 0, resident = 0;
    sscanf(text, "%ld %ld", &size, &resident);
    SHOW(size >= 16384 && size < 40000);
    SHOW(resident >= 8192 && resident < 12000);
    SHOW(mapped("/proc/self/smaps", p, "rw-p"));
    slurp("/proc/self/smaps");
    char start[32];
    snprintf(start, sizeof start, "%lx-", (unsigned long)p);
    SHOW(strstr(text, "Rss:") != NULL && strstr(text, "VmFlags:") != NULL);
    SHOW(field("/proc/self/smaps_rollup", "Rss:") >= 32768);
    SHOW(mprotect(p, 4096, PROT_READ));
    SHOW(mapped("/proc/self/maps", p, "r--p"));
    SHOW(mapped("/proc/self/maps", p + 4096, "rw-p"));
    munmap(p, 64 << 20);
    SHOW(mapped("/proc/self/maps", p, "rw-p"));
}

static void myself(char **argv) {
    char path[256], link[256] = "", mine[256] = "";
    SHOW(readlink("/proc/self/exe", link, 255) > 0);
    snprintf(path, sizeof path, "/proc/%d/exe", getpid());
    SHOW(readlink(path, mine, 255) > 0);
    SHOW(strcmp(link, mine));
    printf("%s\n", strrchr(link, '/'));
    struct stat a, b;
    SHOW(stat("/proc/self/exe", &a) | stat(link, &b));
    SHOW(a.st_ino == b.st_ino);
    int fd = open("/proc/self/exe", O_RDONLY);
    char magic[4];
    SHOW(read(fd, magic, 4));
    SHOW(memcmp(magic, "\177ELF", 4));
    close(fd);
    SHOW(access("/proc/self/maps", R_OK));
    SHOW(slurp("/proc/self/cmdline") > 0);
    SHOW(strcmp(text, argv[0]));
    SHOW(strcmp(text + strlen(text) + 1, argv[1]));
    SHOW(slurp("/proc/self/environ") > 0);
    int n = slurp("/proc/self/auxv");
    unsigned long *aux = (void *)text, page = 0;
    for (int i = 0; i < n / 16; i++) if (aux[2 * i] == AT_PAGESZ) page = aux[2 * i + 1];
    SHOW(page);
    SHOW(slurp("/proc/self/comm"));
    printf("%s", text);
    prctl(PR_SET_NAME, "renamed");
    slurp("/proc/self/comm");
    printf("%s", text);
    slurp("/proc/self/status");
    printf("%.13s\n", text);
    SHOW(field("/proc/self/status", "\nPid:\t") == getpid());
    SHOW(field("/proc/self/status", "Threads:\t"));
    int pid = 0, ppid = 0;
    char name[32] = "";
    slurp("/proc/self/stat");
    sscanf(text, "%d (%31[^)]) %*c %d", &pid, name, &ppid);
    SHOW(pid == getpid() && ppid == getppid());
    puts(name);
    char *at = strchr(text, ')');
    for (int i = 0; i < 26; i++) at = strchr(at, ' ') + 1;
    unsigned long stack = strtoul(at, NULL, 10);
    SHOW(stack > (unsigned long)&stack && stack < (unsigned long)&stack + (1 << 20));
    SHOW(mapped("/proc/self/maps", &stack, "rw-p"));
    SHOW(mapped("/proc/thread-self/maps", &static_data, "rw-p"));
    snprintf(path, sizeof path, "/proc/%d/task/%d/maps", getpid(), getpid());
    SHOW(mapped(path, (void *)main_address(), "r-xp"));
    SHOW(mapped("/proc//self/./task/../maps", (void *)main_address(), "r-xp"));
    printf("%s\n", mapped_from((void *)main_address()));
    printf("%s\n", mapped_from((void *)&printf));
    printf("%s\n", mapped_from((void *)getauxval(AT_BASE)));
    SHOW(field("/proc/self/status", "VmExe:") > 0);
    signal(SIGUSR2, SIG_IGN);
    slurp("/proc/self/status");
    char *ignored = strstr(text, "SigIgn:\t");
    SHOW(ignored && strtoull(ignored + 8, NULL, 16) >> (SIGUSR2 - 1) & 1);
}

long main_address(void) { return (long)&slurp_at; }

static void directories(void) {
    int dir = open("/proc/self", O_RDONLY | O_DIRECTORY);
    SHOW(dir >= 0);
    SHOW(slurp_at(dir, "comm"));
    printf("%s", text);
    SHOW(slurp_at(dir, "task/../comm"));
    close(dir);
    SHOW(chdir("/proc/self"));
    SHOW(mapped("maps", &static_data, "rw-p"));
    SHOW(mapped("./maps", &static_data, "rw-p"));
    chdir("/");
    SHOW(mapped("proc/self/maps", &static_data, "rw-p"));
    int kept = dup2(0, 17), high = 0, count = 0, seen = 0;
    DIR *d = opendir("/proc/self/fd");
    for (struct dirent *e; (e = readdir(d));) {
        int fd = atoi(e->d_name);
        count += e->d_name[0] != '.';
        seen += fd == kept;
        if (fd > high) high = fd;
    }
    closedir(d);
    printf("descriptors below 1000: %d, %d seen, some: %d\n", high < 1000, seen, count >= 5);
    char link[256] = "";
    int fd = open("/etc/passwd", O_RDONLY);
    char path[64];
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    SHOW(readlink(path, link, 255));
    puts(link);
    int again = open(path, O_RDONLY);
    SHOW(again >= 0);
    SHOW(close(again) | close(fd) | close(kept));
    count = 0;
    d = opendir("/proc/self/task");
    for (struct dirent *e; (e = readdir(d));) count += e->d_name[0] != '.';
    closedir(d);
    SHOW(count);
}

static void machine(void) {
    SHOW(slurp("/proc/cpuinfo") > 100);
    int cpus = 0;
    for (char *at = text; (at = strstr(at, "processor")); at++) cpus++;
    SHOW(cpus == sysconf(_SC_NPROCESSORS_CONF));
    SHOW(strstr(text, " sse2 ") != NULL);
    SHOW(strstr(text, "vendor_id") != NULL);
    long total = field("/proc/meminfo", "MemTotal:"), free = field("/proc/meminfo", "MemFree:");
    SHOW(total > 0 && free > 0 && free <= total);
    long available = field("/proc/meminfo", "MemAvailable:");
    SHOW(available > 0);
    SHOW(slurp("/proc/self/limits") > 0);
    SHOW(strstr(text, "Max open files") != NULL);
    struct rlimit r;
    getrlimit(RLIMIT_STACK, &r);
    char line[64];
    snprintf(line, sizeof line, "Max stack size            %-20lu", (unsigned long)r.rlim_cur);
    SHOW(strstr(text, line) != NULL);
    SHOW(slurp("/proc/self/mountinfo") > 0);
    SHOW(slurp("/proc/self/cgroup") > 0);
    SHOW(slurp("/proc/self/oom_score_adj") > 0);
    SHOW(slurp("/sys/devices/system/cpu/online") > 0);
    SHOW(slurp("/proc/version") > 0);
    SHOW(slurp("/proc/self/nosuch"));
}

int main(int argc, char **argv) {
    start();
    myself(argv);
    sizes();
    directories();
    machine();
    return argc != 2;
}
