#![allow(unsafe_code)] // AES straight on DRAM
//! AES on the 16-byte blocks that an access touches, straight on DRAM: [`CacheMode::None`](crate::CacheMode::None), and what
//! the firmware does. A block that is written in part is decrypted, changed and encrypted again.

use std::sync::atomic::Ordering::Relaxed;

use sevlab_arch::Spa;

use crate::cipher::{BLOCK, Engine};
use crate::dram::Dram;
use crate::stats::Counters;

/// Up to this much is decrypted at once beside the caller's buffer: an operand and its neighbours.
const SMALL: usize = 5 * BLOCK;

fn count(counters: &Counters, bytes: usize) {
    counters
        .aes_blocks
        .fetch_add((bytes / BLOCK) as u64, Relaxed);
}

fn decrypt(engine: &Engine, dram: &Dram, spa: u64, out: &mut [u8]) {
    let src = dram.raw.span(spa, out.len());
    debug_assert!(spa.is_multiple_of(BLOCK as u64) && out.len().is_multiple_of(BLOCK));
    // SAFETY: `span` checked the source; `out` is as long; whole blocks at a block's address.
    unsafe { engine.decrypt(spa, src.as_ptr(), out.as_mut_ptr(), out.len()) };
}

fn encrypt(engine: &Engine, dram: &Dram, spa: u64, data: &[u8]) {
    let dst = dram.raw.span(spa, data.len());
    debug_assert!(spa.is_multiple_of(BLOCK as u64) && data.len().is_multiple_of(BLOCK));
    dram.mark(spa >> 12);
    // SAFETY: `span` checked the destination; `data` is as long; whole blocks at a block's address.
    unsafe { engine.encrypt(spa, data.as_ptr(), dst.as_ptr(), data.len()) };
}

/// The touched blocks of `len` bytes at `a`: address of the first, bytes before `a` in it, bytes in all of them.
fn blocks(a: Spa, len: usize) -> (u64, usize, usize) {
    let skip = a.0 as usize % BLOCK;
    (
        a.0 - skip as u64,
        skip,
        (skip + len).next_multiple_of(BLOCK),
    )
}

/// Reads `out.len()` bytes at `a`, all in one page.
pub(crate) fn read(engine: &Engine, dram: &Dram, counters: &Counters, a: Spa, out: &mut [u8]) {
    let (first, skip, span) = blocks(a, out.len());
    if span <= SMALL {
        let mut tmp = [0; SMALL];
        decrypt(engine, dram, first, &mut tmp[..span]);
        out.copy_from_slice(&tmp[skip..skip + out.len()]);
        count(counters, span);
        return;
    }
    let head = (BLOCK - skip) % BLOCK;
    let (head, rest) = out.split_at_mut(head);
    let (body, tail) = rest.split_at_mut(rest.len() / BLOCK * BLOCK);
    let body_at = a.0 + head.len() as u64;
    let tail_at = body_at + body.len() as u64;
    if !head.is_empty() {
        read(engine, dram, counters, a, head);
    }
    decrypt(engine, dram, body_at, body);
    count(counters, body.len());
    if !tail.is_empty() {
        read(engine, dram, counters, Spa(tail_at), tail);
    }
}

/// Writes `data` at `a`, all in one page.
pub(crate) fn write(engine: &Engine, dram: &Dram, counters: &Counters, a: Spa, data: &[u8]) {
    let (first, skip, span) = blocks(a, data.len());
    if span <= SMALL {
        let mut tmp = [0; SMALL];
        if span != data.len() {
            // Only the first and the last block can be partial.
            decrypt(engine, dram, first, &mut tmp[..BLOCK]);
            count(counters, BLOCK);
            if span > BLOCK {
                let last = span - BLOCK;
                decrypt(engine, dram, first + last as u64, &mut tmp[last..span]);
                count(counters, BLOCK);
            }
        }
        tmp[skip..skip + data.len()].copy_from_slice(data);
        encrypt(engine, dram, first, &tmp[..span]);
        count(counters, span);
        return;
    }
    let head = (BLOCK - skip) % BLOCK;
    let (head, rest) = data.split_at(head);
    let (body, tail) = rest.split_at(rest.len() / BLOCK * BLOCK);
    let body_at = a.0 + head.len() as u64;
    let tail_at = body_at + body.len() as u64;
    if !head.is_empty() {
        write(engine, dram, counters, a, head);
    }
    encrypt(engine, dram, body_at, body);
    count(counters, body.len());
    if !tail.is_empty() {
        write(engine, dram, counters, Spa(tail_at), tail);
    }
}
