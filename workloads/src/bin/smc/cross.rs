//! Code that one thread patches and others run. By the rules (Intel SDM vol. 3, 10.1.3; APM vol. 2, 7.6.1): the writer
//! patches and then sets a flag; the others wait for the flag, execute a serialising instruction, and then run it.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use sevlab_workloads::sections::Settings;
use sevlab_workloads::sys::{Pages, RW, RWX, RX, until};

use crate::{serialise, two_mappings};

/// mov eax, imm32; ret, at a place where the immediate is aligned.
const AT: usize = 67;

/// What the code returns in generation `g`.
fn expected(g: u64) -> u32 {
    (g as u32).wrapping_mul(0x9e37_79b9) ^ 0x55
}

/// `threads` threads run what this one patches with `patch`, generation after generation.
fn ping_pong(n: u64, threads: usize, code: &Pages, patch: impl Fn(u32)) -> String {
    let flag = AtomicU64::new(0);
    let done: Vec<AtomicU64> = (0..threads).map(|_| AtomicU64::new(0)).collect();
    let sums = std::thread::scope(|scope| {
        let runners: Vec<_> = done
            .iter()
            .map(|done| {
                let flag = &flag;
                scope.spawn(move || {
                    let mut all = 0u64;
                    for g in 1..=n {
                        until("the next generation", || flag.load(Ordering::Acquire) == g);
                        serialise();
                        // From time to time so often that it gets translated.
                        let times = if g % 1000 == 999 { 10_000 } else { 2 };
                        for _ in 0..times {
                            // SAFETY: mov and ret stand there.
                            let r = unsafe { code.call(AT, 0, 0, 0) } as u32;
                            assert_eq!(r, expected(g), "stale code in generation {g}");
                            all = all.rotate_left(9) ^ u64::from(r);
                        }
                        done.store(g, Ordering::Release);
                    }
                    all
                })
            })
            .collect();
        for g in 1..=n {
            patch(expected(g));
            flag.store(g, Ordering::Release);
            for d in &done {
                until("the runners", || d.load(Ordering::Acquire) == g);
            }
        }
        let join = |r: std::thread::ScopedJoinHandle<'_, u64>| r.join().expect("a runner ends");
        runners.into_iter().map(join).collect::<Vec<_>>()
    });
    assert!(sums.iter().all(|s| *s == sums[0]), "the runners disagree");
    format!("{n} generations, {threads} runners, results {:#x}", sums[0])
}

fn body(value: u32) -> [u8; 6] {
    let v = value.to_le_bytes();
    [0xb8, v[0], v[1], v[2], v[3], 0xc3]
}

pub fn same(s: &Settings) -> String {
    let code = Pages::private(4096, RWX);
    ping_pong(s.count / 100, 1, &code, |v| code.put(AT, &body(v)))
}

pub fn alias(s: &Settings) -> String {
    let (writable, executable) = two_mappings(4096);
    let patch = |v| writable.put(AT, &body(v));
    ping_pong(s.count / 100, 1, &executable, patch)
}

pub fn flip(s: &Settings) -> String {
    let code = Pages::private(4096, RX);
    ping_pong(s.count / 100, 1, &code, |v| {
        code.protect(RW);
        code.put(AT, &body(v));
        code.protect(RX);
    })
}

pub fn many(s: &Settings) -> String {
    let code = Pages::private(4096, RWX);
    ping_pong(s.count / 400, s.threads, &code, |v| code.put(AT, &body(v)))
}

/// One aligned store to code that is running: whoever runs it sees the old or the new immediate, and at last the new.
pub fn atomic(s: &Settings) -> String {
    let code = Pages::private(4096, RWX);
    code.put(AT, &body(0));
    let n = (s.count / 10).max(2) as u32;
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..s.threads {
            scope.spawn(|| {
                while !stop.load(Ordering::Acquire) {
                    // SAFETY: mov and ret stand there, whatever the immediate.
                    let r = unsafe { code.call(AT, 0, 0, 0) } as u32;
                    assert!(
                        r & 0xffff == r >> 16 && r >> 16 <= n,
                        "{r:#x} is neither old nor new"
                    );
                }
                serialise();
                until("the last value", || {
                    // SAFETY: as above.
                    let r = unsafe { code.call(AT, 0, 0, 0) } as u32;
                    r == both(n)
                });
            });
        }
        for i in 0..=n {
            code.word(AT + 1).store(both(i), Ordering::Release);
        }
        stop.store(true, Ordering::Release);
    });
    format!("{n} stores, {} runners, last value seen", s.threads)
}

/// A number that shows when half of it is old.
fn both(i: u32) -> u32 {
    let low = i % 0x8000;
    low << 16 | low
}
