//! The hypervisor half refuses what the table does not describe.

use super::*;
use crate::kernel::outside::NULL;
use crate::kernel::syscall::marshal::{KERNEL_FDS_END, rights};
use crate::kernel::syscall::table::{Arg, Handler, Len, ROWS, row};

const BOUNCE: usize = 64 << 10;

/// A call of this row whose arguments are all in range.
fn sane(nr: i64, args: &[Arg; 6]) -> HostCall {
    let mut call = HostCall { nr, args: [0; 6] };
    for (i, arg) in args.iter().enumerate() {
        call.args[i] = match arg {
            Arg::Int => 16,
            Arg::Fd | Arg::DirFd => 0,
            Arg::Null => NULL,
            _ => 4096 * (i as u64 + 1),
        };
    }
    match nr {
        16 => call.args[1] = 0x5401, // TCGETS
        72 => call.args[1] = 5,      // F_GETLK
        157 => call.args[0] = 2,     // PR_GET_PDEATHSIG
        _ => {}
    }
    call
}

#[test]
fn rows_are_sorted_and_found() {
    assert!(ROWS.is_sorted_by(|a, b| a.nr < b.nr));
    for r in ROWS {
        assert_eq!(row(r.nr).map(|found| found.name), Some(r.name));
    }
    assert!(ROWS.len() > 200);
    for nr in [-1, 337, 423, 511, 512, i64::MAX, i64::MIN] {
        assert!(row(nr).is_none(), "{nr}");
    }
}

#[test]
fn every_row_accepts_a_sane_call_and_refuses_pointers_that_leave_the_area() {
    let mut bounce = vec![0; BOUNCE];
    let base = bounce.as_ptr() as u64;
    for r in ROWS {
        let call = sane(r.nr, &r.args);
        // what timer_create reads is SIGEV_NONE; the second word of a message is an offset
        bounce[8192 + 12] = u8::from(r.nr == 222);
        if !r.host_may_run() {
            assert_eq!(
                check(&call, &mut bounce).map(drop),
                Err(Errno::ENOSYS),
                "{}",
                r.name
            );
            continue;
        }
        let host = check(&call, &mut bounce).unwrap_or_else(|e| panic!("{}: {e:?}", r.name));
        for i in 0..6 {
            if matches!(r.args[i], Arg::Int | Arg::Fd | Arg::DirFd) {
                continue;
            }
            if r.args[i] == Arg::Null {
                assert_eq!(host.args[i], 0);
                let mut bad = call;
                bad.args[i] = 64;
                assert_eq!(
                    check(&bad, &mut bounce).map(drop),
                    Err(Errno::EFAULT),
                    "{}",
                    r.name
                );
                continue;
            }
            if !matches!(r.args[i], Arg::MsgIn | Arg::MsgOut) {
                assert_eq!(host.args[i], base + call.args[i], "{} argument {i}", r.name);
            }
            let outside = [BOUNCE as u64 + 1, 1 << 32, u64::MAX - 1, i64::MAX as u64];
            for off in outside {
                let mut bad = call;
                bad.args[i] = off;
                let got = check(&bad, &mut bounce).map(drop);
                assert!(got.is_err(), "{} argument {i} at {off:#x}", r.name);
            }
            // starts inside, ends outside
            let nonempty = !matches!(
                r.args[i],
                Arg::Out(Len::Via(_)) | Arg::In(Len::Via(_)) // the word says zero bytes
            );
            if nonempty && r.args[i] != Arg::Path {
                let mut bad = call;
                bad.args[i] = BOUNCE as u64 - 1;
                let got = check(&bad, &mut bounce).map(drop);
                assert!(got.is_err(), "{} argument {i} at the end", r.name);
            }
            let mut null = call;
            null.args[i] = NULL;
            if let Ok(host) = check(&null, &mut bounce) {
                assert_eq!(host.args[i], 0, "{} argument {i}", r.name);
            }
        }
    }
}

#[test]
fn lengths_are_checked_in_full() {
    let mut bounce = vec![0; BOUNCE];
    let mut read = HostCall {
        nr: 0,
        args: [0, 0, BOUNCE as u64, 0, 0, 0],
    };
    assert!(check(&read, &mut bounce).is_ok());
    for n in [BOUNCE as u64 + 1, u64::MAX, 1 << 63] {
        read.args[2] = n;
        assert_eq!(check(&read, &mut bounce).map(drop), Err(Errno::EFAULT));
    }
    // recvfrom: the length of the address is a word in the area
    bounce[512..516].copy_from_slice(&(BOUNCE as u32).to_le_bytes());
    let from = HostCall {
        nr: 45,
        args: [0, 0, 16, 0, 1024, 512],
    };
    assert_eq!(check(&from, &mut bounce).map(drop), Err(Errno::EFAULT));
    // poll: a count that overflows
    let poll = HostCall {
        nr: 7,
        args: [0, u64::from(u32::MAX), 0, 0, 0, 0],
    };
    assert_eq!(check(&poll, &mut bounce).map(drop), Err(Errno::EFAULT));
    // select: a negative number of descriptors
    let select = HostCall {
        nr: 23,
        args: [u64::MAX, 0, NULL, NULL, NULL, 0],
    };
    assert_eq!(check(&select, &mut bounce).map(drop), Err(Errno::EINVAL));
}

#[test]
fn descriptors_of_the_host_are_out_of_reach() {
    let mut bounce = vec![0; BOUNCE];
    for fd in [
        KERNEL_FDS_END as u64,
        i32::MAX as u64,
        u64::from(u32::MAX),
        1 << 31,
    ] {
        let read = HostCall {
            nr: 0,
            args: [fd, 0, 16, 0, 0, 0],
        };
        assert_eq!(
            check(&read, &mut bounce).map(drop),
            Err(Errno::EBADF),
            "{fd:#x}"
        );
    }
    let at_cwd = HostCall {
        nr: 257,
        args: [-100i64 as u64, 0, 0, 0, 0, 0],
    };
    assert!(check(&at_cwd, &mut bounce).is_ok());
}

#[test]
fn paths_end_inside_the_area_and_outside_this_process() {
    let mut bounce = vec![b'x'; BOUNCE];
    let open = |off: u64| HostCall {
        nr: 2,
        args: [off, 0, 0, 0, 0, 0],
    };
    assert_eq!(
        check(&open(0), &mut bounce).map(drop),
        Err(Errno::ENAMETOOLONG)
    );
    assert_eq!(
        check(&open(BOUNCE as u64 - 3), &mut bounce).map(drop),
        Err(Errno::ENAMETOOLONG)
    );
    let own = format!("/proc/{}/mem", std::process::id());
    for (path, allowed) in [
        ("/etc/passwd", true),
        ("/proc/self/mem", false),
        ("/proc//self/./mem", false),
        ("/proc/thread-self/mem", false),
        ("/proc/self/task/1/mem", false),
        (own.as_str(), false),
        ("/proc/self/fd/3", true),
        ("/proc/self/fd/1003", false),
        ("/dev/fd/12000", false),
    ] {
        bounce[..path.len()].copy_from_slice(path.as_bytes());
        bounce[path.len()] = 0;
        assert_eq!(check(&open(0), &mut bounce).is_ok(), allowed, "{path}");
    }
}

#[test]
fn messages_are_rebuilt_with_host_pointers() {
    let mut bounce = vec![0; BOUNCE];
    let words = [64, 0, 4096, 100, 64, 0, 0u64];
    let put = |bounce: &mut Vec<u8>, words: &[u64]| {
        for (i, w) in words.iter().enumerate() {
            bounce[256 + i * 8..264 + i * 8].copy_from_slice(&w.to_le_bytes());
        }
    };
    put(&mut bounce, &words);
    let call = HostCall {
        nr: 46,
        args: [0, 256, 0, 0, 0, 0],
    };
    assert!(check(&call, &mut bounce).is_ok());
    for (i, bad) in [
        (2, BOUNCE as u64 - 50),
        (3, u64::MAX),
        (5, u64::MAX),
        (1, u64::MAX),
    ] {
        let mut words = words;
        words[i] = bad;
        put(&mut bounce, &words);
        assert!(check(&call, &mut bounce).is_err(), "word {i}");
    }
}

#[test]
fn messages_carry_descriptors_of_the_guest_only() {
    let mut bounce = vec![0; BOUNCE];
    let words = [NULL, 0, 4096, 1, 64, 24, 0u64];
    for (i, w) in words.iter().enumerate() {
        bounce[256 + i * 8..264 + i * 8].copy_from_slice(&w.to_le_bytes());
    }
    let call = HostCall {
        nr: 46,
        args: [0, 256, 0, 0, 0, 0],
    };
    let put = |bounce: &mut Vec<u8>, len: u64, fd: i32| {
        bounce[64..72].copy_from_slice(&len.to_le_bytes());
        bounce[72..76].copy_from_slice(&1u32.to_le_bytes()); // SOL_SOCKET
        bounce[76..80].copy_from_slice(&1u32.to_le_bytes()); // SCM_RIGHTS
        bounce[80..84].copy_from_slice(&fd.to_le_bytes());
    };
    put(&mut bounce, 20, 5);
    assert!(check(&call, &mut bounce).is_ok());
    put(&mut bounce, 20, KERNEL_FDS_END);
    assert_eq!(check(&call, &mut bounce).map(drop), Err(Errno::EBADF));
    // lengths that lie about their area are the host kernel's to refuse; they name no descriptor here
    for len in [0, 15, 25, u64::MAX] {
        put(&mut bounce, len, KERNEL_FDS_END);
        assert!(check(&call, &mut bounce).is_ok(), "{len}");
    }
    assert!(rights(&[0; 7]).is_empty());
}

#[test]
fn timers_of_the_host_only_wake() {
    let mut bounce = vec![0; BOUNCE];
    let call = HostCall {
        nr: 222,
        args: [1, 0, 64, 0, 0, 0],
    };
    let mut ask = |signo: u32, notify: u32| {
        bounce[8..12].copy_from_slice(&signo.to_le_bytes());
        bounce[12..16].copy_from_slice(&notify.to_le_bytes());
        check(&call, &mut bounce).map(drop)
    };
    assert_eq!(ask(64, 0), Ok(()));
    assert_eq!(ask(9, 1), Ok(()));
    assert_eq!(ask(9, 0), Err(Errno::EINVAL));
    assert_eq!(ask(64, 4), Err(Errno::EINVAL));
    assert_eq!(ask(64, 2), Err(Errno::EINVAL));
}

#[test]
fn arbitrary_calls_never_panic() {
    let mut bounce: Vec<u8> = (0..BOUNCE).map(|i| (i * 31) as u8).collect();
    let mut x = 88_172_645_463_325_252u64;
    for _ in 0..200_000 {
        let mut next = || {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            match x % 4 {
                0 => x,
                1 => x % BOUNCE as u64,
                2 => NULL,
                _ => x % 64,
            }
        };
        let nr = (next() % 460) as i64;
        let call = HostCall {
            nr,
            args: core::array::from_fn(|_| next()),
        };
        let _ = check(&call, &mut bounce);
    }
    assert!(ROWS.iter().any(|r| matches!(r.handler, Handler::Refuse(_))));
}
