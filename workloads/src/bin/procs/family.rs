//! Parents, children, groups, and what goes between them.

use std::arch::asm;
use std::sync::atomic::{AtomicU32, Ordering};

use sevlab_workloads::sections::Settings;
use sevlab_workloads::sys::{
    self, Pages, child, close, ended, errno, exit_now, getpid, kill, ok, pipe, read, until,
};

use crate::waiting::idle;

extern "C" fn vfork_body(word: *mut libc::c_void) -> i32 {
    // SAFETY: the parent passes its word and waits.
    let word = unsafe { &*word.cast::<AtomicU32>() };
    sys::pause_ms(30);
    word.store(0x5678, Ordering::Relaxed);
    12
}

pub fn vfork(_: &Settings) -> String {
    let mut word = 0u32;
    let pid: i64;
    // SAFETY: the child stores to a local of the parent, which waits meanwhile, and exits without touching the stack.
    unsafe {
        asm!(
            "mov eax, 58",          // vfork
            "syscall",
            "test rax, rax",
            "jnz 2f",
            "mov dword ptr [r8], 0x1234",
            "mov edi, 11",
            "mov eax, 60",          // exit
            "syscall",
            "2:",
            in("r8") &raw mut word,
            out("rax") pid, out("rdi") _, out("rcx") _, out("r11") _,
        );
    }
    assert!(pid > 0, "vfork failed with {pid}");
    assert_eq!(word, 0x1234, "the child's store is the parent's");
    let first = ended(pid as i32);
    let word = AtomicU32::new(0);
    let stack = Pages::private(256 * 1024, sys::RW);
    // SAFETY: the child has a stack of its own; the word outlives it, since the parent waits.
    let pid = unsafe {
        libc::clone(
            vfork_body,
            stack.start().add(stack.size()).cast(),
            libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD,
            (&raw const word).cast_mut().cast(),
        )
    };
    // The parent goes on when the child has ended.
    assert_eq!(
        word.load(Ordering::Relaxed),
        0x5678,
        "vfork waits for the child"
    );
    format!("{first}, {}", ended(ok("clone", pid)))
}

pub fn groups(_: &Settings) -> String {
    let mut out = Vec::new();
    // SAFETY: plain numbers, here and below.
    let group_of = |pid| unsafe { libc::getpgid(pid) };
    let leader = child(|| idle());
    // SAFETY: as above.
    ok("setpgid", unsafe { libc::setpgid(leader, leader) });
    assert_eq!(group_of(leader), leader);
    let mut others = Vec::new();
    for _ in 0..3 {
        let pid = child(|| idle());
        // SAFETY: as above.
        ok("setpgid", unsafe { libc::setpgid(pid, leader) });
        assert_eq!(group_of(pid), leader);
        others.push(pid);
    }
    assert_ne!(group_of(0), leader);
    kill(-leader, libc::SIGUSR1);
    for _ in 0..4 {
        let (who, status) = sys::wait(-leader, 0);
        assert!(who == leader || others.contains(&who));
        out.push(sys::show_status(status));
    }
    // SAFETY: as above.
    let r = unsafe { libc::kill(-leader, 0) };
    out.push(format!("then {r} {}", errno()));
    // A session of its own.
    let status = ended(child(|| {
        // SAFETY: as above.
        unsafe {
            let (pid, before) = (getpid(), libc::getsid(0));
            let sid = libc::setsid();
            let again = libc::setsid();
            let good = sid == pid && libc::getsid(0) == pid && libc::getpgid(0) == pid;
            i32::from(good && before != pid && again == -1 && errno() == libc::EPERM)
        }
    }));
    out.push(format!("setsid {status}"));
    // Children inherit the group; one of its own is found with 0.
    let status = ended(child(|| {
        // SAFETY: as above.
        unsafe { libc::setpgid(0, 0) };
        let pid = child(|| i32::from(group_of(0) == group_of(sys_parent())) + 20);
        let (who, status) = sys::wait(0, 0);
        i32::from(who == pid) + libc::WEXITSTATUS(status)
    }));
    out.push(format!("inherited {status}"));
    out.join(", ")
}

fn sys_parent() -> i32 {
    // SAFETY: takes nothing.
    unsafe { libc::getppid() }
}

pub fn orphans(_: &Settings) -> String {
    let me = getpid();
    // SAFETY: plain numbers.
    let reaper = |on: u64| unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, on) };
    ok("prctl", reaper(1));
    let (from, to) = pipe();
    let middle = child(|| {
        let parent = getpid();
        let orphan = child(|| {
            until("another parent", || sys_parent() != parent);
            i32::from(sys_parent() == me) + 50
        });
        sys::write(to, &orphan.to_le_bytes());
        3
    });
    let orphan = i32::from_le_bytes(
        read(from, 4)
            .expect("a pid")
            .try_into()
            .expect("four bytes"),
    );
    let first = ended(middle);
    let second = ended(orphan);
    ok("prctl", reaper(0));
    close(from);
    close(to);
    format!("middle {first}, orphan {second}")
}

pub fn pdeathsig(_: &Settings) -> String {
    let (from, to) = pipe();
    let (ready_from, ready_to) = pipe();
    let middle = child(|| {
        child(|| {
            close(from);
            let set = sys::set(&[libc::SIGUSR2]);
            sys::mask(libc::SIG_BLOCK, &set);
            // SAFETY: plain numbers; then a local is filled.
            unsafe {
                ok("prctl", libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGUSR2));
                let mut got = 0;
                libc::prctl(libc::PR_GET_PDEATHSIG, &raw mut got);
                sys::write(ready_to, &[got as u8]);
                let mut info: libc::siginfo_t = std::mem::zeroed();
                let time = libc::timespec {
                    tv_sec: 20,
                    tv_nsec: 0,
                };
                let signal = libc::sigtimedwait(&raw const set, &raw mut info, &raw const time);
                sys::write(to, format!("signal {signal}").as_bytes());
            }
            exit_now(0)
        });
        read(ready_from, 1).expect("the grandchild is ready")[0].into()
    });
    let status = ended(middle);
    close(to);
    let text = String::from_utf8_lossy(&sys::read_all(from)).into_owned();
    for end in [from, ready_from, ready_to] {
        close(end);
    }
    format!("set {status}, grandchild: {text}")
}

pub fn pipes(s: &Settings) -> String {
    let mut out = Vec::new();
    // Each process adds one to every byte, and passes it on.
    let mut pids = Vec::new();
    let (mut from, first) = pipe();
    let feeder = {
        let len = s.count as usize * 300;
        let pid = child(|| {
            close(from);
            let block: Vec<u8> = (0..len).map(|i| (i * 7 % 251) as u8).collect();
            sys::write(first, &block);
            0
        });
        close(first);
        (pid, len)
    };
    pids.push(feeder.0);
    for _ in 0..5 {
        let (next_from, next_to) = pipe();
        pids.push(child(|| {
            close(next_from);
            loop {
                let block = read(from, 3001).expect("a block");
                if block.is_empty() {
                    return 0;
                }
                let block: Vec<u8> = block.iter().map(|b| b.wrapping_add(1)).collect();
                sys::write(next_to, &block);
            }
        }));
        close(from);
        close(next_to);
        from = next_from;
    }
    let all = sys::read_all(from);
    close(from);
    assert_eq!(all.len(), feeder.1, "all bytes arrive");
    for (i, byte) in all.iter().enumerate() {
        assert_eq!(*byte, (i * 7 % 251) as u8 + 5, "byte {i}");
    }
    for pid in pids {
        assert_eq!(ended(pid), "exit 0");
    }
    out.push(format!("{} bytes through 6 processes", all.len()));
    // Nobody reads any more.
    for ignored in [false, true] {
        let (from, to) = pipe();
        close(from);
        let pid = child(|| {
            let what = if ignored {
                libc::SIG_IGN
            } else {
                libc::SIG_DFL
            };
            sys::action(libc::SIGPIPE, 0, what, &sys::set(&[]));
            // SAFETY: writes one byte.
            let r = unsafe { libc::write(to, b"x".as_ptr().cast(), 1) };
            i32::from(r == -1 && errno() == libc::EPIPE) + 30
        });
        close(to);
        out.push(ended(pid));
    }
    // Without waiting.
    let (from, to) = pipe();
    // SAFETY: flags of descriptors.
    unsafe {
        libc::fcntl(from, libc::F_SETFL, libc::O_NONBLOCK);
        libc::fcntl(to, libc::F_SETFL, libc::O_NONBLOCK);
    }
    out.push(format!("empty {:?}", read(from, 1)));
    let block = [0u8; 4096];
    let mut full = 0;
    // SAFETY: writes from a local.
    while unsafe { libc::write(to, block.as_ptr().cast(), block.len()) } == 4096 {
        full += 4096;
    }
    out.push(format!("full after {full} with {}", errno()));
    close(from);
    close(to);
    out.join(", ")
}

/// Sends a descriptor over a socket.
fn send_fd(socket: i32, fd: i32) {
    let mut byte = *b"f";
    let mut part = libc::iovec {
        iov_base: byte.as_mut_ptr().cast(),
        iov_len: 1,
    };
    let mut control = [0u64; 8];
    // SAFETY: the message's parts are locals of the sizes given.
    unsafe {
        let mut message: libc::msghdr = std::mem::zeroed();
        message.msg_iov = &raw mut part;
        message.msg_iovlen = 1;
        message.msg_control = control.as_mut_ptr().cast();
        message.msg_controllen = libc::CMSG_SPACE(4) as usize;
        let header = libc::CMSG_FIRSTHDR(&raw const message);
        (*header).cmsg_level = libc::SOL_SOCKET;
        (*header).cmsg_type = libc::SCM_RIGHTS;
        (*header).cmsg_len = libc::CMSG_LEN(4) as usize;
        libc::CMSG_DATA(header).cast::<i32>().write_unaligned(fd);
        ok("sendmsg", libc::sendmsg(socket, &raw const message, 0));
    }
}

/// Receives one.
fn receive_fd(socket: i32) -> i32 {
    let mut byte = [0u8];
    let mut part = libc::iovec {
        iov_base: byte.as_mut_ptr().cast(),
        iov_len: 1,
    };
    let mut control = [0u64; 8];
    // SAFETY: as in `send_fd`.
    unsafe {
        let mut message: libc::msghdr = std::mem::zeroed();
        message.msg_iov = &raw mut part;
        message.msg_iovlen = 1;
        message.msg_control = control.as_mut_ptr().cast();
        message.msg_controllen = size_of_val(&control);
        ok("recvmsg", libc::recvmsg(socket, &raw mut message, 0));
        let header = libc::CMSG_FIRSTHDR(&raw const message);
        assert!(!header.is_null(), "no descriptor came");
        libc::CMSG_DATA(header).cast::<i32>().read_unaligned()
    }
}

pub fn sockets(_: &Settings) -> String {
    let mut ends = [0; 2];
    // SAFETY: room for two.
    ok("socketpair", unsafe {
        libc::socketpair(libc::AF_UNIX, libc::SOCK_STREAM, 0, ends.as_mut_ptr())
    });
    // SAFETY: plain numbers.
    let (event, epoll) = unsafe {
        (
            ok("eventfd", libc::eventfd(0, libc::EFD_SEMAPHORE)),
            ok("epoll_create1", libc::epoll_create1(libc::EPOLL_CLOEXEC)),
        )
    };
    let pid = child(|| {
        close(ends[0]);
        let fd = receive_fd(ends[1]);
        sys::write(fd, b"through a descriptor that was sent");
        close(fd);
        sys::write(ends[1], b"hello");
        sys::write(event, &3u64.to_ne_bytes());
        21
    });
    close(ends[1]);
    let (from, to) = pipe();
    send_fd(ends[0], to);
    close(to);
    let text = String::from_utf8_lossy(&sys::read_all(from)).into_owned();
    let mut ready = Vec::new();
    // SAFETY: the events are locals.
    unsafe {
        for fd in [ends[0], event] {
            let mut wanted = libc::epoll_event {
                events: libc::EPOLLIN as u32,
                u64: fd as u64,
            };
            ok(
                "epoll_ctl",
                libc::epoll_ctl(epoll, libc::EPOLL_CTL_ADD, fd, &raw mut wanted),
            );
        }
        while ready.len() < 2 {
            let mut events: [libc::epoll_event; 4] = std::mem::zeroed();
            let n = ok(
                "epoll_wait",
                libc::epoll_wait(epoll, events.as_mut_ptr(), 4, 20_000),
            );
            assert!(n > 0, "epoll waits in vain");
            for e in &events[..n as usize] {
                let fd = e.u64 as i32;
                ok(
                    "epoll_ctl",
                    libc::epoll_ctl(epoll, libc::EPOLL_CTL_DEL, fd, std::ptr::null_mut()),
                );
                let bytes = read(fd, 8).expect("it is readable");
                ready.push(if fd == event {
                    format!("event {}", bytes[0])
                } else {
                    String::from_utf8_lossy(&bytes).into_owned()
                });
            }
        }
    }
    ready.sort();
    let status = ended(pid);
    for fd in [ends[0], event, epoll, from] {
        close(fd);
    }
    format!("{text}, {}, {status}", ready.join(", "))
}
