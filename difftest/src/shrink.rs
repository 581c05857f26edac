//! Cutting a failing case down: fewer instructions, then a simpler start.

use crate::case::{Case, Registers};
use crate::forms::decode;
use std::time::{Duration, Instant};

/// The smallest case found for which `fails` still holds. It holds for `case`.
pub fn shrink(case: &Case, fails: &mut dyn FnMut(&Case) -> bool) -> Case {
    let end = Instant::now() + Duration::from_secs(20);
    let mut best = *case;
    let mut again = true;
    while again && Instant::now() < end {
        again = drop_instructions(&mut best, fails);
    }
    let mut next = best;
    next.fill = 0;
    accept(&mut best, next, fails);
    next = best;
    next.at = crate::layout::CODE;
    accept(&mut best, next, fails);
    let mut n = best.patches().count();
    while n > 0 {
        n -= 1;
        next = best;
        next.remove_patch(n);
        accept(&mut best, next, fails);
    }
    registers(&mut best, fails, end);
    while drop_instructions(&mut best, fails) && Instant::now() < end {}
    best
}

fn accept(best: &mut Case, next: Case, fails: &mut dyn FnMut(&Case) -> bool) -> bool {
    let ok = fails(&next);
    if ok {
        *best = next;
    }
    ok
}

/// Tries without each instruction, from the last on; true if one could go.
fn drop_instructions(best: &mut Case, fails: &mut dyn FnMut(&Case) -> bool) -> bool {
    let mut bounds = vec![0];
    while let Some(i) = decode(&best.code()[bounds[bounds.len() - 1]..], 0) {
        bounds.push(bounds[bounds.len() - 1] + i.len());
        if bounds[bounds.len() - 1] >= best.code().len() {
            break;
        }
    }
    if bounds[bounds.len() - 1] != best.code().len() {
        bounds.push(best.code().len());
    }
    if bounds.len() <= 2 {
        return false;
    }
    let mut any = false;
    for w in bounds.windows(2).rev() {
        if w[1] > best.code().len() {
            continue;
        }
        let mut code = best.code()[..w[0]].to_vec();
        code.extend_from_slice(&best.code()[w[1]..]);
        let mut next = *best;
        if !code.is_empty() && next.set_code(&code) {
            any |= accept(best, next, fails);
        }
    }
    any
}

/// Tries simple values for each register.
fn registers(best: &mut Case, fails: &mut dyn FnMut(&Case) -> bool, end: Instant) {
    let fresh = Registers::default();
    let mut next = *best;
    next.regs.x87 = fresh.x87;
    accept(best, next, fails);
    next = *best;
    next.regs.ymm = fresh.ymm;
    accept(best, next, fails);
    for v in [0x202, best.regs.flags & !0x400] {
        next = *best;
        next.regs.flags = v;
        accept(best, next, fails);
    }
    for v in [0x1f80, best.regs.mxcsr & !0x3f, best.regs.mxcsr | 0x1f80] {
        next = *best;
        next.regs.mxcsr = v;
        if accept(best, next, fails) {
            break;
        }
    }
    next = *best;
    (next.regs.fs, next.regs.gs) = (0, 0);
    accept(best, next, fails);
    for n in 0..16 {
        for v in [
            if n == 4 { fresh.gpr[4] } else { 0 },
            1,
            best.regs.gpr[n] & 0xff,
            best.regs.gpr[n] & 0xffff_ffff,
        ] {
            if best.regs.gpr[n] == v || Instant::now() > end {
                break;
            }
            next = *best;
            next.regs.gpr[n] = v;
            if accept(best, next, fails) {
                break;
            }
        }
        for q in 0..4 {
            next = *best;
            next.regs.ymm[n][q] = 0;
            if best.regs.ymm[n][q] != 0 && Instant::now() < end {
                accept(best, next, fails);
            }
        }
        if n < 8 && best.regs.x87.st[n] != (0, 0) {
            next = *best;
            next.regs.x87.st[n] = (0, 0);
            accept(best, next, fails);
        }
    }
}
