//! The one table of system calls: number, name, what each argument is, and who answers.
//!
//! Two consumers. The guest half stages pointer arguments in the bounce area by it; the hypervisor
//! half refuses by it whatever a call's row does not describe. See [`super::marshal`]. A number
//! without a row is ENOSYS, and counted.

use super::{Call, SysResult, clone, exec, fs, futex, memory, misc, proc, signals, sleep};
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
        // poll, select, pause, nanosleep, epoll_wait, clock_nanosleep, pselect6, ppoll, epoll_pwait
        !matches!(
            self.nr,
            7 | 23 | 34 | 35 | 130 | 230 | 232 | 270 | 271 | 281
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
    ($($nr:literal $name:ident [$($arg:expr),*] $handler:expr;)*) => {
        &[$(Row { nr: $nr, name: stringify!($name), args: pad([$($arg),*]), handler: $handler }),*]
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
    0   read [Fd, BUF2] Front(fs::read);
    1   write [Fd, In(Len::Arg(2))] Front(fs::write);
    2   open [Path] Front(fs::open);
    3   close [Fd] Front(fs::close);
    4   stat [Path, STAT] Proxy;
    5   fstat [Fd, STAT] Proxy;
    6   lstat [Path, STAT] Proxy;
    7   poll [InOut(Len::Times(1, 8))] Front(sleep::poll);
    8   lseek [Fd] Proxy;
    9   mmap [] Kernel(memory::mmap);
    10  mprotect [] Kernel(memory::mprotect);
    11  munmap [] Kernel(memory::munmap);
    12  brk [] Kernel(memory::brk);
    13  rt_sigaction [] Kernel(signals::rt_sigaction);
    14  rt_sigprocmask [] Kernel(signals::rt_sigprocmask);
    15  rt_sigreturn [] Kernel(signals::rt_sigreturn);
    16  ioctl [Fd, Int, Ioctl] Proxy;
    17  pread64 [Fd, BUF2] Front(fs::pread64);
    18  pwrite64 [Fd, In(Len::Arg(2))] Front(fs::pwrite64);
    19  readv [] Kernel(fs::readv);
    20  writev [] Kernel(fs::writev);
    21  access [Path] Proxy;
    22  pipe [Out(Len::Bytes(8))] Front(fs::pipe);
    23  select [Int, FDSET, FDSET, FDSET, InOut(Len::Bytes(16))] Proxy;
    24  sched_yield [] Proxy;
    25  mremap [] Kernel(memory::mremap);
    26  msync [] Kernel(memory::msync);
    27  mincore [] Kernel(memory::mincore);
    28  madvise [] Kernel(memory::madvise);
    29  shmget [] ENOSYS;
    30  shmat [] ENOSYS;
    31  shmctl [] ENOSYS;
    32  dup [Fd] Front(fs::dup);
    33  dup2 [Fd, Fd] Front(fs::dup2);
    34  pause [] Kernel(signals::pause);
    35  nanosleep [] Kernel(sleep::nanosleep);
    36  getitimer [Int, Out(Len::Bytes(32))] Proxy;
    37  alarm [] Proxy;
    38  setitimer [Int, In(Len::Bytes(32)), Out(Len::Bytes(32))] Proxy;
    39  getpid [] Proxy;
    40  sendfile [Fd, Fd, OFF] Proxy;
    41  socket [] Front(fs::new_fd);
    42  connect [Fd, In(Len::Arg(2))] Proxy;
    43  accept [Fd, Out(Len::Via(2)), SOCKLEN] Front(fs::new_fd);
    44  sendto [Fd, In(Len::Arg(2)), Int, Int, In(Len::Arg(5))] Front(fs::clamped);
    45  recvfrom [Fd, BUF2, Int, Int, Out(Len::Via(5)), SOCKLEN] Front(fs::clamped);
    46  sendmsg [Fd, MsgIn] Proxy;
    47  recvmsg [Fd, MsgOut] Proxy;
    48  shutdown [Fd] Proxy;
    49  bind [Fd, In(Len::Arg(2))] Proxy;
    50  listen [Fd] Proxy;
    51  getsockname [Fd, Out(Len::Via(2)), SOCKLEN] Proxy;
    52  getpeername [Fd, Out(Len::Via(2)), SOCKLEN] Proxy;
    53  socketpair [Int, Int, Int, Out(Len::Bytes(8))] Front(fs::pipe);
    54  setsockopt [Fd, Int, Int, In(Len::Arg(4))] Proxy;
    55  getsockopt [Fd, Int, Int, Out(Len::Via(4)), SOCKLEN] Proxy;
    56  clone [] Kernel(clone::clone);
    57  fork [] Kernel(clone::fork);
    58  vfork [] Kernel(clone::vfork);
    59  execve [] Kernel(exec::execve);
    60  exit [] Kernel(proc::exit);
    61  wait4 [Int, Out(Len::Bytes(4)), Int, RUSAGE] Proxy;
    62  kill [] Front(signals::kill);
    63  uname [Out(Len::Bytes(390))] Proxy;
    64  semget [] ENOSYS;
    72  fcntl [Fd, Int, Fcntl] Front(fs::fcntl);
    73  flock [Fd] Proxy;
    74  fsync [Fd] Proxy;
    75  fdatasync [Fd] Proxy;
    76  truncate [Path] Proxy;
    77  ftruncate [Fd] Front(memory::ftruncate);
    78  getdents [Fd, BUF2] Front(fs::clamped);
    79  getcwd [BUF1] Front(fs::clamped);
    80  chdir [Path] Proxy;
    81  fchdir [Fd] Proxy;
    82  rename [Path, Path] Proxy;
    83  mkdir [Path] Proxy;
    84  rmdir [Path] Proxy;
    85  creat [Path] Front(fs::new_fd);
    86  link [Path, Path] Proxy;
    87  unlink [Path] Proxy;
    88  symlink [Path, Path] Proxy;
    89  readlink [Path, BUF2] Front(fs::readlink);
    90  chmod [Path] Proxy;
    91  fchmod [Fd] Proxy;
    92  chown [Path] Proxy;
    93  fchown [Fd] Proxy;
    94  lchown [Path] Proxy;
    95  umask [] Proxy;
    96  gettimeofday [Out(Len::Bytes(16)), Out(Len::Bytes(8))] Proxy;
    97  getrlimit [] Kernel(proc::getrlimit);
    98  getrusage [Int, RUSAGE] Proxy;
    99  sysinfo [Out(Len::Bytes(112))] Front(proc::sysinfo);
    100 times [Out(Len::Bytes(32))] Proxy;
    101 ptrace [] Refuse(Errno::EPERM);
    102 getuid [] Proxy;
    104 getgid [] Proxy;
    105 setuid [] Refuse(Errno::EPERM);
    106 setgid [] Refuse(Errno::EPERM);
    107 geteuid [] Proxy;
    108 getegid [] Proxy;
    109 setpgid [] Proxy;
    110 getppid [] Proxy;
    111 getpgrp [] Proxy;
    112 setsid [] Proxy;
    113 setreuid [] Refuse(Errno::EPERM);
    114 setregid [] Refuse(Errno::EPERM);
    115 getgroups [Int, Out(Len::Times(0, 4))] Proxy;
    116 setgroups [] Refuse(Errno::EPERM);
    117 setresuid [] Refuse(Errno::EPERM);
    118 getresuid [Out(Len::Bytes(4)), Out(Len::Bytes(4)), Out(Len::Bytes(4))] Proxy;
    119 setresgid [] Refuse(Errno::EPERM);
    120 getresgid [Out(Len::Bytes(4)), Out(Len::Bytes(4)), Out(Len::Bytes(4))] Proxy;
    121 getpgid [] Proxy;
    122 setfsuid [] Refuse(Errno::EPERM);
    123 setfsgid [] Refuse(Errno::EPERM);
    124 getsid [] Proxy;
    125 capget [InOut(Len::Bytes(8)), InOut(Len::Bytes(24))] Proxy;
    126 capset [] Refuse(Errno::EPERM);
    127 rt_sigpending [] Kernel(signals::rt_sigpending);
    128 rt_sigtimedwait [] Kernel(signals::rt_sigtimedwait);
    129 rt_sigqueueinfo [Int, Int, In(Len::Bytes(128))] Front(signals::rt_sigqueueinfo);
    130 rt_sigsuspend [] Kernel(signals::rt_sigsuspend);
    131 sigaltstack [] Kernel(signals::sigaltstack);
    132 utime [Path, In(Len::Bytes(16))] Proxy;
    133 mknod [Path] Proxy;
    135 personality [] Kernel(proc::personality);
    137 statfs [Path, Out(Len::Bytes(120))] Proxy;
    138 fstatfs [Fd, Out(Len::Bytes(120))] Proxy;
    140 getpriority [] Proxy;
    141 setpriority [] Proxy;
    142 sched_setparam [] Kernel(misc::nothing);
    143 sched_getparam [Int, Out(Len::Bytes(4))] Proxy;
    144 sched_setscheduler [] Kernel(misc::nothing);
    145 sched_getscheduler [] Proxy;
    146 sched_get_priority_max [] Proxy;
    147 sched_get_priority_min [] Proxy;
    148 sched_rr_get_interval [Int, TIMESPEC_OUT] Proxy;
    149 mlock [] Kernel(misc::nothing);
    150 munlock [] Kernel(misc::nothing);
    151 mlockall [] Kernel(misc::nothing);
    152 munlockall [] Kernel(misc::nothing);
    157 prctl [] Kernel(proc::prctl);
    158 arch_prctl [] Kernel(proc::arch_prctl);
    160 setrlimit [] Kernel(proc::setrlimit);
    161 chroot [] Refuse(Errno::EPERM);
    162 sync [] Proxy;
    165 mount [] Refuse(Errno::EPERM);
    166 umount2 [] Refuse(Errno::EPERM);
    186 gettid [] Kernel(proc::gettid);
    187 readahead [Fd] Proxy;
    188 setxattr [Path, Path, In(Len::Arg(3))] Proxy;
    189 lsetxattr [Path, Path, In(Len::Arg(3))] Proxy;
    190 fsetxattr [Fd, Path, In(Len::Arg(3))] Proxy;
    191 getxattr [Path, Path, BUF3] Proxy;
    192 lgetxattr [Path, Path, BUF3] Proxy;
    193 fgetxattr [Fd, Path, BUF3] Proxy;
    194 listxattr [Path, BUF2] Proxy;
    195 llistxattr [Path, BUF2] Proxy;
    196 flistxattr [Fd, BUF2] Proxy;
    197 removexattr [Path, Path] Proxy;
    198 lremovexattr [Path, Path] Proxy;
    199 fremovexattr [Fd, Path] Proxy;
    200 tkill [] Front(signals::tkill);
    201 time [Out(Len::Bytes(8))] Proxy;
    202 futex [] Kernel(futex::futex);
    203 sched_setaffinity [] Kernel(misc::nothing);
    204 sched_getaffinity [] Kernel(misc::sched_getaffinity);
    213 epoll_create [] Front(fs::new_fd);
    217 getdents64 [Fd, BUF2] Front(fs::clamped);
    218 set_tid_address [] Kernel(proc::set_tid_address);
    221 fadvise64 [Fd] Proxy;
    222 timer_create [] ENOSYS;
    227 clock_settime [] Refuse(Errno::EPERM);
    228 clock_gettime [Int, TIMESPEC_OUT] Proxy;
    229 clock_getres [Int, TIMESPEC_OUT] Proxy;
    230 clock_nanosleep [Int, Int, TIMESPEC_IN, TIMESPEC_OUT] Front(sleep::clock_nanosleep);
    231 exit_group [] Kernel(proc::exit_group);
    232 epoll_wait [Fd, OutRet(Len::Times(2, 12), 12)] Front(sleep::epoll_wait);
    233 epoll_ctl [Fd, Int, Fd, In(Len::Bytes(12))] Proxy;
    234 tgkill [] Front(signals::tgkill);
    235 utimes [Path, In(Len::Bytes(32))] Proxy;
    237 mbind [] ENOSYS;
    238 set_mempolicy [] ENOSYS;
    239 get_mempolicy [] ENOSYS;
    247 waitid [Int, Int, Out(Len::Bytes(128)), Int, RUSAGE] Proxy;
    251 ioprio_set [] Kernel(misc::nothing);
    252 ioprio_get [] Kernel(misc::nothing);
    253 inotify_init [] Front(fs::new_fd);
    254 inotify_add_watch [Fd, Path] Proxy;
    255 inotify_rm_watch [Fd] Proxy;
    257 openat [DirFd, Path] Front(fs::openat);
    258 mkdirat [DirFd, Path] Proxy;
    259 mknodat [DirFd, Path] Proxy;
    260 fchownat [DirFd, Path] Proxy;
    261 futimesat [DirFd, Path, In(Len::Bytes(32))] Proxy;
    262 newfstatat [DirFd, Path, STAT] Proxy;
    263 unlinkat [DirFd, Path] Proxy;
    264 renameat [DirFd, Path, DirFd, Path] Proxy;
    265 linkat [DirFd, Path, DirFd, Path] Proxy;
    266 symlinkat [Path, DirFd, Path] Proxy;
    267 readlinkat [DirFd, Path, BUF3] Front(fs::readlinkat);
    268 fchmodat [DirFd, Path] Proxy;
    269 faccessat [DirFd, Path] Proxy;
    270 pselect6 [Int, FDSET, FDSET, FDSET, InOut(Len::Bytes(16)), Null] Front(signals::pselect6);
    271 ppoll [InOut(Len::Times(1, 8)), Int, InOut(Len::Bytes(16)), Null] Front(signals::ppoll);
    273 set_robust_list [] Kernel(proc::set_robust_list);
    274 get_robust_list [] Kernel(proc::get_robust_list);
    275 splice [Fd, OFF, Fd, OFF] Proxy;
    276 tee [Fd, Fd] Proxy;
    277 sync_file_range [Fd] Proxy;
    280 utimensat [DirFd, Path, In(Len::Bytes(32))] Proxy;
    281 epoll_pwait [Fd, OutRet(Len::Times(2, 12), 12), Int, Int, Null] Front(signals::epoll_pwait);
    282 signalfd [] ENOSYS;
    283 timerfd_create [] Front(fs::new_fd);
    284 eventfd [] Front(fs::new_fd);
    285 fallocate [Fd] Proxy;
    286 timerfd_settime [Fd, Int, In(Len::Bytes(32)), Out(Len::Bytes(32))] Proxy;
    287 timerfd_gettime [Fd, Out(Len::Bytes(32))] Proxy;
    288 accept4 [Fd, Out(Len::Via(2)), SOCKLEN] Front(fs::new_fd);
    289 signalfd4 [] ENOSYS;
    290 eventfd2 [] Front(fs::new_fd);
    291 epoll_create1 [] Front(fs::new_fd);
    292 dup3 [Fd, Fd] Front(fs::dup2);
    293 pipe2 [Out(Len::Bytes(8))] Front(fs::pipe);
    294 inotify_init1 [] Front(fs::new_fd);
    295 preadv [] Kernel(fs::readv);
    296 pwritev [] Kernel(fs::writev);
    297 rt_tgsigqueueinfo [] Kernel(signals::rt_tgsigqueueinfo);
    302 prlimit64 [] Kernel(proc::prlimit64);
    306 syncfs [Fd] Proxy;
    309 getcpu [] Kernel(misc::getcpu);
    310 process_vm_readv [] Refuse(Errno::EPERM);
    311 process_vm_writev [] Refuse(Errno::EPERM);
    314 sched_setattr [] Kernel(misc::nothing);
    316 renameat2 [DirFd, Path, DirFd, Path] Proxy;
    317 seccomp [] ENOSYS;
    318 getrandom [BUF1] Front(fs::clamped);
    319 memfd_create [Path] Front(fs::new_fd);
    322 execveat [] Kernel(exec::execveat);
    324 membarrier [] ENOSYS;
    325 mlock2 [] Kernel(misc::nothing);
    326 copy_file_range [Fd, OFF, Fd, OFF] Proxy;
    327 preadv2 [] Kernel(fs::readv);
    328 pwritev2 [] Kernel(fs::writev);
    332 statx [DirFd, Path, Int, Int, Out(Len::Bytes(256))] Proxy;
    334 rseq [] ENOSYS;
    425 io_uring_setup [] ENOSYS;
    434 pidfd_open [] ENOSYS;
    435 clone3 [] Kernel(clone::clone3);
    436 close_range [] Front(fs::close_range);
    437 openat2 [] ENOSYS;
    439 faccessat2 [DirFd, Path] Proxy;
    441 epoll_pwait2 [] ENOSYS;
    448 process_mrelease [] ENOSYS;
    452 fchmodat2 [DirFd, Path] Proxy;
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
