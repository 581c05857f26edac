//! The hypervisor's check of a proxied system call: whatever the guest puts in the request block and the bounce area,
//! every pointer that would reach the host's kernel lies inside the bounce area with its full length. Nothing is executed.
//!
//! Input: number (2), six words ([`Input::word`]), then the bounce area, repeated to its length.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sevlab_fuzz::Input;
use sevlab_machine::kernel::outside::{HostCall, INTERRUPTIBLE, NULL, WindowCall};
use sevlab_machine::kernel::syscall::ioctl::{self, IoctlArg};
use sevlab_machine::kernel::syscall::marshal::{KERNEL_FDS_END, PATH_MAX, check, guest_fd, rights};
use sevlab_machine::kernel::syscall::table::{Arg, Len, row};

const BOUNCE: usize = 8192;

fuzz_target!(|data: &[u8]| {
    let mut input = Input(data);
    let nr = i64::from(input.u16() as i16);
    let anchors = [
        NULL,
        BOUNCE as u64,
        BOUNCE as u64 / 2,
        1 << 32,
        INTERRUPTIBLE as u64,
    ];
    let args = std::array::from_fn(|_| input.word(&anchors));
    let call = HostCall { nr, args };
    let mut bounce = vec![0; BOUNCE];
    if !input.is_empty() {
        for (b, v) in bounce.iter_mut().zip(input.0.iter().cycle()) {
            *b = *v;
        }
    }
    if let Some(window) = WindowCall::decode(&call) {
        let again = WindowCall::decode(&window.encode());
        assert_eq!(format!("{again:?}"), format!("{:?}", Some(window)));
    }
    for at in rights(&bounce) {
        assert!(at + 4 <= bounce.len());
    }
    let before = bounce.clone();
    let Ok(host) = check(&call, &mut bounce) else {
        return;
    };
    assert_eq!(before, bounce, "checking changes nothing");
    let row = row(nr).expect("an admitted call is in the table");
    assert!(row.host_may_run());
    let base = bounce.as_ptr() as u64;
    // Where an argument points, in the bounce area.
    let inside = |pointer: u64, len: u64| {
        let off = pointer.wrapping_sub(base);
        let end = off.checked_add(len).unwrap_or(u64::MAX);
        assert!(
            end <= BOUNCE as u64,
            "{}: {pointer:#x}, {len} bytes",
            row.name
        );
        off
    };
    let word = |off: u64| {
        let at = off as usize;
        u64::from(u32::from_le_bytes(
            bounce[at..at + 4].try_into().expect("four bytes"),
        ))
    };
    let length = |len: Len| match len {
        Len::Bytes(n) => u64::from(n),
        Len::Arg(i) => args[usize::from(i)],
        Len::Times(i, size) => (args[usize::from(i)] & 0xffff_ffff) * u64::from(size),
        Len::Bits(i) => (args[usize::from(i)] & 0x7fff_ffff).div_ceil(64) * 8,
        Len::Via(i) => word(args[usize::from(i)]),
    };
    for (arg, (&given, &passed)) in row.args.iter().zip(args.iter().zip(&host.args)) {
        let buffer = |len: u64| {
            if passed != 0 {
                assert_eq!(inside(passed, len), given);
            } else {
                assert_eq!(given, NULL);
            }
        };
        match *arg {
            Arg::Int => assert_eq!(given, passed),
            Arg::Fd | Arg::DirFd => {
                assert_eq!(given, passed);
                assert!((given as i32) < KERNEL_FDS_END);
                let _ = guest_fd(given);
            }
            Arg::In(len) | Arg::Out(len) | Arg::InOut(len) | Arg::OutRet(len, _) => {
                if passed != 0 {
                    buffer(length(len));
                } else {
                    assert_eq!(given, NULL);
                }
            }
            Arg::Null => assert_eq!(passed, 0),
            Arg::Path => {
                buffer(1);
                if passed != 0 {
                    let path = &bounce[given as usize..];
                    let end = path
                        .iter()
                        .position(|b| *b == 0)
                        .expect("a NUL in the bounce area");
                    assert!(end < PATH_MAX);
                }
            }
            Arg::Event => {
                buffer(64);
                if passed != 0 {
                    let signal = (word(given + 8), word(given + 12));
                    assert!(signal.1 == 1 || signal == (64, 0), "{signal:?}");
                }
            }
            Arg::Ioctl => match ioctl::argument(args[1] as u32).expect("a known request") {
                IoctlArg::Int => assert_eq!(given, passed),
                IoctlArg::Fd => assert!((given as i32) < KERNEL_FDS_END),
                IoctlArg::In(n) | IoctlArg::Out(n) | IoctlArg::InOut(n) => buffer(u64::from(n)),
            },
            // Numbers go as they are; pointers are to a few bytes.
            Arg::Fcntl | Arg::PrctlArg => {
                if passed != given {
                    buffer(4);
                }
            }
            Arg::MsgIn | Arg::MsgOut => {
                if passed == 0 {
                    assert_eq!(given, NULL);
                    continue;
                }
                // SAFETY: `host` holds the nine words of a message header for as long as it lives.
                let w: [u64; 9] = unsafe { *(passed as *const [u64; 9]) };
                for (pointer, len) in [(w[0], w[1] & 0xffff_ffff), (w[4], w[5]), (w[7], w[8])] {
                    if pointer != 0 {
                        inside(pointer, len);
                    } else {
                        assert_eq!(len, 0);
                    }
                }
                assert_eq!((w[2], w[3]), (passed + 56, 1));
            }
        }
    }
    host.complete(&mut bounce);
});
