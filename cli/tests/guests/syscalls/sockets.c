// Sockets: descriptors and credentials in messages, several messages at once, options, addresses, interfaces.
#include "check.h"
#include <arpa/inet.h>
#include <net/if.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/un.h>

static void rights(void) {
    int s[2];
    SHOW(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, s));
    int on = 1;
    SHOW(setsockopt(s[1], SOL_SOCKET, SO_PASSCRED, &on, sizeof on));
    int fd = open("passed", O_RDWR | O_CREAT, 0600);
    write(fd, "contents", 8);
    union { char b[128]; struct cmsghdr h; } c = {{0}};
    char data[16] = "with a file";
    struct iovec v = {data, 11};
    struct msghdr m = {.msg_iov = &v, .msg_iovlen = 1, .msg_control = &c, .msg_controllen = CMSG_SPACE(8)};
    c.h = (struct cmsghdr){.cmsg_len = CMSG_LEN(8), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS};
    memcpy(CMSG_DATA(&c.h), (int[]){fd, 1}, 8);
    SHOW(sendmsg(s[0], &m, 0));
    close(fd);
    memset(&c, 0, sizeof c);
    memset(data, 0, sizeof data);
    m.msg_controllen = sizeof c;
    SHOW(recvmsg(s[1], &m, MSG_CMSG_CLOEXEC));
    printf("data %s flags %x\n", data, m.msg_flags & ~MSG_CMSG_CLOEXEC);
    for (struct cmsghdr *h = CMSG_FIRSTHDR(&m); h; h = CMSG_NXTHDR(&m, h)) {
        if (h->cmsg_type == SCM_CREDENTIALS) {
            struct ucred u;
            memcpy(&u, CMSG_DATA(h), sizeof u);
            printf("credentials %d %d\n", u.pid == getpid(), u.uid == getuid());
        }
        if (h->cmsg_type == SCM_RIGHTS) {
            int got[2];
            memcpy(got, CMSG_DATA(h), 8);
            char back[16] = "";
            SHOW(pread(got[0], back, 15, 0));
            printf("descriptors of %zu bytes: %s\n", h->cmsg_len - CMSG_LEN(0), back);
            SHOW(fcntl(got[0], F_GETFD));
            close(got[0]), close(got[1]);
        }
    }
    // one that is not there
    m.msg_controllen = CMSG_SPACE(4);
    c.h = (struct cmsghdr){.cmsg_len = CMSG_LEN(4), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS};
    memcpy(CMSG_DATA(&c.h), (int[]){500}, 4);
    SHOW(sendmsg(s[0], &m, 0));
    struct ucred me = {getpid(), getuid(), getgid()};
    c.h = (struct cmsghdr){.cmsg_len = CMSG_LEN(sizeof me), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_CREDENTIALS};
    memcpy(CMSG_DATA(&c.h), &me, sizeof me);
    m.msg_controllen = CMSG_SPACE(sizeof me);
    SHOW(sendmsg(s[0], &m, 0));
    close(s[0]), close(s[1]);
}

static void several(void) {
    int s[2];
    socketpair(AF_UNIX, SOCK_DGRAM, 0, s);
    char in[4][8] = {"one", "two", "three", "four"}, out[6][8] = {{0}};
    struct iovec iv[4], ov[6];
    struct mmsghdr im[4] = {0}, om[6] = {0};
    for (int i = 0; i < 4; i++) {
        iv[i] = (struct iovec){in[i], strlen(in[i])};
        im[i].msg_hdr = (struct msghdr){.msg_iov = &iv[i], .msg_iovlen = 1};
    }
    for (int i = 0; i < 6; i++) {
        ov[i] = (struct iovec){out[i], 7};
        om[i].msg_hdr = (struct msghdr){.msg_iov = &ov[i], .msg_iovlen = 1};
    }
    SHOW(sendmmsg(s[0], im, 4, 0));
    for (int i = 0; i < 4; i++) printf("%u ", im[i].msg_len);
    struct timespec ts = {1, 0};
    SHOW(recvmmsg(s[1], om, 6, MSG_WAITFORONE, &ts));
    for (int i = 0; i < 4; i++) printf("%u %s\n", om[i].msg_len, out[i]);
    SHOW(recvmmsg(s[1], om, 6, MSG_DONTWAIT, NULL));
    SHOW(recvmmsg(500, om, 6, 0, NULL));
    char peek[8] = "";
    SHOW(send(s[0], "abcdef", 6, 0));
    SHOW(recv(s[1], peek, 3, MSG_PEEK | MSG_TRUNC));
    SHOW(recv(s[1], peek, 8, 0));
    close(s[0]);
    SHOW(send(s[1], "x", 1, MSG_NOSIGNAL));
    close(s[1]);
}

static void tcp(void) {
    int l = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), on = 1, n = 0;
    SHOW(setsockopt(l, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on));
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    SHOW(bind(l, (void *)&a, sizeof a));
    SHOW(listen(l, 4));
    socklen_t len = sizeof a;
    SHOW(getsockname(l, (void *)&a, &len));
    SHOW(len);
    int c = socket(AF_INET, SOCK_STREAM, 0);
    SHOW(connect(c, (void *)&a, sizeof a));
    struct sockaddr_in peer;
    len = sizeof peer;
    int s = accept4(l, (void *)&peer, &len, SOCK_NONBLOCK);
    printf("accepted from %s\n", inet_ntoa(peer.sin_addr));
    SHOW(setsockopt(c, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on));
    len = sizeof n;
    SHOW(getsockopt(c, IPPROTO_TCP, TCP_NODELAY, &n, &len));
    SHOW(n);
    SHOW(getsockopt(c, SOL_SOCKET, SO_TYPE, &n, &len));
    SHOW(n);
    SHOW(getsockopt(c, SOL_SOCKET, SO_ERROR, &n, &len));
    struct linger lg = {1, 2};
    SHOW(setsockopt(c, SOL_SOCKET, SO_LINGER, &lg, sizeof lg));
    struct timeval tv = {0, 10000};
    SHOW(setsockopt(c, SOL_SOCKET, SO_RCVTIMEO, &tv, sizeof tv));
    SHOW(recv(c, &n, 4, 0));
    SHOW(write(c, "hello", 5));
    struct pollfd p = {s, POLLIN | POLLRDHUP, 0};
    SHOW(poll(&p, 1, 1000));
    SHOW(ioctl(s, FIONREAD, &n));
    SHOW(n);
    SHOW(shutdown(c, SHUT_WR));
    char buf[16];
    SHOW(recv(s, buf, 16, 0));
    SHOW(recv(s, buf, 16, 0));
    SHOW(getpeername(c, (void *)&peer, &len));
    SHOW(setsockopt(c, 12345, 1, &on, sizeof on));
    close(c), close(s), close(l);
    SHOW(socket(99, SOCK_STREAM, 0));
    SHOW(connect(0, (void *)&a, sizeof a) < 0);
}

static void interfaces(void) {
    int s = socket(AF_INET, SOCK_DGRAM, 0);
    struct ifreq r[32];
    struct ifconf c = {.ifc_len = sizeof r, .ifc_req = r};
    SHOW(ioctl(s, SIOCGIFCONF, &c));
    for (int i = 0; i < (int)(c.ifc_len / sizeof *r); i++) {
        struct sockaddr_in *a = (void *)&r[i].ifr_addr;
        printf("%s %s\n", r[i].ifr_name, inet_ntoa(a->sin_addr));
    }
    struct ifreq lo = {.ifr_name = "lo"};
    SHOW(ioctl(s, SIOCGIFFLAGS, &lo));
    SHOW(ioctl(s, SIOCGIFMTU, &lo));
    SHOW(lo.ifr_mtu);
    SHOW(ioctl(s, SIOCGIFINDEX, &lo));
    strcpy(lo.ifr_name, "nosuch0");
    SHOW(ioctl(s, SIOCGIFFLAGS, &lo));
    SHOW(if_nametoindex("lo"));
    close(s);
}

static void names(void) {
    struct sockaddr_un u = {AF_UNIX, "sock"};
    int s = socket(AF_UNIX, SOCK_STREAM, 0), c = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0);
    SHOW(connect(c, (void *)&u, sizeof u));
    SHOW(bind(s, (void *)&u, sizeof u));
    SHOW(listen(s, 1));
    SHOW(connect(c, (void *)&u, sizeof u));
    struct sockaddr_un got = {0};
    socklen_t len = sizeof got;
    SHOW(getpeername(c, (void *)&got, &len));
    printf("%s %u\n", got.sun_path, len);
    struct ucred cred;
    len = sizeof cred;
    SHOW(getsockopt(c, SOL_SOCKET, SO_PEERCRED, &cred, &len));
    SHOW(cred.pid == getpid());
    close(s), close(c);
    unlink("sock");
}

int main(void) {
    start();
    rights();
    several();
    tcp();
    interfaces();
    names();
    return 0;
}
