//! What lies behind a copy's own code: what filters do not pass, exits that are not linked, ways out, and words.

use super::access::Address;
use super::sums::bring_flags;
use super::{Copier, JMP, JNZ, JZ, Position, SHIFT, line};
use crate::direct::asm::At;
use crate::direct::{A, Left, S};
use crate::layout;

/// What is behind a copy's own code.
pub(super) enum Tail {
    /// An access that the filter does not pass.
    Access {
        jump: u32,
        address: Address,
        number: u32,
        way: Way,
        /// The instruction reads flags.
        flags: bool,
        bytes: Vec<u8>,
        back: u32,
    },
    /// A fetch that the filter does not pass.
    Fetch {
        jump: u32,
        line: u64,
        number: u32,
        way: Way,
        back: u32,
    },
    /// A way out in the middle.
    Side {
        jump: u32,
        position: Position,
        to: u64,
        kept: u64,
    },
    /// An exit that is not linked.
    Exit {
        jump: u32,
        to: u64,
        line: u64,
        kept: u64,
    },
    /// A target that is not in the table, or whose line has been fetched last.
    Miss {
        jumps: [u32; 2],
        k: usize,
        position: Position,
        way: Way,
    },
}

/// A way out at an instruction, of which nothing is done.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Way {
    pub(super) rip: u64,
    pub(super) position: Position,
    pub(super) kept: u64,
    pub(super) why: Left,
}

impl Copier<'_> {
    /// The number of a way out.
    pub(super) fn way(&mut self, way: Way) -> usize {
        let known = self.ways.iter().position(|w| *w == way);
        known.unwrap_or_else(|| {
            self.ways.push(way);
            self.ways.len() - 1
        })
    }

    /// From here on a fault goes there.
    pub(super) fn faults(&mut self, way: Way) {
        let way = self.way(way);
        self.faulting.push((self.w.asm.here(), Some(way)));
    }

    /// From here on nothing faults.
    pub(super) fn safe(&mut self) {
        self.faulting.push((self.w.asm.here(), None));
    }

    /// The way out at instruction `k`; whoever may take it has counted the instructions before that ([`Copier::advance`]).
    pub(super) fn way_at(&self, k: usize, position: Position) -> Way {
        Way {
            rip: self.w.insns[k].rip,
            position: Position {
                clock: 0,
                ..position
            },
            kept: self.w.kept,
            why: Left::Out(0),
        }
    }

    /// The distance to a word behind the code.
    pub(super) fn word(&mut self, value: u64) {
        self.pool.push((self.w.asm.here(), value));
        self.w.asm.bytes(&[0; 4]);
    }

    pub(super) fn leave(&mut self, why: Left, kept: u64, at: u64, fetched: u64) {
        let asm = &mut self.w.asm;
        asm.constant(S, fetched);
        asm.store(At::state(layout::FETCH_LINE), S);
        asm.constant(A, at);
        self.w.leave(why, kept);
    }

    pub(super) fn unlinked(&mut self, jump: u32, to: u64, line: u64, kept: u64) {
        let why = self.w.number_exit(jump, to, line);
        self.leave(why, kept, to, line);
    }

    pub(super) fn jump_to_way(&mut self, op: &[u8], way: Way) {
        let jump = self.w.asm.jump(op);
        let way = self.way(way);
        self.way_jumps.push((jump, way));
    }

    pub(super) fn tail(&mut self, tail: Tail) {
        match tail {
            Tail::Access {
                jump,
                address,
                number,
                way,
                flags,
                bytes,
                back,
            } => {
                let asm = &mut self.w.asm;
                asm.aim(jump);
                address.into_a(asm);
                asm.constant(S, number.into());
                asm.mem(&[0xff], 2, At::state(layout::H_COPY_ACCESS), false);
                self.jump_to_way(&JZ, way);
                if flags {
                    bring_flags(&mut self.w.asm);
                }
                self.faults(way);
                self.w.asm.bytes(&bytes);
                self.safe();
                let jump = self.w.asm.jump(&JMP);
                self.w.asm.aim_back(jump, back);
            }
            Tail::Fetch {
                jump,
                line,
                number,
                way,
                back,
            } => {
                let asm = &mut self.w.asm;
                asm.aim(jump);
                asm.constant(A, line << SHIFT);
                asm.constant(S, number.into());
                asm.mem(&[0xff], 2, At::state(layout::H_COPY_FETCH), false);
                self.jump_to_way(&JZ, way);
                let jump = self.w.asm.jump(&JMP);
                self.w.asm.aim_back(jump, back);
            }
            Tail::Side {
                jump,
                position,
                to,
                kept,
            } => {
                self.w.asm.aim(jump);
                self.settle(position);
                if to == self.w.head() {
                    self.begin_again(&JMP, position.line);
                } else {
                    self.w.give();
                    let jump = self.w.asm.jump(&JMP);
                    self.unlinked(jump, to, position.line, kept);
                }
            }
            Tail::Exit {
                jump,
                to,
                line,
                kept,
            } => self.unlinked(jump, to, line, kept),
            Tail::Miss {
                jumps,
                k,
                position,
                way,
            } => {
                jumps.into_iter().for_each(|jump| self.w.asm.aim(jump));
                let asm = &mut self.w.asm;
                // The interpreter knows what is wrong with a target that is not the guest's to have.
                asm.copy(S, A);
                asm.shift(5, S, 47);
                self.jump_to_way(&JNZ, way);
                self.settle(position);
                // It was encoded before.
                let _ = self.move_stack(&self.w.insns[k]);
                self.w.give();
                let asm = &mut self.w.asm;
                asm.constant(S, position.line);
                asm.store(At::state(layout::FETCH_LINE), S);
                self.w.leave(Left::Indirect, way.kept);
            }
        }
    }

    /// Where it begins without a fetch.
    pub(super) fn enter_same(&mut self) {
        self.w.out.same = self.w.asm.here();
        self.w.take();
        for jump in std::mem::take(&mut self.again_same) {
            self.w.asm.aim(jump);
        }
        self.poll(line(self.w.head()));
        let jump = self.w.asm.jump(&JMP);
        self.w.asm.aim_back(jump, self.body);
    }

    pub(super) fn ways_out(&mut self) {
        let mut at = Vec::new();
        for n in 0..self.ways.len() {
            let way = self.ways[n];
            at.push(self.w.asm.here());
            for &(jump, to) in &self.way_jumps {
                if to == n {
                    self.w.asm.aim(jump);
                }
            }
            self.settle(way.position);
            self.w.give();
            self.leave(way.why, way.kept, way.rip, way.position.line);
        }
        for &(begins, way) in &self.faulting {
            let out = way.map_or(u32::MAX, |n| at[n]);
            self.w.out.sites.push((begins, out));
        }
        self.w.out.sites.sort_by_key(|s| s.0);
    }

    pub(super) fn place_words(&mut self) {
        while !self.w.asm.here().is_multiple_of(8) {
            self.w.asm.bytes(&[0xcc]);
        }
        let mut placed: Vec<(u64, u32)> = Vec::new();
        for (at, value) in std::mem::take(&mut self.pool) {
            let known = placed.iter().find(|p| p.0 == value).map(|p| p.1);
            let here = known.unwrap_or_else(|| {
                let here = self.w.asm.here();
                placed.push((value, here));
                self.w.asm.bytes(&value.to_le_bytes());
                here
            });
            self.w.asm.aim_back(at, here);
        }
    }
}
