// Pseudo terminals and the requests of ioctl.
#include "check.h"
#include <poll.h>
#include <sys/ioctl.h>
#include <termios.h>

int main(void) {
    start();
    int m = posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC), n = 0;
    if (m < 0) { puts("no pseudo terminals here"); return 0; }
    OK(m);
    SHOW(ioctl(m, TIOCGPTN, &n) );
    int lock = 1;
    SHOW(ioctl(m, TIOCSPTLCK, &lock));
    int own = n;
    SHOW(ioctl(m, TIOCGPTLCK, &n));
    SHOW(n);
    SHOW(grantpt(m));
    SHOW(unlockpt(m));
    char name[64], expected[64];
    SHOW(ptsname_r(m, name, sizeof name));
    snprintf(expected, sizeof expected, "/dev/pts/%d", own);
    SHOW(strcmp(name, expected));
    int s = open(name, O_RDWR | O_NOCTTY);
    OK(s);
    int peer = ioctl(m, TIOCGPTPEER, O_RDWR | O_NOCTTY);
    OK(peer);
    SHOW(isatty(s));
    struct winsize w = {24, 80, 0, 0}, got = {0};
    SHOW(ioctl(m, TIOCSWINSZ, &w));
    SHOW(ioctl(s, TIOCGWINSZ, &got));
    printf("%d x %d\n", got.ws_row, got.ws_col);
    struct termios t;
    SHOW(tcgetattr(s, &t));
    printf("%x %x %x %x\n", t.c_iflag, t.c_oflag, t.c_cflag, t.c_lflag);
    cfmakeraw(&t);
    SHOW(tcsetattr(s, TCSANOW, &t));
    SHOW(write(m, "abc\n", 4));
    struct pollfd ready = {s, POLLIN, 0};
    SHOW(poll(&ready, 1, 1000)); // the line discipline has its own time
    SHOW(ioctl(s, FIONREAD, &n));
    SHOW(n);
    char buf[16] = "";
    SHOW(read(s, buf, 16));
    printf("%s", buf);
    SHOW(write(s, "answer\n", 7));
    SHOW(read(m, buf, 16));
    SHOW(tcflush(s, TCIOFLUSH));
    SHOW(tcdrain(s));
    SHOW(tcgetpgrp(s));
    SHOW(tcgetsid(s));
    SHOW(ioctl(s, TIOCOUTQ, &n));
    int on = 1;
    SHOW(ioctl(m, TIOCPKT, &on));
    SHOW(ioctl(m, FIONBIO, &on));
    SHOW(read(m, buf, 16));
    SHOW(ioctl(m, FIOCLEX));
    SHOW(fcntl(m, F_GETFD));
    SHOW(ioctl(m, FIONCLEX));
    SHOW(fcntl(m, F_GETFD));
    SHOW(ioctl(s, TIOCEXCL));
    SHOW(ioctl(s, TIOCNXCL));
    int f = open("plain", O_RDWR | O_CREAT, 0600);
    SHOW(ioctl(f, TCGETS, &t));
    SHOW(ioctl(f, FIONREAD, &n));
    SHOW(ioctl(f, TIOCGPTN, &n));
    SHOW(ioctl(f, 0x12345678, &n));
    SHOW(ioctl(500, TCGETS, &t));
    SHOW(ioctl(s, TCGETS, (void *)8));
    return 0;
}
