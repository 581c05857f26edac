//! Ways out of a region.

use super::{Home, Lower, state_flags};
use crate::layout::{self, exit};
use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::{Block as ClifBlock, InstBuilder, Value, types};
use sevlab_cpu::FlagOp;
use sevlab_cpu::insn::{Op, Operand, Rep};
use sevlab_cpu::state::gpr::RSP;

impl Lower<'_, '_> {
    /// Writes back everything stale, and the retired count, at the current point.
    fn write_back(&mut self) {
        let p = self.pinned();
        self.write_back_registers(p);
        self.store_retired(p);
    }

    /// Adds what has been retired since the region was entered to the state's count.
    fn store_retired(&mut self, p: Value) {
        if self.lines.is_some() {
            return self.store_position(p);
        }
        let count = self.retired_so_far();
        if self.constant(count) == Some(0) {
            return;
        }
        let old = self
            .fb
            .ins()
            .load(types::I64, state_flags(), p, layout::RETIRED);
        let new = self.fb.ins().iadd(old, count);
        self.fb.ins().store(state_flags(), new, p, layout::RETIRED);
    }

    /// Stores the flags' record.
    pub(super) fn store_flags(&mut self, p: Value) {
        let record = self.flags_record(sevlab_cpu::flags::ARITH);
        let (a, b) = match self.constant(record[0]) {
            Some(op) if self.options.dead_flags => FlagOp::from_bits(op as u8).reads(),
            _ => (true, true),
        };
        for (k, (v, read)) in record.into_iter().zip([true, a, b, true]).enumerate() {
            if read {
                self.fb
                    .ins()
                    .store(state_flags(), v, p, layout::CC + 8 * k as i32);
            }
        }
    }

    /// Writes back the stale registers and flags; nothing changes in what the block knows of them.
    pub(super) fn write_back_registers(&mut self, p: Value) {
        self.write_back_gprs_and_vectors(p);
        if self.flags.dirty() {
            self.store_flags(p);
        }
    }

    fn write_back_gprs_and_vectors(&mut self, p: Value) {
        for r in 0..16 {
            if self.dirty_gprs >> r & 1 != 0 && self.gprs[r].full != Home::Memory {
                let v = self.gpr_full(r as u8);
                self.fb.ins().store(state_flags(), v, p, layout::gpr(r));
            }
            if self.dirty_vecs >> r & 1 != 0 && self.vecs[r].low != Home::Memory {
                let v = self.vec_low(r);
                self.fb.ins().store(state_flags(), v, p, layout::xmm(r));
            }
            if self.dirty_highs >> r & 1 != 0 && self.vecs[r].high != Home::Memory {
                let v = self.vec_high(r);
                self.fb.ins().store(state_flags(), v, p, layout::ymmh(r));
            }
        }
    }

    /// Before something that may leave: in an eager region everything stale is stored here, once, and not on each way
    /// out. Flags stay records; a way out stores them.
    pub(super) fn sync(&mut self) {
        if !self.eager || (self.dirty_gprs | self.dirty_vecs | self.dirty_highs) == 0 {
            return;
        }
        let p = self.pinned();
        self.write_back_gprs_and_vectors(p);
        (self.dirty_gprs, self.dirty_vecs, self.dirty_highs) = (0, 0, 0);
    }

    fn store_rip(&mut self, rip: u64) {
        let p = self.pinned();
        let v = self.iconst(types::I64, rip);
        self.fb.ins().store(state_flags(), v, p, layout::RIP);
    }

    pub(super) fn ret(&mut self, code: i64) {
        let v = self.iconst(types::I64, code as u64);
        self.fb.ins().return_(&[v]);
    }

    /// Leaves at the current instruction, which the interpreter is to run. Ends the CLIF block.
    pub(super) fn leave_here(&mut self) {
        self.leave_with(exit::INTERPRET);
    }

    fn leave_with(&mut self, code: i64) {
        self.write_back();
        self.store_rip(self.insn.rip);
        self.ret(code);
    }

    /// A cold block for a way out, to branch to and then to fill with [`Self::leave_in`]: a block is filled only
    /// once the one before it has ended.
    pub(super) fn leave_block(&mut self) -> ClifBlock {
        let b = self.fb.create_block();
        self.fb.set_cold_block(b);
        b
    }

    /// Fills `b`, which leaves at the current instruction. The block before has ended; the caller goes on in another.
    pub(super) fn leave_in(&mut self, b: ClifBlock) {
        self.fill_way_out(b, Self::leave_here);
    }

    /// As [`Self::leave_in`], because a range of accesses has not one host address.
    pub(super) fn leave_split_in(&mut self, b: ClifBlock) {
        self.fill_way_out(b, |l| {
            let p = l.pinned();
            let entry = l.iconst(types::I64, l.region.entry());
            l.fb.ins()
                .store(state_flags(), entry, p, layout::LEFT_REGION);
            l.leave_with(exit::SPLIT);
        });
    }

    /// Goes on in a block to which nothing leads that has not been emitted.
    pub(super) fn enter_block(&mut self, b: ClifBlock) {
        self.fb.switch_to_block(b);
        self.fb.seal_block(b);
    }

    /// Fills `b` by `leave`, which ends it.
    pub(super) fn fill_way_out(&mut self, b: ClifBlock, leave: impl FnOnce(&mut Self)) {
        self.enter_block(b);
        let (gprs, vecs, flags) = (self.gprs, self.vecs, self.flags.clone());
        leave(self);
        // Values made in the cold block do not dominate what follows.
        (self.gprs, self.vecs, self.flags) = (gprs, vecs, flags);
    }

    /// Leaves at the current instruction if `c` (an I8) is not zero.
    pub(super) fn leave_if(&mut self, c: Value) {
        self.sync();
        let leave = self.leave_block();
        let go = self.fb.create_block();
        self.fb.ins().brif(c, leave, &[], go, &[]);
        self.leave_in(leave);
        self.enter_block(go);
    }

    /// Leaves if somebody asked for it; nothing of the block has run.
    pub(super) fn poll_exit_request(&mut self) {
        let p = self.pinned();
        let v = self
            .fb
            .ins()
            .load(types::I32, state_flags(), p, layout::EXIT_REQUEST);
        let v = if self.options.budget {
            let left = self
                .fb
                .ins()
                .load(types::I64, state_flags(), p, layout::BUDGET);
            let left = self.fb.ins().iadd_imm_s(left, -1);
            self.fb.ins().store(state_flags(), left, p, layout::BUDGET);
            let out = self.fb.ins().ushr_imm_u(left, 63);
            let out = self.fb.ins().ireduce(types::I32, out);
            self.fb.ins().bor(v, out)
        } else {
            v
        };
        self.poll_leave(v, exit::LEAVE);
    }

    /// Leaves at the current instruction, for a poll, if `v` is not zero.
    pub(super) fn poll_leave(&mut self, v: Value, code: i64) {
        let leave = self.leave_block();
        let go = self.fb.create_block();
        self.fb.ins().brif(v, leave, &[], go, &[]);
        self.fill_way_out(leave, |l| {
            if l.done == 0 && l.live_in[l.at] == 0 {
                // Nobody reads the flags from here on: carrying their record round a loop would only be for this.
                l.flags.written_back();
            }
            l.leave_with(code);
        });
        self.enter_block(go);
    }

    /// Leaves for the guest address `target` through a new exit slot. Ends the CLIF block.
    pub(super) fn exit_to(&mut self, target: u64) {
        self.write_back();
        let slot = self.slot_base + self.exits.targets.len() as u32;
        self.exits.targets.push(target);
        let number = self.iconst(types::I64, u64::from(slot));
        if self.options.chaining {
            let p = self.pinned();
            let slots = self
                .fb
                .ins()
                .load(types::I64, state_flags(), p, layout::SLOTS);
            let code = self
                .fb
                .ins()
                .load(types::I64, state_flags(), slots, (slot * 8) as i32);
            self.fb
                .ins()
                .return_call_indirect(self.sig_region, code, &[number]);
        } else {
            self.fb.ins().return_(&[number]);
        }
    }

    /// Leaves for a computed guest address. Ends the CLIF block.
    pub(super) fn exit_indirect(&mut self, target: Value) {
        self.write_back();
        let p = self.pinned();
        if self.options.jump_cache {
            let cache = self
                .fb
                .ins()
                .load(types::I64, state_flags(), p, layout::JUMP_CACHE);
            // Entry = {address, code}, 16 bytes, indexed by the address's low bits: (va & mask) * 16.
            let mask = self.iconst(types::I64, layout::JUMP_CACHE_ENTRIES as u64 - 1);
            let index = self.fb.ins().band(target, mask);
            let four = self.iconst(types::I64, 4);
            let offset = self.fb.ins().ishl(index, four);
            let entry = self.fb.ins().iadd(cache, offset);
            let tag = self.fb.ins().load(types::I64, state_flags(), entry, 0);
            let hit = self.fb.ins().icmp(IntCC::Equal, tag, target);
            let (go, miss) = (self.fb.create_block(), self.fb.create_block());
            self.fb.set_cold_block(miss);
            self.fb.ins().brif(hit, go, &[], miss, &[]);
            self.enter_block(go);
            let code = self.fb.ins().load(types::I64, state_flags(), entry, 8);
            self.fb
                .ins()
                .return_call_indirect(self.sig_region, code, &[target]);
            self.enter_block(miss);
        }
        if matches!(self.insn.op, Op::JmpInd | Op::Ret) {
            let bad = self.not_canonical(target);
            let (undo, go) = (self.fb.create_block(), self.fb.create_block());
            self.fb.set_cold_block(undo);
            self.fb.ins().brif(bad, undo, &[], go, &[]);
            self.enter_block(undo);
            self.undo_branch();
            self.enter_block(go);
        }
        let p = self.pinned();
        self.fb.ins().store(state_flags(), target, p, layout::RIP);
        self.ret(exit::INDIRECT);
    }

    /// Whether an address is not canonical, as an I8.
    pub(super) fn not_canonical(&mut self, va: Value) -> Value {
        let sixteen = self.iconst(types::I64, 16);
        let up = self.fb.ins().ishl(va, sixteen);
        let back = self.fb.ins().sshr(up, sixteen);
        self.fb.ins().icmp(IntCC::NotEqual, back, va)
    }

    /// Leaves at the JMP or RET that has just run, as if it had not. Ends the CLIF block.
    fn undo_branch(&mut self) {
        let p = self.pinned();
        if self.insn.op == Op::Ret {
            let extra = match self.insn.ops[0] {
                Operand::Imm(n) => n & 0xffff,
                _ => 0,
            };
            let at = layout::gpr(usize::from(RSP));
            let sp = self.fb.ins().load(types::I64, state_flags(), p, at);
            let sp = self.fb.ins().iadd_imm_s(sp, -(8 + extra));
            self.fb.ins().store(state_flags(), sp, p, at);
        }
        let at = layout::RETIRED;
        let n = self.fb.ins().load(types::I64, state_flags(), p, at);
        let n = self.fb.ins().iadd_imm_s(n, -1);
        self.fb.ins().store(state_flags(), n, p, at);
        self.undo_position(p);
        self.store_rip(self.insn.rip);
        self.ret(exit::INTERPRET);
    }

    /// The number by which a helper knows the current instruction.
    fn step_number(&mut self) -> Value {
        let n = self.step_base + self.exits.steps.len() as u32;
        self.exits.steps.push(self.insn);
        self.iconst(types::I64, u64::from(n))
    }

    /// Runs the current instruction in the interpreter without leaving the region: everything stale goes to memory
    /// first, what the instruction may write is read back from there when next used.
    pub(super) fn step_out(&mut self, writes: super::vector::Uses) {
        self.end_site();
        let p = self.pinned();
        self.write_back_registers(p);
        self.flags.written_back();
        if self.eager || self.view.is_some() {
            self.know_written_back();
            (self.dirty_gprs, self.dirty_vecs, self.dirty_highs) = (0, 0, 0);
        }
        if self.lines.is_some() {
            return self.step_lines(writes);
        }
        let n = self.step_number();
        let zero = self.iconst(types::I64, 0);
        self.call_helper(layout::H_STEP, [n, zero, zero]);
        let p = self.pinned();
        let ok = self
            .fb
            .ins()
            .load(types::I64, state_flags(), p, layout::RET);
        // All is in memory, so this way out has only the count to add.
        let (leave, go) = (self.fb.create_block(), self.fb.create_block());
        self.fb.set_cold_block(leave);
        self.fb.ins().brif(ok, go, &[], leave, &[]);
        self.enter_block(leave);
        let p = self.pinned();
        self.store_retired(p);
        self.ret(exit::LEAVE);
        self.enter_block(go);
        self.now_in_memory(writes);
    }

    /// The rest of [`Self::step_out`] in line mode. The interpreter counts what it runs.
    fn step_lines(&mut self, writes: super::vector::Uses) {
        let p = self.pinned();
        self.hand_over_position(p);
        let before = (self.insn.rep != Rep::None).then(|| {
            self.fb
                .ins()
                .load(types::I64, state_flags(), p, layout::REPEATS)
        });
        let n = self.step_number();
        let ahead = self.iconst(types::I64, u64::from(self.still_ahead()));
        self.call_helper(layout::H_LINE_STEP, [n, ahead, ahead]);
        let p = self.pinned();
        let ok = self
            .fb
            .ins()
            .load(types::I64, state_flags(), p, layout::RET);
        let (leave, go) = (self.fb.create_block(), self.fb.create_block());
        self.fb.set_cold_block(leave);
        self.fb.ins().brif(ok, go, &[], leave, &[]);
        self.enter_block(leave);
        self.ret(exit::LEAVE);
        self.enter_block(go);
        if let Some(before) = before {
            let p = self.pinned();
            self.add_repeats(p, before);
        }
        self.counted = true;
        self.now_in_memory(writes);
    }

    /// Runs the current instruction as a native thunk: only the registers it reads go to memory first. If it can't
    /// complete (a fault, a store into code) the region is left as if it had not been tried.
    pub(super) fn thunk_out(&mut self, uses: super::vector::Uses) {
        self.end_site();
        self.sync();
        let p = self.pinned();
        for r in 0..16 {
            if (uses.gprs & self.dirty_gprs) >> r & 1 != 0 && self.gprs[r].full != Home::Memory {
                let v = self.gpr_full(r as u8);
                self.fb.ins().store(state_flags(), v, p, layout::gpr(r));
                self.know_slot(r, v);
            }
            if (uses.vecs & self.dirty_vecs) >> r & 1 != 0 && self.vecs[r].low != Home::Memory {
                let v = self.vec_low(r);
                self.fb.ins().store(state_flags(), v, p, layout::xmm(r));
            }
            if (uses.highs & self.dirty_highs) >> r & 1 != 0 && self.vecs[r].high != Home::Memory {
                let v = self.vec_high(r);
                self.fb.ins().store(state_flags(), v, p, layout::ymmh(r));
            }
        }
        if (uses.flags || uses.reads_flags) && self.flags.dirty() {
            self.store_flags(p);
            self.flags.written_back();
            self.forget_stored_flags();
        }
        let n = self.step_number();
        let zero = self.iconst(types::I64, 0);
        let ok = if self.lines.is_some() {
            self.call_line_helper(layout::H_LINE_THUNK, [n, zero, zero])
        } else {
            self.call_helper(layout::H_THUNK, [n, zero, zero]);
            let p = self.pinned();
            self.fb
                .ins()
                .load(types::I64, state_flags(), p, layout::RET)
        };
        // A gather that faults has registers in memory that say how far it got: they must stay.
        let partial = super::vector::is_gather(&self.insn);
        if partial {
            self.now_in_memory(uses);
        }
        let leave = self.leave_block();
        let go = self.fb.create_block();
        self.fb.ins().brif(ok, go, &[], leave, &[]);
        self.leave_unserved_in(leave);
        self.enter_block(go);
        if !partial {
            self.now_in_memory(uses);
        }
    }

    /// A helper has written these registers in state memory.
    fn now_in_memory(&mut self, writes: super::vector::Uses) {
        for r in 0..16 {
            if writes.gprs_out >> r & 1 != 0 {
                self.written.gprs |= 1 << r;
                self.forget_slot(r);
                self.gprs[r] = super::Gpr {
                    full: Home::Memory,
                    low: None,
                };
            }
            if writes.vecs_out >> r & 1 != 0 {
                self.written.vecs |= 1 << r;
                self.vecs[r].low = Home::Memory;
            }
            if writes.highs_out >> r & 1 != 0 {
                self.written.highs |= 1 << r;
                self.vecs[r].high = Home::Memory;
            }
        }
        if writes.flags {
            self.flags_from_memory();
        }
    }

    /// Calls a helper through its word in the state; it changes no host register.
    pub(super) fn call_helper(&mut self, which: i32, args: [Value; 3]) {
        if matches!(which, layout::H_STEP | layout::H_THUNK) {
            self.end_all_groups();
        }
        let p = self.pinned();
        let f = self.fb.ins().load(types::I64, state_flags(), p, which);
        self.fb.ins().call_indirect(self.sig_helper, f, &args);
    }
}
