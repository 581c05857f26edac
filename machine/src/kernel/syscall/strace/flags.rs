//! Names of flags and numbers, by the word that stands for them in a row.

/// A set of names for one kind of argument.
pub(super) struct Names {
    /// The word in the table.
    pub word: &'static str,
    /// Bits that are a number, not flags.
    mask: u32,
    /// Values of the number.
    values: &'static [(u32, &'static str)],
    /// Flags.
    flags: &'static [(u32, &'static str)],
}

impl Names {
    /// The kind that `word` stands for.
    pub(super) fn of(word: &str) -> Option<&'static Self> {
        SETS.iter().find(|s| s.word == word)
    }

    /// A value in names; what has none in hexadecimal.
    pub(super) fn text(&self, value: u64) -> String {
        let value = value as u32;
        let number = value & self.mask;
        let mut parts: Vec<&str> = Vec::new();
        let mut rest = value & !self.mask;
        let named = self.values.iter().find(|(v, _)| *v == number);
        let zero_only = self.mask == 0 && value != 0; // PROT_NONE, F_OK: names of nothing at all
        match named {
            Some((_, name)) if !zero_only => parts.push(name),
            _ => rest |= number,
        }
        for (flag, name) in self.flags {
            if *flag != 0 && rest & flag == *flag {
                parts.push(name);
                rest &= !flag;
            }
        }
        if parts.is_empty() && self.mask == u32::MAX {
            return if value < 0x1000 {
                value.to_string()
            } else {
                format!("{value:#x}")
            };
        }
        let mut text = parts.join("|");
        if rest != 0 || text.is_empty() {
            if !text.is_empty() {
                text.push('|');
            }
            text.push_str(&super::decode::hex(u64::from(rest)));
        }
        text
    }
}

#[rustfmt::skip]
static SETS: &[Names] = &[
    Names { word: "O", mask: 0x3, values: &[(0x0, "O_RDONLY"), (0x1, "O_WRONLY"), (0x2, "O_RDWR")], flags: &[(0x40,
        "O_CREAT"), (0x80, "O_EXCL"), (0x100, "O_NOCTTY"), (0x200, "O_TRUNC"), (0x400, "O_APPEND"), (0x800,
        "O_NONBLOCK"), (0x101000, "O_SYNC"), (0x1000, "O_DSYNC"), (0x2000, "O_ASYNC"), (0x4000, "O_DIRECT"),
        (0x20000, "O_NOFOLLOW"), (0x40000, "O_NOATIME"), (0x80000, "O_CLOEXEC"), (0x200000, "O_PATH"), (0x410000,
        "O_TMPFILE"), (0x10000, "O_DIRECTORY")] },
    Names { word: "O_CLOEXEC", mask: 0, values: &[], flags: &[(0x800, "O_NONBLOCK"), (0x4000, "O_DIRECT"), (0x80000,
        "O_CLOEXEC")] },
    Names { word: "PROT", mask: 0, values: &[(0x0, "PROT_NONE")], flags: &[(0x1, "PROT_READ"), (0x2, "PROT_WRITE"),
        (0x4, "PROT_EXEC"), (0x1000000, "PROT_GROWSDOWN"), (0x2000000, "PROT_GROWSUP")] },
    Names { word: "MAP", mask: 0xf, values: &[(0x1, "MAP_SHARED"), (0x2, "MAP_PRIVATE"), (0x3,
        "MAP_SHARED_VALIDATE")], flags: &[(0x10, "MAP_FIXED"), (0x20, "MAP_ANONYMOUS"), (0x40, "MAP_32BIT"),
        (0x4000, "MAP_NORESERVE"), (0x8000, "MAP_POPULATE"), (0x10000, "MAP_NONBLOCK"), (0x100, "MAP_GROWSDOWN"),
        (0x800, "MAP_DENYWRITE"), (0x1000, "MAP_EXECUTABLE"), (0x2000, "MAP_LOCKED"), (0x40000, "MAP_HUGETLB"),
        (0x80000, "MAP_SYNC"), (0x20000, "MAP_STACK"), (0x100000, "MAP_FIXED_NOREPLACE")] },
    Names { word: "MREMAP", mask: 0, values: &[], flags: &[(0x1, "MREMAP_MAYMOVE"), (0x2, "MREMAP_FIXED"), (0x4,
        "MREMAP_DONTUNMAP")] },
    Names { word: "MS", mask: 0, values: &[], flags: &[(0x1, "MS_ASYNC"), (0x2, "MS_INVALIDATE"), (0x4, "MS_SYNC")]
        },
    Names { word: "MADV", mask: u32::MAX, values: &[(0x0, "MADV_NORMAL"), (0x1, "MADV_RANDOM"), (0x2,
        "MADV_SEQUENTIAL"), (0x3, "MADV_WILLNEED"), (0x4, "MADV_DONTNEED"), (0x8, "MADV_FREE"), (0x9,
        "MADV_REMOVE"), (0xa, "MADV_DONTFORK"), (0xb, "MADV_DOFORK"), (0xc, "MADV_MERGEABLE"), (0xd,
        "MADV_UNMERGEABLE"), (0xe, "MADV_HUGEPAGE"), (0xf, "MADV_NOHUGEPAGE"), (0x10, "MADV_DONTDUMP"), (0x11,
        "MADV_DODUMP"), (0x12, "MADV_WIPEONFORK"), (0x13, "MADV_KEEPONFORK"), (0x14, "MADV_COLD"), (0x15,
        "MADV_PAGEOUT")], flags: &[] },
    Names { word: "SEEK", mask: u32::MAX, values: &[(0x0, "SEEK_SET"), (0x1, "SEEK_CUR"), (0x2, "SEEK_END"), (0x3,
        "SEEK_DATA"), (0x4, "SEEK_HOLE")], flags: &[] },
    Names { word: "ACCESS", mask: 0, values: &[(0x0, "F_OK")], flags: &[(0x4, "R_OK"), (0x2, "W_OK"), (0x1, "X_OK")]
        },
    Names { word: "AT", mask: 0, values: &[], flags: &[(0x100, "AT_SYMLINK_NOFOLLOW"), (0x400, "AT_SYMLINK_FOLLOW"),
        (0x800, "AT_NO_AUTOMOUNT"), (0x1000, "AT_EMPTY_PATH"), (0x2000, "AT_STATX_FORCE_SYNC"), (0x4000,
        "AT_STATX_DONT_SYNC")] },
    Names { word: "AT_ACCESS", mask: 0, values: &[], flags: &[(0x200, "AT_EACCESS"), (0x100, "AT_SYMLINK_NOFOLLOW"),
        (0x1000, "AT_EMPTY_PATH")] },
    Names { word: "TCP", mask: u32::MAX, values: &[(1, "TCP_NODELAY"), (2, "TCP_MAXSEG"), (3, "TCP_CORK"),
        (4, "TCP_KEEPIDLE"), (5, "TCP_KEEPINTVL"), (6, "TCP_KEEPCNT"), (9, "TCP_DEFER_ACCEPT"), (11, "TCP_INFO"),
        (12, "TCP_QUICKACK"), (18, "TCP_USER_TIMEOUT"), (23, "TCP_FASTOPEN")], flags: &[] },
    Names { word: "IPPROTO", mask: u32::MAX, values: &[(0, "IPPROTO_IP"), (1, "IPPROTO_ICMP"), (6, "IPPROTO_TCP"),
        (17, "IPPROTO_UDP"), (58, "IPPROTO_ICMPV6")], flags: &[] },
    Names { word: "SEAL", mask: 0, values: &[], flags: &[(1, "F_SEAL_SEAL"), (2, "F_SEAL_SHRINK"), (4, "F_SEAL_GROW"),
        (8, "F_SEAL_WRITE"), (16, "F_SEAL_FUTURE_WRITE"), (32, "F_SEAL_EXEC")] },
    Names { word: "AT_REMOVE", mask: 0, values: &[], flags: &[(0x200, "AT_REMOVEDIR")] },
    Names { word: "SIG_HOW", mask: u32::MAX, values: &[(0x0, "SIG_BLOCK"), (0x1, "SIG_UNBLOCK"), (0x2,
        "SIG_SETMASK")], flags: &[] },
    Names { word: "ITIMER", mask: u32::MAX, values: &[(0x0, "ITIMER_REAL"), (0x1, "ITIMER_VIRTUAL"), (0x2,
        "ITIMER_PROF")], flags: &[] },
    Names { word: "CLOCK", mask: u32::MAX, values: &[(0x0, "CLOCK_REALTIME"), (0x1, "CLOCK_MONOTONIC"), (0x2,
        "CLOCK_PROCESS_CPUTIME_ID"), (0x3, "CLOCK_THREAD_CPUTIME_ID"), (0x4, "CLOCK_MONOTONIC_RAW"), (0x5,
        "CLOCK_REALTIME_COARSE"), (0x6, "CLOCK_MONOTONIC_COARSE"), (0x7, "CLOCK_BOOTTIME"), (0x8,
        "CLOCK_REALTIME_ALARM"), (0x9, "CLOCK_BOOTTIME_ALARM"), (0xb, "CLOCK_TAI")], flags: &[] },
    Names { word: "TIMER", mask: 0, values: &[], flags: &[(0x1, "TIMER_ABSTIME")] },
    Names { word: "AF", mask: u32::MAX, values: &[(0x0, "AF_UNSPEC"), (0x1, "AF_UNIX"), (0x2, "AF_INET"), (0xa,
        "AF_INET6"), (0x10, "AF_NETLINK"), (0x11, "AF_PACKET"), (0x28, "AF_VSOCK"), (0x26, "AF_ALG")], flags: &[] },
    Names { word: "SOCK", mask: 0xf, values: &[(0x1, "SOCK_STREAM"), (0x2, "SOCK_DGRAM"), (0x3, "SOCK_RAW"), (0x5,
        "SOCK_SEQPACKET")], flags: &[(0x80000, "SOCK_CLOEXEC"), (0x800, "SOCK_NONBLOCK")] },
    Names { word: "SOCK_FLAGS", mask: 0, values: &[], flags: &[(0x80000, "SOCK_CLOEXEC"), (0x800, "SOCK_NONBLOCK")]
        },
    Names { word: "MSG", mask: 0, values: &[], flags: &[(0x1, "MSG_OOB"), (0x2, "MSG_PEEK"), (0x4, "MSG_DONTROUTE"),
        (0x8, "MSG_CTRUNC"), (0x20, "MSG_TRUNC"), (0x40, "MSG_DONTWAIT"), (0x80, "MSG_EOR"), (0x100, "MSG_WAITALL"),
        (0x4000, "MSG_NOSIGNAL"), (0x8000, "MSG_MORE"), (0x10000, "MSG_WAITFORONE"), (0x40000000,
        "MSG_CMSG_CLOEXEC"), (0x2000, "MSG_ERRQUEUE")] },
    Names { word: "SHUT", mask: u32::MAX, values: &[(0x0, "SHUT_RD"), (0x1, "SHUT_WR"), (0x2, "SHUT_RDWR")], flags:
        &[] },
    Names { word: "SOL", mask: u32::MAX, values: &[(0x0, "SOL_IP"), (0x1, "SOL_SOCKET"), (0x6, "SOL_TCP"),
        (0x11, "SOL_UDP"), (0x29, "SOL_IPV6"), (0x10e, "SOL_NETLINK")], flags: &[] },
    Names { word: "SO", mask: u32::MAX, values: &[(0x1, "SO_DEBUG"), (0x2, "SO_REUSEADDR"), (0x3, "SO_TYPE"), (0x4,
        "SO_ERROR"), (0x5, "SO_DONTROUTE"), (0x6, "SO_BROADCAST"), (0x7, "SO_SNDBUF"), (0x8, "SO_RCVBUF"), (0x9,
        "SO_KEEPALIVE"), (0xa, "SO_OOBINLINE"), (0xd, "SO_LINGER"), (0xf, "SO_REUSEPORT"), (0x10, "SO_PASSCRED"),
        (0x11, "SO_PEERCRED"), (0x12, "SO_RCVLOWAT"), (0x13, "SO_SNDLOWAT"), (0x14, "SO_RCVTIMEO"), (0x15,
        "SO_SNDTIMEO"), (0x1e, "SO_ACCEPTCONN"), (0x26, "SO_PROTOCOL"), (0x27, "SO_DOMAIN"), (0x20,
        "SO_SNDBUFFORCE"), (0x21, "SO_RCVBUFFORCE")], flags: &[] },
    Names { word: "CLONE", mask: 0xff, values: &[], flags: &[(0x100, "CLONE_VM"), (0x200, "CLONE_FS"), (0x400,
        "CLONE_FILES"), (0x800, "CLONE_SIGHAND"), (0x1000, "CLONE_PIDFD"), (0x2000, "CLONE_PTRACE"), (0x4000,
        "CLONE_VFORK"), (0x8000, "CLONE_PARENT"), (0x10000, "CLONE_THREAD"), (0x20000, "CLONE_NEWNS"), (0x40000,
        "CLONE_SYSVSEM"), (0x80000, "CLONE_SETTLS"), (0x100000, "CLONE_PARENT_SETTID"), (0x200000,
        "CLONE_CHILD_CLEARTID"), (0x800000, "CLONE_UNTRACED"), (0x1000000, "CLONE_CHILD_SETTID"), (0x4000000,
        "CLONE_NEWUTS"), (0x8000000, "CLONE_NEWIPC"), (0x10000000, "CLONE_NEWUSER"), (0x20000000, "CLONE_NEWPID"),
        (0x40000000, "CLONE_NEWNET"), (0x80000000, "CLONE_IO")] },
    Names { word: "WAIT", mask: 0, values: &[], flags: &[(0x1, "WNOHANG"), (0x2, "WSTOPPED"), (0x4, "WEXITED"),
        (0x8, "WCONTINUED"), (0x1000000, "WNOWAIT")] },
    Names { word: "P_ID", mask: u32::MAX, values: &[(0x0, "P_ALL"), (0x1, "P_PID"), (0x2, "P_PGID"), (0x3,
        "P_PIDFD")], flags: &[] },
    Names { word: "LOCK", mask: 0, values: &[], flags: &[(0x1, "LOCK_SH"), (0x2, "LOCK_EX"), (0x8, "LOCK_UN"), (0x4,
        "LOCK_NB")] },
    Names { word: "RLIMIT", mask: u32::MAX, values: &[(0x0, "RLIMIT_CPU"), (0x1, "RLIMIT_FSIZE"), (0x2,
        "RLIMIT_DATA"), (0x3, "RLIMIT_STACK"), (0x4, "RLIMIT_CORE"), (0x5, "RLIMIT_RSS"), (0x6, "RLIMIT_NPROC"),
        (0x7, "RLIMIT_NOFILE"), (0x8, "RLIMIT_MEMLOCK"), (0x9, "RLIMIT_AS"), (0xa, "RLIMIT_LOCKS"), (0xb,
        "RLIMIT_SIGPENDING"), (0xc, "RLIMIT_MSGQUEUE"), (0xd, "RLIMIT_NICE"), (0xe, "RLIMIT_RTPRIO"), (0xf,
        "RLIMIT_RTTIME")], flags: &[] },
    Names { word: "RUSAGE", mask: u32::MAX, values: &[(0x0, "RUSAGE_SELF"), (0xffffffff, "RUSAGE_CHILDREN"), (0x1,
        "RUSAGE_THREAD")], flags: &[] },
    Names { word: "SCHED", mask: u32::MAX, values: &[(0x0, "SCHED_OTHER"), (0x1, "SCHED_FIFO"), (0x2, "SCHED_RR"),
        (0x3, "SCHED_BATCH"), (0x5, "SCHED_IDLE")], flags: &[] },
    Names { word: "FCNTL", mask: u32::MAX, values: &[(0x0, "F_DUPFD"), (0x1, "F_GETFD"), (0x2, "F_SETFD"), (0x3,
        "F_GETFL"), (0x4, "F_SETFL"), (0x5, "F_GETLK"), (0x6, "F_SETLK"), (0x7, "F_SETLKW"), (0x8, "F_SETOWN"),
        (0x9, "F_GETOWN"), (0xa, "F_SETSIG"), (0xb, "F_GETSIG"), (0xf, "F_SETOWN_EX"), (0x10, "F_GETOWN_EX"), (0x24,
        "F_OFD_GETLK"), (0x25, "F_OFD_SETLK"), (0x26, "F_OFD_SETLKW"), (0x400, "F_SETLEASE"), (0x401, "F_GETLEASE"),
        (0x402, "F_NOTIFY"), (0x406, "F_DUPFD_CLOEXEC"), (0x407, "F_SETPIPE_SZ"), (0x408, "F_GETPIPE_SZ"), (0x409,
        "F_ADD_SEALS"), (0x40a, "F_GET_SEALS")], flags: &[] },
    Names { word: "FUTEX", mask: 0x7f, values: &[(0x0, "FUTEX_WAIT"), (0x1, "FUTEX_WAKE"), (0x2, "FUTEX_FD"), (0x3,
        "FUTEX_REQUEUE"), (0x4, "FUTEX_CMP_REQUEUE"), (0x5, "FUTEX_WAKE_OP"), (0x6, "FUTEX_LOCK_PI"), (0x7,
        "FUTEX_UNLOCK_PI"), (0x8, "FUTEX_TRYLOCK_PI"), (0x9, "FUTEX_WAIT_BITSET"), (0xa, "FUTEX_WAKE_BITSET"), (0xb,
        "FUTEX_WAIT_REQUEUE_PI"), (0xc, "FUTEX_CMP_REQUEUE_PI"), (0xd, "FUTEX_LOCK_PI2")], flags: &[(0x80,
        "FUTEX_PRIVATE_FLAG"), (0x100, "FUTEX_CLOCK_REALTIME")] },
    Names { word: "FADV", mask: u32::MAX, values: &[(0x0, "POSIX_FADV_NORMAL"), (0x1, "POSIX_FADV_RANDOM"), (0x2,
        "POSIX_FADV_SEQUENTIAL"), (0x3, "POSIX_FADV_WILLNEED"), (0x4, "POSIX_FADV_DONTNEED"), (0x5,
        "POSIX_FADV_NOREUSE")], flags: &[] },
    Names { word: "FALLOC", mask: 0, values: &[], flags: &[(0x1, "FALLOC_FL_KEEP_SIZE"), (0x2,
        "FALLOC_FL_PUNCH_HOLE"), (0x8, "FALLOC_FL_COLLAPSE_RANGE"), (0x10, "FALLOC_FL_ZERO_RANGE"), (0x20,
        "FALLOC_FL_INSERT_RANGE"), (0x40, "FALLOC_FL_UNSHARE_RANGE")] },
    Names { word: "SPLICE", mask: 0, values: &[], flags: &[(0x1, "SPLICE_F_MOVE"), (0x2, "SPLICE_F_NONBLOCK"), (0x4,
        "SPLICE_F_MORE"), (0x8, "SPLICE_F_GIFT")] },
    Names { word: "EPOLL", mask: 0, values: &[], flags: &[(0x80000, "EPOLL_CLOEXEC")] },
    Names { word: "EPOLL_CTL", mask: u32::MAX, values: &[(0x1, "EPOLL_CTL_ADD"), (0x2, "EPOLL_CTL_DEL"), (0x3,
        "EPOLL_CTL_MOD")], flags: &[] },
    Names { word: "EPOLLEV", mask: 0, values: &[], flags: &[(0x1, "EPOLLIN"), (0x2, "EPOLLPRI"), (0x4, "EPOLLOUT"),
        (0x40, "EPOLLRDNORM"), (0x80, "EPOLLRDBAND"), (0x100, "EPOLLWRNORM"), (0x200, "EPOLLWRBAND"), (0x400,
        "EPOLLMSG"), (0x8, "EPOLLERR"), (0x10, "EPOLLHUP"), (0x2000, "EPOLLRDHUP"), (0x10000000, "EPOLLEXCLUSIVE"),
        (0x20000000, "EPOLLWAKEUP"), (0x40000000, "EPOLLONESHOT"), (0x80000000, "EPOLLET")] },
    Names { word: "POLL", mask: 0, values: &[], flags: &[(0x1, "POLLIN"), (0x2, "POLLPRI"), (0x4, "POLLOUT"), (0x8,
        "POLLERR"), (0x10, "POLLHUP"), (0x20, "POLLNVAL"), (0x40, "POLLRDNORM"), (0x80, "POLLRDBAND"), (0x100,
        "POLLWRNORM"), (0x200, "POLLWRBAND"), (0x2000, "POLLRDHUP")] },
    Names { word: "EFD", mask: 0, values: &[], flags: &[(0x1, "EFD_SEMAPHORE"), (0x80000, "EFD_CLOEXEC"), (0x800,
        "EFD_NONBLOCK")] },
    Names { word: "SFD", mask: 0, values: &[], flags: &[(0x80000, "SFD_CLOEXEC"), (0x800, "SFD_NONBLOCK")] },
    Names { word: "TFD", mask: 0, values: &[], flags: &[(0x80000, "TFD_CLOEXEC"), (0x800, "TFD_NONBLOCK")] },
    Names { word: "IN", mask: 0, values: &[], flags: &[(0x1, "IN_ACCESS"), (0x2, "IN_MODIFY"), (0x4, "IN_ATTRIB"),
        (0x8, "IN_CLOSE_WRITE"), (0x10, "IN_CLOSE_NOWRITE"), (0x20, "IN_OPEN"), (0x40, "IN_MOVED_FROM"), (0x80,
        "IN_MOVED_TO"), (0x100, "IN_CREATE"), (0x200, "IN_DELETE"), (0x400, "IN_DELETE_SELF"), (0x800,
        "IN_MOVE_SELF"), (0x1000000, "IN_ONLYDIR"), (0x2000000, "IN_DONT_FOLLOW"), (0x4000000, "IN_EXCL_UNLINK"),
        (0x20000000, "IN_MASK_ADD"), (0x40000000, "IN_ISDIR"), (0x80000000, "IN_ONESHOT")] },
    Names { word: "INIT_IN", mask: 0, values: &[], flags: &[(0x80000, "IN_CLOEXEC"), (0x800, "IN_NONBLOCK")] },
    Names { word: "GRND", mask: 0, values: &[], flags: &[(0x1, "GRND_NONBLOCK"), (0x2, "GRND_RANDOM"), (0x4,
        "GRND_INSECURE")] },
    Names { word: "MFD", mask: 0, values: &[], flags: &[(0x1, "MFD_CLOEXEC"), (0x2, "MFD_ALLOW_SEALING"), (0x4,
        "MFD_HUGETLB"), (0x8, "MFD_NOEXEC_SEAL"), (0x10, "MFD_EXEC")] },
    Names { word: "RENAME", mask: 0, values: &[], flags: &[(0x1, "RENAME_NOREPLACE"), (0x2, "RENAME_EXCHANGE"),
        (0x4, "RENAME_WHITEOUT")] },
    Names { word: "CLOSE_RANGE", mask: 0, values: &[], flags: &[(0x2, "CLOSE_RANGE_UNSHARE"), (0x4,
        "CLOSE_RANGE_CLOEXEC")] },
    Names { word: "STATX", mask: 0, values: &[], flags: &[(0x7ff, "STATX_BASIC_STATS"), (0x1, "STATX_TYPE"), (0x2, "STATX_MODE"), (0x4,
        "STATX_NLINK"), (0x8, "STATX_UID"), (0x10, "STATX_GID"), (0x20, "STATX_ATIME"), (0x40, "STATX_MTIME"),
        (0x80, "STATX_CTIME"), (0x100, "STATX_INO"), (0x200, "STATX_SIZE"), (0x400, "STATX_BLOCKS"), (0x800,
        "STATX_BTIME"), (0x1000, "STATX_MNT_ID")] },
    Names { word: "RWF", mask: 0, values: &[], flags: &[(0x1, "RWF_HIPRI"), (0x2, "RWF_DSYNC"), (0x4, "RWF_SYNC"),
        (0x8, "RWF_NOWAIT"), (0x10, "RWF_APPEND")] },
    Names { word: "ARCH", mask: u32::MAX, values: &[(0x1001, "ARCH_SET_GS"), (0x1002, "ARCH_SET_FS"), (0x1003,
        "ARCH_GET_FS"), (0x1004, "ARCH_GET_GS"), (0x1011, "ARCH_GET_CPUID"), (0x1012, "ARCH_SET_CPUID"), (0x3001,
        "ARCH_CET_STATUS")], flags: &[] },
    Names { word: "PRCTL", mask: u32::MAX, values: &[(0x1, "PR_SET_PDEATHSIG"), (0x2, "PR_GET_PDEATHSIG"), (0x3,
        "PR_GET_DUMPABLE"), (0x4, "PR_SET_DUMPABLE"), (0x7, "PR_GET_KEEPCAPS"), (0x8, "PR_SET_KEEPCAPS"), (0xf,
        "PR_SET_NAME"), (0x10, "PR_GET_NAME"), (0x15, "PR_GET_SECCOMP"), (0x16, "PR_SET_SECCOMP"), (0x17,
        "PR_CAPBSET_READ"), (0x18, "PR_CAPBSET_DROP"), (0x1b, "PR_GET_SECUREBITS"), (0x1c, "PR_SET_SECUREBITS"),
        (0x1d, "PR_SET_TIMERSLACK"), (0x1e, "PR_GET_TIMERSLACK"), (0x24, "PR_SET_CHILD_SUBREAPER"), (0x25,
        "PR_GET_CHILD_SUBREAPER"), (0x26, "PR_SET_NO_NEW_PRIVS"), (0x27, "PR_GET_NO_NEW_PRIVS"), (0x29,
        "PR_SET_THP_DISABLE"), (0x2a, "PR_GET_THP_DISABLE"), (0x2f, "PR_CAP_AMBIENT"), (0x59616d61,
        "PR_SET_PTRACER"), (0x53564d41, "PR_SET_VMA")], flags: &[] },
    Names { word: "MEMBARRIER", mask: u32::MAX, values: &[(0x0, "MEMBARRIER_CMD_QUERY"), (0x1,
        "MEMBARRIER_CMD_GLOBAL"), (0x2, "MEMBARRIER_CMD_GLOBAL_EXPEDITED"), (0x4,
        "MEMBARRIER_CMD_REGISTER_GLOBAL_EXPEDITED"), (0x8, "MEMBARRIER_CMD_PRIVATE_EXPEDITED"), (0x10,
        "MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED"), (0x20, "MEMBARRIER_CMD_PRIVATE_EXPEDITED_SYNC_CORE"), (0x40,
        "MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED_SYNC_CORE")], flags: &[] },
    Names { word: "KCMP", mask: u32::MAX, values: &[(0x0, "KCMP_FILE"), (0x1, "KCMP_VM"), (0x2, "KCMP_FILES"), (0x3,
        "KCMP_FS"), (0x4, "KCMP_SIGHAND"), (0x5, "KCMP_IO"), (0x6, "KCMP_SYSVSEM"), (0x7, "KCMP_EPOLL_TFD")], flags:
        &[] },
    Names { word: "IOCTL", mask: u32::MAX, values: &[(0x5420, "TIOCPKT"), (0x80045439, "TIOCGPTLCK"), (0x5401, "TCGETS"), (0x5402, "TCSETS"), (0x5403, "TCSETSW"),
        (0x5404, "TCSETSF"), (0x5409, "TCSBRK"), (0x540a, "TCXONC"), (0x540b, "TCFLSH"), (0x540c, "TIOCEXCL"),
        (0x540d, "TIOCNXCL"), (0x540e, "TIOCSCTTY"), (0x540f, "TIOCGPGRP"), (0x5410, "TIOCSPGRP"), (0x5411,
        "TIOCOUTQ"), (0x5413, "TIOCGWINSZ"), (0x5414, "TIOCSWINSZ"), (0x541b, "FIONREAD"), (0x5421, "FIONBIO"),
        (0x5452, "FIOASYNC"), (0x5422, "TIOCNOTTY"), (0x5450, "FIONCLEX"), (0x5451, "FIOCLEX"), (0x5429,
        "TIOCGSID"), (0x80045430, "TIOCGPTN"), (0x40045431, "TIOCSPTLCK"), (0x5441, "TIOCGPTPEER"), (0x40049409,
        "FICLONE"), (0x80086601, "FS_IOC_GETFLAGS"), (0x40086602, "FS_IOC_SETFLAGS"), (0x80081272, "BLKGETSIZE64"),
        (0x8910, "SIOCGIFNAME"), (0x8912, "SIOCGIFCONF"), (0x8913, "SIOCGIFFLAGS"), (0x8915, "SIOCGIFADDR"),
        (0x891b, "SIOCGIFNETMASK"), (0x8919, "SIOCGIFBRDADDR"), (0x8921, "SIOCGIFMTU"), (0x8927, "SIOCGIFHWADDR"),
        (0x8933, "SIOCGIFINDEX"), (0x8905, "SIOCATMARK")], flags: &[] },
    Names { word: "SA", mask: 0, values: &[], flags: &[(0x1, "SA_NOCLDSTOP"), (0x2, "SA_NOCLDWAIT"), (0x4,
        "SA_SIGINFO"), (0x4000000, "SA_RESTORER"), (0x8000000, "SA_ONSTACK"), (0x10000000, "SA_RESTART"),
        (0x40000000, "SA_NODEFER"), (0x80000000, "SA_RESETHAND")] },
    Names { word: "FD_", mask: 0, values: &[], flags: &[(0x1, "FD_CLOEXEC")] },
];
