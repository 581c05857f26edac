//! Atomic instructions: the sums must be right.

use std::arch::asm;
use std::cell::UnsafeCell;
use std::sync::atomic::{
    AtomicBool, AtomicU8, AtomicU16, AtomicU32, AtomicU64, AtomicUsize, Ordering,
};

use sevlab_workloads::sections::Settings;

use crate::{Turns, deadline, note, on_threads};

pub fn library(s: &Settings) -> String {
    let end = deadline(s);
    let (plain, looped, most, xor) = (
        AtomicU64::new(0),
        AtomicU64::new(0),
        AtomicU64::new(0),
        AtomicU64::new(0),
    );
    let slot = AtomicUsize::new(usize::MAX);
    let done = on_threads(s.threads, |me| {
        let (mut n, mut mine, mut last) = (0u64, me, 0);
        let mut turns_left = Turns::until(end);
        while turns_left.go() {
            for _ in 0..200 {
                let now = plain.fetch_add(1, Ordering::Relaxed);
                assert!(n == 0 || now > last, "a counter goes backwards");
                last = now;
                let mut old = looped.load(Ordering::Relaxed);
                while let Err(seen) =
                    looped.compare_exchange_weak(old, old + 3, Ordering::AcqRel, Ordering::Relaxed)
                {
                    old = seen;
                }
                most.fetch_max(now, Ordering::Relaxed);
                xor.fetch_xor(now | 1 << (me + 40), Ordering::Relaxed);
                mine = slot.swap(mine, Ordering::AcqRel);
                n += 1;
            }
        }
        (n, mine)
    });
    let total: u64 = done.iter().map(|d| d.0).sum();
    assert_eq!(
        plain.load(Ordering::Relaxed),
        total,
        "fetch_add loses increments"
    );
    assert_eq!(
        looped.load(Ordering::Relaxed),
        3 * total,
        "compare-and-exchange loses increments"
    );
    assert_eq!(most.load(Ordering::Relaxed), total - 1, "fetch_max");
    let mut expected = 0;
    for (i, d) in done.iter().enumerate() {
        expected ^= if d.0 % 2 == 1 { 1 << (i + 40) } else { 0 };
    }
    // The exclusive or of 0 to total - 1.
    let k = total - 1;
    expected ^= [k, 1, k + 1, 0][(k % 4) as usize];
    assert_eq!(xor.load(Ordering::Relaxed), expected, "fetch_xor");
    let mut tokens: Vec<usize> = done
        .iter()
        .map(|d| d.1)
        .chain([slot.into_inner()])
        .collect();
    tokens.sort_unstable();
    let all: Vec<usize> = (0..s.threads).chain([usize::MAX]).collect();
    assert_eq!(tokens, all, "a swap loses or doubles a value");
    note(s, "atomic rounds", total);
    format!("{} threads, sums, maximum and tokens agree", s.threads)
}

/// One word of each size, on lines of their own.
#[repr(C, align(64))]
struct Words {
    add8: AtomicU8,
    add16: AtomicU16,
    add32: AtomicU32,
    add64: AtomicU64,
    xadd: AtomicU64,
    down: AtomicU64,
    loops: AtomicU32,
    bits: [AtomicU32; 4],
    flags: AtomicU64,
    logic: AtomicU32,
    flips: AtomicU16,
    sign: AtomicU32,
}

pub fn locked(s: &Settings) -> String {
    let end = deadline(s);
    let w = Words {
        add8: AtomicU8::new(0),
        add16: AtomicU16::new(0),
        add32: AtomicU32::new(0),
        add64: AtomicU64::new(0),
        xadd: AtomicU64::new(0),
        down: AtomicU64::new(0),
        loops: AtomicU32::new(0),
        bits: [const { AtomicU32::new(0) }; 4],
        flags: AtomicU64::new(0),
        logic: AtomicU32::new(0),
        flips: AtomicU16::new(0x5555),
        sign: AtomicU32::new(77),
    };
    let threads = s.threads.min(32);
    let rounds = on_threads(threads, |me| {
        let (mut n, bit, mask) = (0u64, me as u32 * 4 + 1, 1u32 << me);
        let mut turns_left = Turns::until(end);
        while turns_left.go() {
            for _ in 0..100 {
                let (ticket, mut carry): (u64, [u8; 3]);
                carry = [9; 3];
                // SAFETY: locked instructions on words that are shared atomics; the bit string has 128 bits.
                unsafe {
                    asm!(
                        "lock inc byte ptr [{w}]",
                        "lock add word ptr [{w} + 2], 3",
                        "lock sub dword ptr [{w} + 4], -5",
                        "lock adc qword ptr [{w} + 8], 7",
                        "lock dec qword ptr [{w} + 24]",
                        "lock sbb qword ptr [{w} + 24], 1",
                        "lock not word ptr [{flips}]",
                        "lock neg dword ptr [{sign}]",
                        w = in(reg) &raw const w,
                        flips = in(reg) w.flips.as_ptr(),
                        sign = in(reg) w.sign.as_ptr(),
                    );
                    let mut x = 11u64;
                    asm!("lock xadd qword ptr [{w}], {x}", w = in(reg) w.xadd.as_ptr(), x = inout(reg) x);
                    ticket = x;
                    // Each thread has a bit of its own in each string, so it knows what the carry flag must be.
                    asm!(
                        "lock bts dword ptr [{w}], {bit:e}", "setc {a}",
                        "lock btc dword ptr [{w}], {bit:e}", "setc {b}",
                        "lock btr dword ptr [{w}], {bit:e}", "setc {c}",
                        "lock btc dword ptr [{w}], {bit:e}",
                        "lock bts qword ptr [{q}], {bit6}",
                        "lock btr qword ptr [{q}], {bit6}",
                        w = in(reg) w.bits.as_ptr(), bit = in(reg) u64::from(bit % 128), q = in(reg) w.flags.as_ptr(),
                        bit6 = in(reg) u64::from(bit % 64),
                        a = out(reg_byte) carry[0], b = out(reg_byte) carry[1], c = out(reg_byte) carry[2],
                    );
                    // Back to clear for the next round.
                    asm!("lock btr dword ptr [{w}], {bit:e}", w = in(reg) w.bits.as_ptr(), bit = in(reg) u64::from(bit % 128));
                    asm!(
                        "lock or dword ptr [{w}], {m:e}",
                        "lock xor dword ptr [{w}], {m:e}",
                        "lock xor dword ptr [{w}], {m:e}",
                        "not {m:e}",
                        "lock and dword ptr [{w}], {m:e}",
                        w = in(reg) w.logic.as_ptr(), m = inout(reg) mask => _,
                    );
                    asm!(
                        "mov eax, dword ptr [{w}]",
                        "2:",
                        "lea {t:e}, [rax + 9]",
                        "lock cmpxchg dword ptr [{w}], {t:e}",
                        "jnz 2b",
                        w = in(reg) w.loops.as_ptr(), t = out(reg) _, out("eax") _,
                    );
                }
                assert_eq!(carry, [0, 1, 0], "carry flags of locked bit instructions");
                assert_eq!(ticket % 11, 0, "xadd returns what was never there");
                n += 1;
            }
        }
        n
    });
    let n: u64 = rounds.iter().sum();
    assert_eq!(w.add8.into_inner(), n as u8, "lock inc, 8 bits");
    assert_eq!(w.add16.into_inner(), (3 * n) as u16, "lock add, 16 bits");
    assert_eq!(w.add32.into_inner(), (5 * n) as u32, "lock sub, 32 bits");
    // The carry that goes into adc and sbb is that of the instruction before: sub of -5 borrows but for wraps, dec keeps.
    let sum = w.add64.into_inner();
    assert!(
        (7 * n..=8 * n).contains(&sum),
        "lock adc, 64 bits: {sum} in {n} rounds"
    );
    let down = w.down.into_inner().wrapping_neg();
    assert!(
        (2 * n..=3 * n).contains(&down),
        "lock dec and sbb, 64 bits: {down} in {n} rounds"
    );
    assert_eq!(w.xadd.into_inner(), 11 * n, "lock xadd, 64 bits");
    assert_eq!(
        w.loops.into_inner(),
        (9 * n) as u32,
        "lock cmpxchg, 32 bits"
    );
    assert!(
        w.bits.iter().all(|b| b.load(Ordering::Relaxed) == 0),
        "lock bts, btr, btc in a string"
    );
    assert_eq!(w.flags.into_inner(), 0, "lock bts and btr, 64 bits");
    assert_eq!(w.logic.into_inner(), 0, "lock or, xor, and");
    assert_eq!(
        w.flips.into_inner(),
        if n.is_multiple_of(2) { 0x5555 } else { 0xaaaa },
        "lock not"
    );
    assert_eq!(
        w.sign.into_inner() as i32,
        if n.is_multiple_of(2) { 77 } else { -77 },
        "lock neg"
    );
    note(s, "rounds of locked instructions", n);
    format!("{threads} threads, every sum and every carry agrees")
}

#[repr(C, align(16))]
struct Pair(UnsafeCell<[u64; 2]>);

// SAFETY: accessed by locked instructions only while threads share it.
unsafe impl Sync for Pair {}

/// `lock cmpxchg16b`: what was there, and whether it was exchanged.
fn exchange16(p: &Pair, old: [u64; 2], new: [u64; 2]) -> ([u64; 2], bool) {
    let (low, high, yes): (u64, u64, u8);
    // SAFETY: sixteen aligned bytes; rbx is LLVM's, so it is swapped in and out.
    unsafe {
        asm!(
            "xchg {new_low}, rbx",
            "lock cmpxchg16b [{p}]",
            "sete {yes}",
            "xchg {new_low}, rbx",
            p = in(reg) p.0.get(), new_low = inout(reg) new[0] => _, in("rcx") new[1],
            inout("rax") old[0] => low, inout("rdx") old[1] => high, yes = out(reg_byte) yes,
        );
    }
    ([low, high], yes != 0)
}

/// `lock cmpxchg8b`, on its first eight bytes.
fn exchange8(p: &AtomicU64, old: u64, new: u64) -> (u64, bool) {
    let (low, high, yes): (u32, u32, u8);
    // SAFETY: eight aligned bytes; rbx as above.
    unsafe {
        asm!(
            "xchg {new_low:r}, rbx",
            "lock cmpxchg8b [{p}]",
            "sete {yes}",
            "xchg {new_low:r}, rbx",
            p = in(reg) p.as_ptr(), new_low = inout(reg) new & 0xffff_ffff => _, in("ecx") (new >> 32) as u32,
            inout("eax") old as u32 => low, inout("edx") (old >> 32) as u32 => high, yes = out(reg_byte) yes,
        );
    }
    (u64::from(high) << 32 | u64::from(low), yes != 0)
}

pub fn wide(s: &Settings) -> String {
    let mix = |n: u64| n.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x1234;
    let end = deadline(s);
    let pair = Pair(UnsafeCell::new([0, mix(0)]));
    let small = AtomicU64::new(0);
    let rounds = on_threads(s.threads, |_| {
        let mut n = 0u64;
        let mut turns_left = Turns::until(end);
        while turns_left.go() {
            for _ in 0..100 {
                let mut seen = [0, 0];
                loop {
                    let (now, yes) = exchange16(&pair, seen, [seen[0] + 1, mix(seen[0] + 1)]);
                    if yes {
                        break;
                    }
                    assert_eq!(now[1], mix(now[0]), "two halves that don't belong together");
                    seen = now;
                }
                let mut seen = small.load(Ordering::Relaxed);
                loop {
                    let half = (seen as u32).wrapping_add(1);
                    let (now, yes) =
                        exchange8(&small, seen, u64::from(!half) << 32 | u64::from(half));
                    if yes {
                        break;
                    }
                    assert!(
                        now == 0 || (now >> 32) as u32 == !(now as u32),
                        "halves of cmpxchg8b"
                    );
                    seen = now;
                }
                n += 1;
            }
        }
        n
    });
    let n: u64 = rounds.iter().sum();
    assert_eq!(
        pair.0.into_inner(),
        [n, mix(n)],
        "cmpxchg16b loses exchanges"
    );
    assert_eq!(
        small.into_inner() as u32,
        n as u32,
        "cmpxchg8b loses exchanges"
    );
    note(s, "wide exchanges", n);
    format!(
        "{} threads, counters and their other halves agree",
        s.threads
    )
}

struct Guarded(UnsafeCell<[u64; 4]>);

// SAFETY: the spin locks below guard it.
unsafe impl Sync for Guarded {}

impl Guarded {
    fn step(&self) {
        // SAFETY: the caller holds the lock.
        let x = unsafe { &mut *self.0.get() };
        x[0] += 1;
        x[1] += x[0];
        x[2] = x[2].wrapping_mul(3) + x[0];
        x[3] ^= x[2];
    }
}

pub fn spin(s: &Settings) -> String {
    let end = deadline(s);
    let guarded: [Guarded; 3] = std::array::from_fn(|_| Guarded(UnsafeCell::new([0; 4])));
    let exchange = AtomicBool::new(false);
    let (next, serving) = (AtomicU32::new(0), AtomicU32::new(0));
    let bits = AtomicU64::new(0);
    let wait = |turns: &mut u32| {
        *turns += 1;
        if turns.is_multiple_of(64) {
            std::thread::yield_now();
        } else {
            std::hint::spin_loop();
        }
    };
    let rounds = on_threads(s.threads.min(4), |_| {
        let mut n = 0u64;
        let mut turns_left = Turns::until(end);
        while turns_left.go() {
            for _ in 0..20 {
                let mut turns = 0;
                while exchange.swap(true, Ordering::Acquire) {
                    wait(&mut turns);
                }
                guarded[0].step();
                exchange.store(false, Ordering::Release);
                let ticket = next.fetch_add(1, Ordering::Relaxed);
                while serving.load(Ordering::Acquire) != ticket {
                    wait(&mut turns);
                }
                guarded[1].step();
                serving.store(ticket.wrapping_add(1), Ordering::Release);
                while bits.fetch_or(1 << 33, Ordering::Acquire) & 1 << 33 != 0 {
                    wait(&mut turns);
                }
                guarded[2].step();
                bits.fetch_and(!(1 << 33), Ordering::Release);
                n += 1;
            }
        }
        n
    });
    let n: u64 = rounds.iter().sum();
    let reference = Guarded(UnsafeCell::new([0; 4]));
    for _ in 0..n {
        reference.step();
    }
    let reference = reference.0.into_inner();
    for (g, lock) in guarded.into_iter().zip(["exchange", "ticket", "bit"]) {
        assert_eq!(g.0.into_inner(), reference, "the {lock} lock lets two in");
    }
    note(s, "turns of each spin lock", n);
    "three kinds of lock, what they guard agrees".to_owned()
}
