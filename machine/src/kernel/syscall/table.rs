//! The one table of system calls: number, name, what each argument is, and who answers.
//!
//! Two consumers. The guest half stages pointer arguments in the bounce area by it; the hypervisor
//! half refuses by it whatever a call's row does not describe. See [`super::marshal`]. A number
//! without a row is ENOSYS, and counted. Two more consumers only read: [`super::strace`] prints
//! arguments as a row's last column says, and docs/syscalls.md is made from the rows.

use super::{
    Call, SysResult, clocks, clone, events, exec, fs, futex, ioctl, limits, memory, misc, openat2,
    proc, procfs, ready, signals, sleep, sockets, system, timers,
};
use crate::kernel::error::Errno;

/// How long what a pointer argument points at is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Len {
    /// That many bytes.
    Bytes(u32),
    /// The value of argument `n` in bytes.
    Arg(u8),
    /// The value of argument `n` times a size.
    Times(u8, u32),
    /// A bit set of argument `n` bits, in whole 64-bit words (`fd_set`).
    Bits(u8),
    /// The 32-bit word that pointer argument `n` points at (`socklen_t *`).
    Via(u8),
}

/// What one argument of a system call is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Arg {
    /// A number.
    Int,
    /// A file descriptor.
    Fd,
    /// A directory's file descriptor, or `AT_FDCWD`.
    DirFd,
    /// A NUL-terminated string, at most `PATH_MAX` bytes with its NUL.
    Path,
    /// The kernel reads it.
    In(Len),
    /// The kernel writes all of it.
    Out(Len),
    /// The kernel writes as many units of that size as the call returns.
    OutRet(Len, u32),
    /// The kernel reads and writes it.
    InOut(Len),
    /// A pointer that the guest kernel deals with itself: outside it is always null.
    Null,
    /// A message to send, see [`super::marshal::WireMsg`].
    MsgIn,
    /// A message to receive, see [`super::marshal::WireMsg`].
    MsgOut,
    /// The third argument of `ioctl`: depends on the request.
    Ioctl,
    /// The third argument of `fcntl`: depends on the command.
    Fcntl,
    /// The second argument of `prctl`: depends on the option, and the host knows few of them.
    PrctlArg,
    /// `struct sigevent` of the guest kernel's own, see [`super::timers`].
    Event,
}

/// A handler in the guest kernel.
pub type KernelFn = fn(&mut Call<'_, '_>) -> SysResult;

/// Who answers a system call.
#[derive(Clone, Copy, Debug)]
pub enum Handler {
    /// The host, as it is.
    Proxy,
    /// The host, behind a function of the guest kernel.
    Front(KernelFn),
    /// The guest kernel alone; the host never executes it.
    Kernel(KernelFn),
    /// Nobody: this error.
    Refuse(Errno),
}

/// One system call.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// Its x86-64 number.
    pub nr: i64,
    /// Its name.
    pub name: &'static str,
    /// Its arguments.
    pub args: [Arg; 6],
    /// Who answers it.
    pub handler: Handler,
    /// How its arguments are printed, a word for each: see [`super::strace`].
    pub format: &'static str,
}

impl Row {
    /// Whether the host may execute this call for a guest.
    #[must_use]
    pub const fn host_may_run(&self) -> bool {
        matches!(self.handler, Handler::Proxy | Handler::Front(_))
    }

    /// Whether a call that a signal interrupted is restarted when the handler has `SA_RESTART`
    /// (signal(7)).
    #[must_use]
    pub const fn restarts(&self) -> bool {
        // poll, select, pause, nanosleep, semop, msgsnd, msgrcv, rt_sigtimedwait, rt_sigsuspend, semtimedop,
        // clock_nanosleep, epoll_wait, pselect6, ppoll, epoll_pwait, epoll_pwait2
        !matches!(
            self.nr,
            7 | 23 | 34 | 35 | 65 | 69 | 70 | 128 | 130 | 220 | 230 | 232 | 270 | 271 | 281 | 441
        )
    }
}

/// Builds the argument array; what is not named is a number.
const fn pad<const N: usize>(given: [Arg; N]) -> [Arg; 6] {
    let mut all = [Arg::Int; 6];
    let mut i = 0;
    while i < N {
        all[i] = given[i];
        i += 1;
    }
    all
}

macro_rules! rows {
    ($($nr:literal $name:ident [$($arg:expr),*] $handler:expr, $format:literal;)*) => {
        &[$(Row {
            nr: $nr, name: stringify!($name), args: pad([$($arg),*]), handler: $handler, format: $format,
        }),*]
    };
}

use Arg::*;
use Handler::{Front, Kernel, Proxy, Refuse};

const STAT: Arg = Out(Len::Bytes(144));
const TIMESPEC_IN: Arg = In(Len::Bytes(16));
const TIMESPEC_OUT: Arg = Out(Len::Bytes(16));
const OFF: Arg = InOut(Len::Bytes(8));
const SOCKLEN: Arg = InOut(Len::Bytes(4));
const FDSET: Arg = InOut(Len::Bits(0));
const BUF1: Arg = OutRet(Len::Arg(1), 1);
const BUF2: Arg = OutRet(Len::Arg(2), 1);
const BUF3: Arg = OutRet(Len::Arg(3), 1);
const RUSAGE: Arg = Out(Len::Bytes(144));
const ENOSYS: Handler = Refuse(Errno::ENOSYS);

/// Every system call this kernel knows, in order of number.
#[rustfmt::skip]
pub static ROWS: &[Row] = rows! {
    0   read [Fd, BUF2] Front(fs::read), "fd > u";
    1   write [Fd, In(Len::Arg(2))] Front(fs::write), "fd < u";
    2   open [Path] Front(fs::open), "s O mode?";
    3   close [Fd] Front(fs::close), "fd";
    4   stat [Path, STAT] Proxy, "s stat>";
    5   fstat [Fd, STAT] Proxy, "fd stat>";
    6   lstat [Path, STAT] Proxy, "s stat>";
    7   poll [InOut(Len::Times(1, 8))] Front(sleep::poll), "poll u d";
    8   lseek [Fd] Proxy, "fd l SEEK";
    9   mmap [] Kernel(memory::mmap), "p u PROT MAP d x =p";
    10  mprotect [] Kernel(memory::mprotect), "p u PROT";
    11  munmap [] Kernel(memory::munmap), "p u";
    12  brk [] Kernel(memory::brk), "p =p";
    13  rt_sigaction [] Kernel(signals::rt_sigaction), "sig act act> u";
    14  rt_sigprocmask [] Kernel(signals::rt_sigprocmask), "SIG_HOW set set> u";
    15  rt_sigreturn [] Kernel(signals::rt_sigreturn), "";
    16  ioctl [Fd, Int, Ioctl] Front(ioctl::ioctl), "fd IOCTL iarg";
    17  pread64 [Fd, BUF2] Front(fs::pread64), "fd > u l";
    18  pwrite64 [Fd, In(Len::Arg(2))] Front(fs::pwrite64), "fd < u l";
    19  readv [] Kernel(fs::readv), "fd iov> u";
    20  writev [] Kernel(fs::writev), "fd iov u";
    21  access [Path] Proxy, "s ACCESS";
    22  pipe [Out(Len::Bytes(8))] Front(fs::pipe), "fds>";
    23  select [Int, FDSET, FDSET, FDSET, InOut(Len::Bytes(16))] Front(sleep::select), "d fdset fdset fdset tv";
    24  sched_yield [] Front(clocks::sched_yield), "";
    25  mremap [] Kernel(memory::mremap), "p u u MREMAP p =p";
    26  msync [] Kernel(memory::msync), "p u MS";
    27  mincore [] Kernel(memory::mincore), "p u p";
    28  madvise [] Kernel(memory::madvise), "p u MADV";
    29  shmget [] ENOSYS, "x u x";
    30  shmat [] ENOSYS, "d p x =p";
    31  shmctl [] ENOSYS, "d d p";
    32  dup [Fd] Front(fs::dup), "fd";
    33  dup2 [Fd, Fd] Front(fs::dup2), "fd fd";
    34  pause [] Kernel(signals::pause), "";
    35  nanosleep [] Kernel(sleep::nanosleep), "ts ts>";
    36  getitimer [Int, Out(Len::Bytes(32))] Front(clocks::getitimer), "ITIMER itv>";
    37  alarm [] Front(clocks::alarm), "u";
    38  setitimer [Int, In(Len::Bytes(32)), Out(Len::Bytes(32))] Front(clocks::setitimer), "ITIMER itv itv>";
    39  getpid [] Proxy, "";
    40  sendfile [Fd, Fd, OFF] Proxy, "fd fd l* u";
    41  socket [] Front(fs::new_fd), "AF SOCK proto";
    42  connect [Fd, In(Len::Arg(2))] Proxy, "fd sa u";
    43  accept [Fd, Out(Len::Via(2)), SOCKLEN] Front(fs::new_fd), "fd sa> d*";
    44  sendto [Fd, In(Len::Arg(2)), Int, Int, In(Len::Arg(5))] Front(fs::clamped), "fd < u MSG sa u";
    45  recvfrom [Fd, BUF2, Int, Int, Out(Len::Via(5)), SOCKLEN] Front(fs::clamped), "fd > u MSG sa> d*";
    46  sendmsg [Fd, MsgIn] Front(sockets::sendmsg), "fd msg MSG";
    47  recvmsg [Fd, MsgOut] Front(sockets::recvmsg), "fd msg> MSG";
    48  shutdown [Fd] Proxy, "fd SHUT";
    49  bind [Fd, In(Len::Arg(2))] Proxy, "fd sa u";
    50  listen [Fd] Proxy, "fd d";
    51  getsockname [Fd, Out(Len::Via(2)), SOCKLEN] Proxy, "fd sa> d*>";
    52  getpeername [Fd, Out(Len::Via(2)), SOCKLEN] Proxy, "fd sa> d*>";
    53  socketpair [Int, Int, Int, Out(Len::Bytes(8))] Front(fs::pipe), "AF SOCK d fds>";
    54  setsockopt [Fd, Int, Int, In(Len::Arg(4))] Proxy, "fd SOL so opt u";
    55  getsockopt [Fd, Int, Int, Out(Len::Via(4)), SOCKLEN] Proxy, "fd SOL so opt> d*>";
    56  clone [] Kernel(clone::clone), "CLONE p p p x";
    57  fork [] Kernel(clone::fork), "";
    58  vfork [] Kernel(clone::vfork), "";
    59  execve [] Kernel(exec::execve), "s strv envv";
    60  exit [] Kernel(proc::exit), "d =?";
    61  wait4 [Int, Out(Len::Bytes(4)), Int, RUSAGE] Front(clocks::wait), "d wstatus> WAIT p";
    62  kill [] Front(signals::kill), "d sig";
    63  uname [Out(Len::Bytes(390))] Proxy, "uts>";
    64  semget [] ENOSYS, "x d x";
    65  semop [] ENOSYS, "d p u";
    66  semctl [] ENOSYS, "d d d p";
    67  shmdt [] ENOSYS, "p";
    68  msgget [] ENOSYS, "x x";
    69  msgsnd [] ENOSYS, "d p u x";
    70  msgrcv [] ENOSYS, "d p u l x";
    71  msgctl [] ENOSYS, "d d p";
    72  fcntl [Fd, Int, Fcntl] Front(fs::fcntl), "fd FCNTL farg";
    73  flock [Fd] Proxy, "fd LOCK";
    74  fsync [Fd] Proxy, "fd";
    75  fdatasync [Fd] Proxy, "fd";
    76  truncate [Path] Front(fs::set_size), "s l";
    77  ftruncate [Fd] Front(fs::set_size), "fd l";
    78  getdents [Fd, BUF2] Front(procfs::getdents), "fd dents> u";
    79  getcwd [BUF1] Front(fs::clamped), "s> u";
    80  chdir [Path] Proxy, "s";
    81  fchdir [Fd] Proxy, "fd";
    82  rename [Path, Path] Proxy, "s s";
    83  mkdir [Path] Proxy, "s o";
    84  rmdir [Path] Proxy, "s";
    85  creat [Path] Front(fs::new_fd), "s o";
    86  link [Path, Path] Proxy, "s s";
    87  unlink [Path] Proxy, "s";
    88  symlink [Path, Path] Proxy, "s s";
    89  readlink [Path, BUF2] Front(fs::readlink), "s > u";
    90  chmod [Path] Proxy, "s o";
    91  fchmod [Fd] Proxy, "fd o";
    92  chown [Path] Proxy, "s d d";
    93  fchown [Fd] Proxy, "fd d d";
    94  lchown [Path] Proxy, "s d d";
    95  umask [] Proxy, "o =o";
    96  gettimeofday [Out(Len::Bytes(16)), Out(Len::Bytes(8))] Front(clocks::gettimeofday), "tv> p";
    97  getrlimit [] Kernel(limits::getrlimit), "RLIMIT rlim>";
    98  getrusage [Int, RUSAGE] Front(system::getrusage), "RUSAGE p";
    99  sysinfo [Out(Len::Bytes(112))] Front(proc::sysinfo), "p";
    100 times [Out(Len::Bytes(32))] Front(clocks::times), "p";
    101 ptrace [] Refuse(Errno::EPERM), "d d p p";
    102 getuid [] Proxy, "";
    103 syslog [] Refuse(Errno::EPERM), "d p d";
    104 getgid [] Proxy, "";
    105 setuid [] Proxy, "d";
    106 setgid [] Proxy, "d";
    107 geteuid [] Proxy, "";
    108 getegid [] Proxy, "";
    109 setpgid [] Proxy, "d d";
    110 getppid [] Proxy, "";
    111 getpgrp [] Proxy, "";
    112 setsid [] Proxy, "";
    113 setreuid [] Proxy, "d d";
    114 setregid [] Proxy, "d d";
    115 getgroups [Int, Out(Len::Times(0, 4))] Proxy, "d p";
    116 setgroups [Int, In(Len::Times(0, 4))] Proxy, "d p";
    117 setresuid [] Proxy, "d d d";
    118 getresuid [Out(Len::Bytes(4)), Out(Len::Bytes(4)), Out(Len::Bytes(4))] Proxy, "d*> d*> d*>";
    119 setresgid [] Proxy, "d d d";
    120 getresgid [Out(Len::Bytes(4)), Out(Len::Bytes(4)), Out(Len::Bytes(4))] Proxy, "d*> d*> d*>";
    121 getpgid [] Proxy, "d";
    122 setfsuid [] Proxy, "d";
    123 setfsgid [] Proxy, "d";
    124 getsid [] Proxy, "d";
    125 capget [InOut(Len::Bytes(8)), Out(Len::Bytes(24))] Front(system::capget), "p p";
    126 capset [In(Len::Bytes(8)), In(Len::Bytes(24))] Proxy, "p p";
    127 rt_sigpending [] Kernel(signals::rt_sigpending), "set> u";
    128 rt_sigtimedwait [] Kernel(signals::rt_sigtimedwait), "set info> ts u";
    129 rt_sigqueueinfo [Int, Int, In(Len::Bytes(128))] Front(signals::rt_sigqueueinfo), "d sig p";
    130 rt_sigsuspend [] Kernel(signals::rt_sigsuspend), "set u";
    131 sigaltstack [] Kernel(signals::sigaltstack), "stack stack>";
    132 utime [Path, In(Len::Bytes(16))] Proxy, "s p";
    133 mknod [Path] Proxy, "s o x";
    134 uselib [] ENOSYS, "s";
    135 personality [] Kernel(proc::personality), "x =x";
    136 ustat [] ENOSYS, "x p";
    137 statfs [Path, Out(Len::Bytes(120))] Proxy, "s p";
    138 fstatfs [Fd, Out(Len::Bytes(120))] Proxy, "fd p";
    139 sysfs [] ENOSYS, "d x x";
    140 getpriority [] Proxy, "d d";
    141 setpriority [] Proxy, "d d d";
    142 sched_setparam [Int, In(Len::Bytes(4))] Proxy, "d d*";
    143 sched_getparam [Int, Out(Len::Bytes(4))] Proxy, "d d*>";
    144 sched_setscheduler [Int, Int, In(Len::Bytes(4))] Proxy, "d SCHED d*";
    145 sched_getscheduler [] Proxy, "d";
    146 sched_get_priority_max [] Proxy, "SCHED";
    147 sched_get_priority_min [] Proxy, "SCHED";
    148 sched_rr_get_interval [Int, TIMESPEC_OUT] Proxy, "d ts>";
    149 mlock [] Kernel(system::mlock), "p u";
    150 munlock [] Kernel(system::mlock), "p u";
    151 mlockall [] Kernel(system::mlockall), "x";
    152 munlockall [] Kernel(misc::nothing), "";
    153 vhangup [] Refuse(Errno::EPERM), "";
    154 modify_ldt [] ENOSYS, "d p u";
    155 pivot_root [] Refuse(Errno::EPERM), "s s";
    156 sysctl [] ENOSYS, "p";
    157 prctl [Int, PrctlArg] Front(system::prctl), "PRCTL prarg x x x";
    158 arch_prctl [] Kernel(proc::arch_prctl), "ARCH p";
    159 adjtimex [] Refuse(Errno::EPERM), "p";
    160 setrlimit [] Kernel(limits::setrlimit), "RLIMIT rlim";
    161 chroot [] Refuse(Errno::EPERM), "s";
    162 sync [] Proxy, "";
    163 acct [] Refuse(Errno::EPERM), "s";
    164 settimeofday [] Refuse(Errno::EPERM), "tv p";
    165 mount [] Refuse(Errno::EPERM), "s s s x p";
    166 umount2 [] Refuse(Errno::EPERM), "s x";
    167 swapon [] Refuse(Errno::EPERM), "s x";
    168 swapoff [] Refuse(Errno::EPERM), "s";
    169 reboot [] Refuse(Errno::EPERM), "x x d p";
    170 sethostname [] Refuse(Errno::EPERM), "s u";
    171 setdomainname [] Refuse(Errno::EPERM), "s u";
    172 iopl [] Refuse(Errno::EPERM), "d";
    173 ioperm [] Refuse(Errno::EPERM), "x u d";
    174 create_module [] ENOSYS, "s u";
    175 init_module [] Refuse(Errno::EPERM), "p u s";
    176 delete_module [] Refuse(Errno::EPERM), "s x";
    177 get_kernel_syms [] ENOSYS, "p";
    178 query_module [] ENOSYS, "s d p u p";
    179 quotactl [] Refuse(Errno::EPERM), "x s d p";
    180 nfsservctl [] ENOSYS, "d p p";
    181 getpmsg [] ENOSYS, "";
    182 putpmsg [] ENOSYS, "";
    183 afs_syscall [] ENOSYS, "";
    184 tuxcall [] ENOSYS, "";
    185 security [] ENOSYS, "";
    186 gettid [] Kernel(proc::gettid), "";
    187 readahead [Fd] Proxy, "fd l u";
    188 setxattr [Path, Path, In(Len::Arg(3))] Proxy, "s s < u x";
    189 lsetxattr [Path, Path, In(Len::Arg(3))] Proxy, "s s < u x";
    190 fsetxattr [Fd, Path, In(Len::Arg(3))] Proxy, "fd s < u x";
    191 getxattr [Path, Path, BUF3] Proxy, "s s > u";
    192 lgetxattr [Path, Path, BUF3] Proxy, "s s > u";
    193 fgetxattr [Fd, Path, BUF3] Proxy, "fd s > u";
    194 listxattr [Path, BUF2] Proxy, "s > u";
    195 llistxattr [Path, BUF2] Proxy, "s > u";
    196 flistxattr [Fd, BUF2] Proxy, "fd > u";
    197 removexattr [Path, Path] Proxy, "s s";
    198 lremovexattr [Path, Path] Proxy, "s s";
    199 fremovexattr [Fd, Path] Proxy, "fd s";
    200 tkill [] Front(signals::tkill), "d sig";
    201 time [Out(Len::Bytes(8))] Front(clocks::time), "p";
    202 futex [] Kernel(futex::futex), "p FUTEX u p p x";
    203 sched_setaffinity [Int, Int, In(Len::Arg(1))] Proxy, "d u cpus";
    204 sched_getaffinity [Int, Int, OutRet(Len::Arg(1), 1)] Front(clocks::sched_getaffinity), "d u cpus>";
    205 set_thread_area [] ENOSYS, "p";
    206 io_setup [] ENOSYS, "u p";
    207 io_destroy [] ENOSYS, "p";
    208 io_getevents [] ENOSYS, "p l l p ts";
    209 io_submit [] ENOSYS, "p l p";
    210 io_cancel [] ENOSYS, "p p p";
    211 get_thread_area [] ENOSYS, "p";
    212 lookup_dcookie [] ENOSYS, "x s> u";
    213 epoll_create [] Front(ready::epoll_create), "d";
    214 epoll_ctl_old [] ENOSYS, "";
    215 epoll_wait_old [] ENOSYS, "";
    216 remap_file_pages [] ENOSYS, "p u PROT u MAP";
    217 getdents64 [Fd, BUF2] Front(procfs::getdents), "fd dents> u";
    218 set_tid_address [] Kernel(proc::set_tid_address), "p";
    219 restart_syscall [] ENOSYS, "";
    220 semtimedop [] ENOSYS, "d p u ts";
    221 fadvise64 [Fd] Proxy, "fd l l FADV";
    222 timer_create [Int, Event, Out(Len::Bytes(4))] Front(timers::create), "CLOCK p d*>";
    223 timer_settime [Int, Int, In(Len::Bytes(32)), Out(Len::Bytes(32))] Front(timers::settime), "d TIMER its its>";
    224 timer_gettime [Int, Out(Len::Bytes(32))] Front(timers::gettime), "d its>";
    225 timer_getoverrun [] Front(timers::getoverrun), "d";
    226 timer_delete [] Front(timers::delete), "d";
    227 clock_settime [] Refuse(Errno::EPERM), "CLOCK ts";
    228 clock_gettime [Int, TIMESPEC_OUT] Front(clocks::clock_gettime), "CLOCK ts>";
    229 clock_getres [Int, TIMESPEC_OUT] Front(clocks::clock_getres), "CLOCK ts>";
    230 clock_nanosleep [Int, Int, TIMESPEC_IN, TIMESPEC_OUT] Front(sleep::clock_nanosleep), "CLOCK TIMER ts ts>";
    231 exit_group [] Kernel(proc::exit_group), "d =?";
    232 epoll_wait [Fd, OutRet(Len::Times(2, 12), 12)] Front(sleep::epoll_wait), "fd evs> d d";
    233 epoll_ctl [Fd, Int, Fd, In(Len::Bytes(12))] Front(ready::epoll_ctl), "fd EPOLL_CTL fd ev";
    234 tgkill [] Front(signals::tgkill), "d d sig";
    235 utimes [Path, In(Len::Bytes(32))] Proxy, "s p";
    236 vserver [] ENOSYS, "";
    237 mbind [] Kernel(system::mbind), "p u d p u x";
    238 set_mempolicy [] Kernel(system::set_mempolicy), "d p u";
    239 get_mempolicy [] Kernel(system::get_mempolicy), "d*> p u p x";
    240 mq_open [Path, Int, Int, In(Len::Bytes(64))] Front(fs::new_fd), "s O mode? p";
    241 mq_unlink [Path] Proxy, "s";
    242 mq_timedsend [Fd, In(Len::Arg(2)), Int, Int, TIMESPEC_IN] Proxy, "fd < u u ts";
    243 mq_timedreceive [Fd, BUF2, Int, Out(Len::Bytes(4)), TIMESPEC_IN] Front(fs::clamped), "fd > u d*> ts";
    244 mq_notify [] ENOSYS, "fd p";
    245 mq_getsetattr [Fd, In(Len::Bytes(64)), Out(Len::Bytes(64))] Proxy, "fd p p";
    246 kexec_load [] Refuse(Errno::EPERM), "p u p x";
    247 waitid [Int, Int, Out(Len::Bytes(128)), Int, RUSAGE] Front(clocks::wait), "P_ID d p WAIT p";
    248 add_key [] ENOSYS, "s s < u d";
    249 request_key [] ENOSYS, "s s s d";
    250 keyctl [] ENOSYS, "d x x x x";
    251 ioprio_set [] Proxy, "d d x";
    252 ioprio_get [] Proxy, "d d";
    253 inotify_init [] Front(fs::new_fd), "";
    254 inotify_add_watch [Fd, Path] Proxy, "fd s IN";
    255 inotify_rm_watch [Fd] Proxy, "fd d";
    256 migrate_pages [] Refuse(Errno::EPERM), "d u p p";
    257 openat [DirFd, Path] Front(fs::openat), "at s O mode?";
    258 mkdirat [DirFd, Path] Proxy, "at s o";
    259 mknodat [DirFd, Path] Proxy, "at s o x";
    260 fchownat [DirFd, Path] Proxy, "at s d d AT";
    261 futimesat [DirFd, Path, In(Len::Bytes(32))] Proxy, "at s p";
    262 newfstatat [DirFd, Path, STAT] Proxy, "at s stat> AT";
    263 unlinkat [DirFd, Path] Proxy, "at s AT_REMOVE";
    264 renameat [DirFd, Path, DirFd, Path] Proxy, "at s at s";
    265 linkat [DirFd, Path, DirFd, Path] Proxy, "at s at s AT";
    266 symlinkat [Path, DirFd, Path] Proxy, "s at s";
    267 readlinkat [DirFd, Path, BUF3] Front(fs::readlinkat), "at s > u";
    268 fchmodat [DirFd, Path] Proxy, "at s o";
    269 faccessat [DirFd, Path] Proxy, "at s ACCESS";
    270 pselect6 [Int, FDSET, FDSET, FDSET, InOut(Len::Bytes(16)), Null] Front(signals::pselect6), "d fdset fdset fdset ts p";
    271 ppoll [InOut(Len::Times(1, 8)), Int, InOut(Len::Bytes(16)), Null] Front(signals::ppoll), "poll u ts set u";
    272 unshare [] Refuse(Errno::EPERM), "CLONE";
    273 set_robust_list [] Kernel(proc::set_robust_list), "p u";
    274 get_robust_list [] Kernel(proc::get_robust_list), "d p p";
    275 splice [Fd, OFF, Fd, OFF] Proxy, "fd l* fd l* u SPLICE";
    276 tee [Fd, Fd] Proxy, "fd fd u SPLICE";
    277 sync_file_range [Fd] Proxy, "fd l l x";
    278 vmsplice [] Kernel(sockets::vmsplice), "fd iov u SPLICE";
    279 move_pages [] ENOSYS, "d u p p p x";
    280 utimensat [DirFd, Path, In(Len::Bytes(32))] Proxy, "at s times AT";
    281 epoll_pwait [Fd, OutRet(Len::Times(2, 12), 12), Int, Int, Null] Front(signals::epoll_pwait), "fd evs> d d set u";
    282 signalfd [] Kernel(events::signalfd), "fd set u";
    283 timerfd_create [] Front(clocks::timerfd_create), "CLOCK TFD";
    284 eventfd [] Front(clocks::eventfd), "u";
    285 fallocate [Fd] Front(fs::set_size), "fd FALLOC l l";
    286 timerfd_settime [Fd, Int, In(Len::Bytes(32)), Out(Len::Bytes(32))] Front(clocks::timerfd_settime), "fd TIMER its its>";
    287 timerfd_gettime [Fd, Out(Len::Bytes(32))] Front(clocks::timerfd_gettime), "fd its>";
    288 accept4 [Fd, Out(Len::Via(2)), SOCKLEN] Front(fs::new_fd), "fd sa> d* SOCK_FLAGS";
    289 signalfd4 [] Kernel(events::signalfd), "fd set u SFD";
    290 eventfd2 [] Front(clocks::eventfd), "u EFD";
    291 epoll_create1 [] Front(ready::epoll_create), "EPOLL";
    292 dup3 [Fd, Fd] Front(fs::dup2), "fd fd O_CLOEXEC";
    293 pipe2 [Out(Len::Bytes(8))] Front(fs::pipe), "fds> O_CLOEXEC";
    294 inotify_init1 [] Front(fs::new_fd), "INIT_IN";
    295 preadv [] Kernel(fs::readv), "fd iov> u l";
    296 pwritev [] Kernel(fs::writev), "fd iov u l";
    297 rt_tgsigqueueinfo [] Kernel(signals::rt_tgsigqueueinfo), "d d sig p";
    298 perf_event_open [] Refuse(Errno::EACCES), "p d d d x";
    299 recvmmsg [] Kernel(sockets::recvmmsg), "fd p u MSG ts";
    300 fanotify_init [] Refuse(Errno::EPERM), "x x";
    301 fanotify_mark [] Refuse(Errno::EPERM), "fd x x at s";
    302 prlimit64 [] Kernel(limits::prlimit64), "d RLIMIT rlim rlim>";
    303 name_to_handle_at [] Refuse(Errno::ENOTSUP), "at s p p AT";
    304 open_by_handle_at [] Refuse(Errno::EPERM), "fd p O";
    305 clock_adjtime [] Refuse(Errno::EPERM), "CLOCK p";
    306 syncfs [Fd] Proxy, "fd";
    307 sendmmsg [] Kernel(sockets::sendmmsg), "fd p u MSG";
    308 setns [] Refuse(Errno::EPERM), "fd x";
    309 getcpu [Out(Len::Bytes(4)), Out(Len::Bytes(4)), Null] Front(clocks::getcpu), "d*> d*> p";
    310 process_vm_readv [] Refuse(Errno::EPERM), "d iov u p u x";
    311 process_vm_writev [] Refuse(Errno::EPERM), "d iov u p u x";
    312 kcmp [Int, Int, Int, Fd, Fd] Front(system::kcmp), "d d KCMP x x";
    313 finit_module [] Refuse(Errno::EPERM), "fd s x";
    314 sched_setattr [Int, In(Len::Via(1))] Proxy, "d p x";
    315 sched_getattr [Int, Out(Len::Arg(2))] Proxy, "d p u x";
    316 renameat2 [DirFd, Path, DirFd, Path] Proxy, "at s at s RENAME";
    317 seccomp [] ENOSYS, "d x p";
    318 getrandom [BUF1] Front(clocks::getrandom), "> u GRND";
    319 memfd_create [Path] Front(fs::new_fd), "s MFD";
    320 kexec_file_load [] Refuse(Errno::EPERM), "fd fd u s x";
    321 bpf [] Refuse(Errno::EPERM), "d p u";
    322 execveat [] Kernel(exec::execveat), "at s strv envv AT";
    323 userfaultfd [] ENOSYS, "O_CLOEXEC";
    324 membarrier [] Front(system::membarrier), "MEMBARRIER x d";
    325 mlock2 [] Kernel(system::mlock), "p u x";
    326 copy_file_range [Fd, OFF, Fd, OFF] Proxy, "fd l* fd l* u x";
    327 preadv2 [] Kernel(fs::readv), "fd iov> u l _ RWF";
    328 pwritev2 [] Kernel(fs::writev), "fd iov u l _ RWF";
    329 pkey_mprotect [] ENOSYS, "p u PROT d";
    330 pkey_alloc [] ENOSYS, "x x";
    331 pkey_free [] ENOSYS, "d";
    332 statx [DirFd, Path, Int, Int, Out(Len::Bytes(256))] Proxy, "at s AT STATX statx>";
    333 io_pgetevents [] ENOSYS, "p l l p ts p";
    334 rseq [] ENOSYS, "p x x x";
    335 uretprobe [] ENOSYS, "";
    336 uprobe [] ENOSYS, "";
    424 pidfd_send_signal [Fd, Int, In(Len::Bytes(128))] Proxy, "fd sig p x";
    425 io_uring_setup [] ENOSYS, "u p";
    426 io_uring_enter [] ENOSYS, "fd u u x p u";
    427 io_uring_register [] ENOSYS, "fd u p u";
    428 open_tree [] Refuse(Errno::EPERM), "at s x";
    429 move_mount [] Refuse(Errno::EPERM), "at s at s x";
    430 fsopen [] Refuse(Errno::EPERM), "s x";
    431 fsconfig [] Refuse(Errno::EPERM), "fd d s p d";
    432 fsmount [] Refuse(Errno::EPERM), "fd x x";
    433 fspick [] Refuse(Errno::EPERM), "at s x";
    434 pidfd_open [] Front(fs::new_fd), "d O_CLOEXEC";
    435 clone3 [] Kernel(clone::clone3), "p u";
    436 close_range [] Front(fs::close_range), "u u CLOSE_RANGE";
    437 openat2 [DirFd, Path, In(Len::Arg(3))] Front(openat2::openat2), "at s how u";
    438 pidfd_getfd [] Refuse(Errno::EPERM), "fd d x";
    439 faccessat2 [DirFd, Path] Proxy, "at s ACCESS AT_ACCESS";
    440 process_madvise [] ENOSYS, "fd p u MADV x";
    441 epoll_pwait2 [Fd, OutRet(Len::Times(2, 12), 12), Int, TIMESPEC_IN, Null] Front(signals::epoll_pwait), "fd evs> d ts set u";
    442 mount_setattr [] Refuse(Errno::EPERM), "at s x p u";
    443 quotactl_fd [] Refuse(Errno::EPERM), "fd x d p";
    444 landlock_create_ruleset [] ENOSYS, "p u x";
    445 landlock_add_rule [] ENOSYS, "fd d p x";
    446 landlock_restrict_self [] ENOSYS, "fd x";
    447 memfd_secret [] ENOSYS, "x";
    448 process_mrelease [] ENOSYS, "fd x";
    449 futex_waitv [] ENOSYS, "p u x ts CLOCK";
    450 set_mempolicy_home_node [] ENOSYS, "p u u x";
    451 cachestat [Fd, In(Len::Bytes(16)), Out(Len::Bytes(40))] Proxy, "fd p p x";
    452 fchmodat2 [DirFd, Path] Proxy, "at s o AT";
    453 map_shadow_stack [] ENOSYS, "p u x";
    454 futex_wake [] ENOSYS, "p x d x";
    455 futex_wait [] ENOSYS, "p x x x ts CLOCK";
    456 futex_requeue [] ENOSYS, "p x d d";
    457 statmount [] ENOSYS, "p p u x";
    458 listmount [] ENOSYS, "p p u x";
    459 lsm_get_self_attr [] ENOSYS, "d p p x";
    460 lsm_set_self_attr [] ENOSYS, "d p u x";
    461 lsm_list_modules [] ENOSYS, "p p x";
    462 mseal [] ENOSYS, "p u x";
    463 setxattrat [] ENOSYS, "at s AT s p u";
    464 getxattrat [] ENOSYS, "at s AT s p u";
    465 listxattrat [] ENOSYS, "at s AT > u";
    466 removexattrat [] ENOSYS, "at s AT s";
    467 open_tree_attr [] Refuse(Errno::EPERM), "at s x p u";
    468 file_getattr [] ENOSYS, "at s p u AT";
    469 file_setattr [] ENOSYS, "at s p u AT";
};

/// Numbers below this are looked up in [`INDEX`].
const NUMBERS: usize = 512;

/// Row number plus one, by system call number.
static INDEX: [u16; NUMBERS] = {
    let mut index = [0u16; NUMBERS];
    let mut i = 0;
    while i < ROWS.len() {
        index[ROWS[i].nr as usize] = i as u16 + 1;
        i += 1;
    }
    index
};

/// The row of a system call, if there is one.
#[must_use]
pub fn row(nr: i64) -> Option<&'static Row> {
    let at = *INDEX.get(usize::try_from(nr).ok()?)?;
    ROWS.get(usize::from(at).checked_sub(1)?)
}
