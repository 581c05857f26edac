//! What a copy counts, where the flags are, and the fetches of its lines.

use super::access::plain;
use super::behind::{Tail, Way};
use super::{Access, Copier, JNZ, Position, RAX, SHIFT, last_line, line};
use crate::direct::asm::{Asm, At};
use crate::direct::{A, P, S};
use crate::layout;
use sevlab_memctl::FetchFilter;

impl Copier<'_> {
    /// The flags are in the state's word, too.
    pub(super) fn keep_flags(&mut self) {
        if !self.in_state {
            self.in_state = true;
            let asm = &mut self.w.asm;
            asm.copy(P, RAX);
            // LAHF, SETO al
            asm.bytes(&[0x9f, 0x0f, 0x90, 0xc0]);
            asm.mem(&[0x89], RAX, At::state(layout::FLAGS), false);
            asm.copy(RAX, P);
        }
    }

    /// What comes next changes the host's flags.
    pub(super) fn lose_flags(&mut self) {
        self.keep_flags();
        self.in_host = false;
    }

    /// The flags are the host's.
    pub(super) fn need_flags(&mut self) {
        if !self.in_host {
            self.in_host = true;
            bring_flags(&mut self.w.asm);
        }
    }

    /// An instruction has changed flags.
    pub(super) fn flags_changed(&mut self) {
        (self.in_host, self.in_state) = (true, false);
    }

    /// Adds a number to MMX register `r`; the first five are in MMX registers themselves.
    pub(super) fn count(&mut self, r: u8, n: usize) {
        match n {
            1..=5 => self.w.asm.between(&[0x0f, 0xd4], r, 2 + n as u8, false),
            n => self.w.count(r, n),
        }
    }

    /// MM0 counts the instructions before `k`.
    pub(super) fn advance(&mut self, k: usize) {
        let more = k - self.clock;
        self.count(0, more);
        self.clock = k;
    }

    /// What the sums lack before instruction `k`, no line of which has been fetched.
    pub(super) fn position(&self, k: usize) -> Position {
        Position {
            clock: k - self.clock,
            tally: self.tally,
            fetched: self.fetched,
            line: self.line,
        }
    }

    /// Makes the sums complete.
    pub(super) fn settle(&mut self, p: Position) {
        self.count(0, p.clock);
        if p.tally != 0 {
            self.w.asm.bytes(&[0x0f, 0xd4, 0x0d]);
            self.word(p.tally);
        }
        self.count(2, p.fetched as usize);
    }

    /// What is done before the copy is left behind the current instruction, but for registers.
    pub(super) fn settle_behind(&mut self) {
        let k = self.w.done;
        self.tally = self.tally.wrapping_add(self.tallies[k]);
        let p = self.position(k + 1);
        self.settle(p);
        (self.clock, self.tally, self.fetched) = (k + 1, 0, 0);
    }

    /// Fetches a line for instruction `k`.
    pub(super) fn fetch(&mut self, which: u64, k: usize) {
        self.advance(k);
        let way = self.way_at(k, self.position(k));
        self.lose_flags();
        let at = self.filters.fetches + (which as usize % FetchFilter::ENTRIES * 8) as i32;
        // What the filter has no room for matches nothing.
        let high = (which << SHIFT) >> FetchFilter::HIGH;
        let high = high.min(u64::from(u32::MAX)) as u32;
        let asm = &mut self.w.asm;
        asm.mem(&[0x81], 7, At::absolute(at + 4), false);
        asm.bytes(&high.to_le_bytes());
        let jump = asm.jump(&JNZ);
        asm.mem(&[0x0f, 0xb7], S, At::absolute(at), false);
        let stamps = self.filters.fetches + FetchFilter::STAMP as i32;
        asm.mem(&[0x0f, 0x7f], 0, At::entry(stamps, S), false);
        let back = asm.here();
        let number = self.accesses.number(Access {
            tally: self.tally,
            fetched: self.fetched,
            ..plain(1)
        });
        self.tails.push(Tail::Fetch {
            jump,
            line: which,
            number,
            way,
            back,
        });
        self.line = which;
        self.fetched += 1;
    }

    /// Fetches what of the instruction's lines was not fetched last. The way out at it, whose second line counts as not fetched.
    pub(super) fn fetch_insn(&mut self) -> Way {
        let k = self.w.done;
        let i = &self.w.insns[k];
        if self.line != line(i.rip) {
            self.fetch(line(i.rip), k);
        }
        let position = self.position(k);
        if last_line(i) != line(i.rip) {
            self.fetch(last_line(i), k);
        }
        self.way_at(k, position)
    }
}

/// The flags in the state's word become the host's.
pub(super) fn bring_flags(asm: &mut Asm) {
    asm.copy(A, RAX);
    asm.mem(&[0x8b], RAX, At::state(layout::FLAGS), false);
    // ADD al, 127: OF if al is 1; SAHF
    asm.bytes(&[0x04, 0x7f, 0x9e]);
    asm.copy(RAX, A);
}

/// What LAHF and SETO give, of the six flags.
pub(crate) fn flags_word(flags: u64) -> u64 {
    const OF: u32 = 11;
    (flags & 0xd5) << 8 | flags >> OF & 1
}
