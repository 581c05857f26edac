//! Litmus tests of the memory model that x86 processors keep (x86-TSO; APM vol. 2, 7.2; SDM vol. 3, 10.2). Threads run
//! through an array of places together, place by place, so that they meet at some of them.

use std::arch::asm;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Instant;

use sevlab_workloads::sections::Settings;

use crate::{Turns, deadline, note, on_threads};

const PLACES: usize = 1024;

/// Two words on lines of their own.
#[repr(C, align(128))]
#[derive(Default)]
struct Place {
    x: AtomicU64,
    pad: [u64; 7],
    y: AtomicU64,
}

type Step = fn(&Place) -> u64;

/// What came of the places: how many were run, and at how many `odd` held.
struct Result {
    runs: u64,
    odd: u64,
}

/// A barrier that spins, since what matters is that all leave it at the same time.
struct Meet {
    here: AtomicU32,
    phase: AtomicU32,
    all: u32,
}

impl Meet {
    fn wait(&self) {
        let phase = self.phase.load(Ordering::Acquire);
        if self.here.fetch_add(1, Ordering::AcqRel) + 1 == self.all {
            self.here.store(0, Ordering::Relaxed);
            self.phase.store(phase.wrapping_add(1), Ordering::Release);
            return;
        }
        let mut turns = 0u32;
        while self.phase.load(Ordering::Acquire) == phase {
            turns += 1;
            if turns > 200 {
                std::thread::yield_now();
            } else {
                std::hint::spin_loop();
            }
        }
    }
}

/// Runs the steps, one a thread, until `end`; counts the places where `odd` holds of what they returned.
fn run(end: Instant, steps: &[Step], odd: fn(&[u64], &Place) -> bool) -> Result {
    let places: Vec<Place> = (0..PLACES).map(|_| Place::default()).collect();
    let results: Vec<Vec<AtomicU64>> = steps
        .iter()
        .map(|_| (0..PLACES).map(|_| AtomicU64::new(0)).collect())
        .collect();
    let meet = Meet {
        here: AtomicU32::new(0),
        phase: AtomicU32::new(0),
        all: steps.len() as u32,
    };
    let stop = AtomicBool::new(false);
    let mut counts = on_threads(steps.len(), |me| {
        let (mut runs, mut found) = (0, 0);
        loop {
            meet.wait();
            for (place, result) in places.iter().zip(&results[me]) {
                result.store(steps[me](place), Ordering::Relaxed);
            }
            meet.wait();
            if me == 0 {
                let mut values = vec![0; steps.len()];
                for (i, place) in places.iter().enumerate() {
                    for (value, result) in values.iter_mut().zip(&results) {
                        *value = result[i].load(Ordering::Relaxed);
                    }
                    found += u64::from(odd(&values, place));
                    place.x.store(0, Ordering::Relaxed);
                    place.y.store(0, Ordering::Relaxed);
                }
                runs += PLACES as u64;
                stop.store(Instant::now() >= end, Ordering::Release);
            }
            meet.wait();
            if stop.load(Ordering::Acquire) {
                return (runs, found);
            }
        }
    });
    let (runs, odd) = counts.swap_remove(0);
    Result { runs, odd }
}

/// Steps of two accesses with something between, in exactly these instructions. Operands that a step does not use
/// stand in a comment of its text, since each must be used.
macro_rules! step {
    ($name:ident: $($line:literal),+) => {
        fn $name(p: &Place) -> u64 {
            let (mut a, mut b) = (0u64, 0u64);
            // SAFETY: accesses the two words of a place, as atomics of other threads do.
            unsafe {
                asm!(
                    $($line,)+
                    x = in(reg) p.x.as_ptr(), y = in(reg) p.y.as_ptr(), a = inout(reg) a, b = inout(reg) b,
                    one = inout(reg) 1u64 => _, two = in(reg) 2u64,
                );
            }
            a << 32 | b
        }
    };
}

step!(store_x_load_y: "mov [{x}], {one}", "mov {a}, [{y}]", "/* {b} {two} */");
step!(store_y_load_x: "mov [{y}], {one}", "mov {a}, [{x}]", "/* {b} {two} */");
step!(store_x_fence_load_y: "mov [{x}], {one}", "mfence", "mov {a}, [{y}]", "/* {b} {two} */");
step!(store_y_fence_load_x: "mov [{y}], {one}", "mfence", "mov {a}, [{x}]", "/* {b} {two} */");
step!(xchg_x_load_y: "xchg [{x}], {one}", "mov {a}, [{y}]", "/* {b} {two} */");
step!(xchg_y_load_x: "xchg [{y}], {one}", "mov {a}, [{x}]", "/* {b} {two} */");
step!(store_x_lock_load_y: "mov [{x}], {one}", "lock or dword ptr [rsp], 0", "mov {a}, [{y}]", "/* {b} {two} */");
step!(store_y_lock_load_x: "mov [{y}], {one}", "lock or dword ptr [rsp], 0", "mov {a}, [{x}]", "/* {b} {two} */");
step!(store_x_store_y: "mov [{x}], {one}", "mov [{y}], {one}", "/* {a} {b} {two} */");
step!(load_y_load_x: "mov {a}, [{y}]", "mov {b}, [{x}]", "/* {one} {two} */");
step!(load_x_load_y: "mov {a}, [{x}]", "mov {b}, [{y}]", "/* {one} {two} */");
step!(load_x_store_y: "mov {a}, [{x}]", "mov [{y}], {one}", "/* {b} {two} */");
step!(load_y_store_x: "mov {a}, [{y}]", "mov [{x}], {one}", "/* {b} {two} */");
step!(store_x: "mov [{x}], {one}", "/* {y} {a} {b} {two} */");
step!(store_y: "mov [{y}], {one}", "/* {x} {a} {b} {two} */");
step!(load_x_twice: "mov {a}, [{x}]", "mov {b}, [{x}]", "/* {y} {one} {two} */");
step!(x_one_y_two: "mov [{x}], {one}", "mov [{y}], {two}", "/* {a} {b} */");
step!(y_one_x_two: "mov [{y}], {one}", "mov [{x}], {two}", "/* {a} {b} */");
step!(x_then_own: "mov [{x}], {one}", "mov {a}, [{x}]", "/* {y} {b} {two} */");

/// The first and the second load of a step.
fn loads(v: u64) -> (u64, u64) {
    (v >> 32, v & 0xffff_ffff)
}

fn share(s: &Settings, of: u32) -> Instant {
    Instant::now() + (deadline(s) - Instant::now()) / of
}

pub fn sb(s: &Settings) -> String {
    let r = run(share(s, 1), &[store_x_load_y, store_y_load_x], |v, _| {
        v.iter().all(|v| loads(*v).0 == 0)
    });
    note(s, "store buffering, runs", r.runs);
    note(s, "store buffering, both old", r.odd);
    "both old is allowed and not counted".to_owned()
}

fn forbidden(
    s: &Settings,
    what: &str,
    parts: u32,
    steps: &[Step],
    odd: fn(&[u64], &Place) -> bool,
) -> String {
    let r = run(share(s, parts), steps, odd);
    note(s, what, r.runs);
    assert_eq!(r.odd, 0, "{what}: seen {} times in {} runs", r.odd, r.runs);
    format!("{what} 0")
}

pub fn sb_fence(s: &Settings) -> String {
    let both_old = |v: &[u64], _: &Place| v.iter().all(|v| loads(*v).0 == 0);
    [
        forbidden(
            s,
            "mfence",
            3,
            &[store_x_fence_load_y, store_y_fence_load_x],
            both_old,
        ),
        forbidden(s, "xchg", 3, &[xchg_x_load_y, xchg_y_load_x], both_old),
        forbidden(
            s,
            "locked",
            3,
            &[store_x_lock_load_y, store_y_lock_load_x],
            both_old,
        ),
    ]
    .join(", ")
}

pub fn mp(s: &Settings) -> String {
    forbidden(
        s,
        "flag without message",
        1,
        &[store_x_store_y, load_y_load_x],
        |v, _| loads(v[1]) == (1, 0),
    )
}

pub fn lb(s: &Settings) -> String {
    forbidden(
        s,
        "both new",
        1,
        &[load_x_store_y, load_y_store_x],
        |v, _| v.iter().all(|v| loads(*v).0 == 1),
    )
}

pub fn iriw(s: &Settings) -> String {
    forbidden(
        s,
        "readers disagree",
        1,
        &[store_x, store_y, load_x_load_y, load_y_load_x],
        |v, _| loads(v[2]) == (1, 0) && loads(v[3]) == (1, 0),
    )
}

pub fn coherence(s: &Settings) -> String {
    [
        forbidden(s, "backwards", 3, &[store_x, load_x_twice], |v, _| {
            loads(v[1]) == (1, 0)
        }),
        forbidden(
            s,
            "crossed writes",
            3,
            &[x_one_y_two, y_one_x_two],
            |_, p| p.x.load(Ordering::Relaxed) == 1 && p.y.load(Ordering::Relaxed) == 1,
        ),
        forbidden(s, "own store unseen", 3, &[x_then_own, store_y], |v, _| {
            loads(v[0]).0 != 1
        }),
    ]
    .join(", ")
}

/// Every store is of equal bytes (halves, words), so a load of unequal ones has seen parts of two.
pub fn tearing(s: &Settings) -> String {
    let end = deadline(s);
    let word = AtomicU64::new(0);
    let rounds = on_threads(s.threads.clamp(2, 4), |me| {
        let mut n = 0u64;
        let mut turns_left = Turns::until(end);
        while turns_left.go() {
            for i in 0..200u64 {
                let byte = (i + me as u64) & 0xff;
                let value = byte * 0x0101_0101_0101_0101;
                if me % 2 == 0 {
                    word.store(value, Ordering::Relaxed);
                    // Through a vector register, too: aligned, of eight bytes.
                    // SAFETY: stores to the shared word.
                    unsafe {
                        asm!("movq {v}, {x}", "movq [{p}], {v}", v = out(xmm_reg) _, x = in(reg) value, p = in(reg) word.as_ptr());
                    }
                } else {
                    let seen = word.load(Ordering::Relaxed);
                    assert_eq!(
                        seen,
                        (seen & 0xff) * 0x0101_0101_0101_0101,
                        "half of a store"
                    );
                }
                n += 1;
            }
        }
        n
    });
    note(s, "whole accesses", rounds.iter().sum());
    "no store seen in parts".to_owned()
}
