//! Where translated code finds things, as byte offsets from the pinned CPU state pointer.

use sevlab_cpu::CpuState;
use std::mem::offset_of;

const fn engine_word(n: usize) -> i32 {
    (offset_of!(CpuState, engine) + n * 8) as i32
}

/// Exit slots: an array of code addresses.
pub const SLOTS: i32 = engine_word(0);
/// The jump cache: [`JUMP_CACHE_ENTRIES`] pairs of {guest address, code address}.
pub const JUMP_CACHE: i32 = engine_word(1);
/// What a helper returns.
pub const RET: i32 = engine_word(2);
/// Second result of a helper.
pub const RET2: i32 = engine_word(3);
/// Helper: find the host address of a load, or 0.
pub const H_LOAD: i32 = engine_word(4);
/// Helper: find the host address for a read-modify-write, or 0.
pub const H_RMW: i32 = engine_word(5);
/// Helper: store a value of up to 8 bytes; 0 if the interpreter must do it.
pub const H_STORE: i32 = engine_word(6);
/// Helper: store 16 bytes out of the scratch space; 0 if the interpreter must do it.
pub const H_STORE16: i32 = engine_word(7);
/// Helper: run an instruction of the [`STEPS`] table in the interpreter; 0 if translated code must be left.
pub const H_STEP: i32 = engine_word(8);
/// Helper: the six flags of a stored record.
pub const H_FLAGS: i32 = engine_word(9);
/// Helper: 128 by 64 bit division.
pub const H_DIV: i32 = engine_word(10);
/// Helper: PDEP and PEXT.
pub const H_PDEP: i32 = engine_word(11);

/// Helper: run one native thunk; 0 if it must be left to the interpreter.
pub const H_THUNK: i32 = engine_word(12);
/// The table of instructions that the two helpers above run, by number.
pub const STEPS: i32 = engine_word(13);

/// Line-mode helpers. These take the position, too: the clock and the tally before the instruction. Loads.
pub const H_LINE_LOAD: i32 = engine_word(14);
/// Read-modify-writes.
pub const H_LINE_RMW: i32 = engine_word(15);
/// Stores of up to 8 bytes.
pub const H_LINE_STORE: i32 = engine_word(16);
/// Stores of 16 or 32 bytes out of the scratch space.
pub const H_LINE_STORE_WIDE: i32 = engine_word(17);
/// Fetches.
pub const H_LINE_FETCH: i32 = engine_word(18);
/// Thunks.
pub const H_LINE_THUNK: i32 = engine_word(19);
/// As [`H_STEP`], where the state has the position; it is told how many instructions come before the next poll.
pub const H_LINE_STEP: i32 = engine_word(20);

/// Entry of the region that was left with [`exit::SPLIT`] or [`exit::UNSEEN`].
pub const LEFT_REGION: i32 = engine_word(21);

/// Base of the view, which is also its size, where accesses need no probe.
pub const VIEW: i32 = engine_word(22);
/// The table of sites of accesses that may fault.
pub const SITES: i32 = engine_word(23);
/// The host address of an access that has faulted.
pub const FAULT_AT: i32 = engine_word(24);
/// What kind of access that was.
pub const FAULT_HOW: i32 = engine_word(25);
/// Instructions retired since the region was entered, as of some place that the site of an access knows.
pub const COUNT: i32 = engine_word(26);

/// What leaves copied code ([`crate::direct`]).
pub const LEAVE: i32 = engine_word(27);
/// Where it keeps a register of the host's for some instructions.
pub const KEPT: i32 = engine_word(28);
/// Not 0: the host has AVX, so vector registers have high halves.
pub const AVX: i32 = engine_word(29);

/// For copies where caches are simulated: helper of an access that the filter does not pass.
pub const H_COPY_ACCESS: i32 = engine_word(30);
/// And of a fetch.
pub const H_COPY_FETCH: i32 = engine_word(31);
/// The table of what these have to know.
pub const ACCESSES: i32 = engine_word(32);
/// The six flags between copies there, as LAHF and SETO give them.
pub const FLAGS: i32 = engine_word(33);
/// The clock plus 1, where such a copy is entered.
pub const STAMP: i32 = engine_word(34);
/// Its code.
pub const START: i32 = engine_word(35);
/// Not 0: high halves of vector registers are in use.
pub const HIGHS: i32 = engine_word(36);

/// What the short way of accesses and fetches goes by, or 0: there is none.
pub const SHORT: i32 = engine_word(37);

/// How [`H_LOAD`] and [`H_RMW`] find an address: a copy of bytes that are to be written will do.
pub const COPY: u64 = 1;
/// The bytes must lie in one page, and no copy will do.
pub const WHOLE: u64 = 2;
/// Host addresses found before must still be good behind the helper; it answers 0 if they may not be.
pub const HELD: u64 = 4;

/// For [`H_LOAD`]: 0 unless the fast TLB now lets writes pass, too.
pub const WRITABLE: u64 = 8;

/// Index of an engine word from its offset.
pub const fn word(offset: i32) -> usize {
    (offset as usize - offset_of!(CpuState, engine)) / 8
}

/// Entries of the jump cache.
pub const JUMP_CACHE_ENTRIES: usize = 16384;

/// Return values of translated code other than a slot number.
pub mod exit {
    /// An indirect jump whose target is in RIP.
    pub const INDIRECT: i64 = -1;
    /// RIP is at an instruction that the interpreter must run (it faults, or touches code).
    pub const INTERPRET: i64 = -2;
    /// `exit_request` was set, or a helper left: RIP is where to go on.
    pub const LEAVE: i64 = -3;
    /// The turn may end before the next poll: the interpreter is to finish it.
    pub const TURN: i64 = -4;
    /// As `INTERPRET`: accesses that were to share a probe have no common host address.
    pub const SPLIT: i64 = -5;
    /// As `INTERPRET`: an access without a probe is to a page that is not in the view.
    pub const UNSEEN: i64 = -6;
}

/// Offset of a general register.
pub const fn gpr(r: usize) -> i32 {
    (offset_of!(CpuState, gpr) + r * 8) as i32
}
/// Offset of the low 128 bits of a vector register.
pub const fn xmm(r: usize) -> i32 {
    (offset_of!(CpuState, xmm) + r * 16) as i32
}
/// Offset of the high 128 bits of a vector register.
pub const fn ymmh(r: usize) -> i32 {
    (offset_of!(CpuState, ymmh) + r * 16) as i32
}
/// Offset of a segment base.
pub const fn seg_base(s: usize) -> i32 {
    (offset_of!(CpuState, seg)
        + s * size_of::<sevlab_cpu::state::Segment>()
        + offset_of!(sevlab_cpu::state::Segment, base)) as i32
}
/// Offset of RIP.
pub const RIP: i32 = offset_of!(CpuState, rip) as i32;
/// Offset of the stored flag record: op, a, b, r.
pub const CC: i32 = offset_of!(CpuState, cc) as i32;
/// Offset of the other RFLAGS bits.
pub const RFLAGS: i32 = offset_of!(CpuState, rflags) as i32;
/// Offset of the fast TLB's base.
pub const TLB: i32 = offset_of!(CpuState, tlb) as i32;
/// Offset of the exit request word.
pub const EXIT_REQUEST: i32 = offset_of!(CpuState, exit_request) as i32;
/// Offset of the retired instruction count.
pub const RETIRED: i32 = offset_of!(CpuState, retired) as i32;
/// Offset of the budget of a turn.
pub const BUDGET: i32 = offset_of!(CpuState, budget) as i32;
/// Under a machine model: offset of the line fetched last (its address shifted right by 6).
pub const FETCH_LINE: i32 = offset_of!(CpuState, fetch_line) as i32;
/// Under a machine model: offset of the count of iterations that did not complete their instruction.
pub const REPEATS: i32 = offset_of!(CpuState, repeats) as i32;
/// Under a machine model: offset of the packed counts of completed instructions.
pub const TALLY: i32 = offset_of!(CpuState, tally) as i32;
/// Under a machine model: offset of the count of fetched lines.
pub const FETCHED: i32 = offset_of!(CpuState, fetched) as i32;
/// Under a machine model: offset of the clock at which the turn ends.
pub const STOP_AT: i32 = offset_of!(CpuState, stop_at) as i32;
/// Under a machine model: offset of the base of the filter of data lines.
pub const LINES: i32 = offset_of!(CpuState, lines) as i32;
/// Under a machine model: offset of the base of the filter of instruction lines.
pub const FETCHES: i32 = offset_of!(CpuState, fetches) as i32;
/// Under a machine model whose misses overlap: offset of the pointer to the trail's next place.
pub const TRAIL: i32 = offset_of!(CpuState, trail) as i32;
/// Offset of the scratch space.
pub const SCRATCH: i32 = offset_of!(CpuState, scratch) as i32;
/// Sixteen bytes of the scratch space that nobody reads.
pub const DISCARD: i32 = SCRATCH + 496;
