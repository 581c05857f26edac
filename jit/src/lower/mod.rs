//! From a region to CLIF.
//!
//! Invariants:
//! 1. Inside a guest block the current value of each register is in [`Lower::gprs`] / [`Lower::vecs`]; Cranelift
//!    variables are defined only at the end of a guest block, for the registers it wrote.
//! 2. `dirty` names the registers whose state-memory copy may be stale. Every way out of the region writes exactly
//!    those back. In a *lazy* region they are the registers written on some path from the entry; in an *eager* one
//!    ([`JitOptions::lazy_accesses`]) only those written since the last place that might have left.
//! 3. A way out taken at an instruction that has not completed (a *leave*) is built from the values before that
//!    instruction, because semantics do all that can fault before they write anything.
//! 4. Flags across blocks are one record in four variables ([`flags`]); `flags_dirty` says whether the state's own
//!    record may be stale.

mod exit;
mod flags;
mod flow;
mod groups;
mod int;
mod lines;
mod mem;
mod regs;
mod vector;
mod view;

use crate::faults::Site;
use crate::layout;
use crate::liveness;
use crate::region::Region;
use crate::{Error, JitOptions};
use cranelift_codegen::ir::{
    self, Block as ClifBlock, InstBuilder, MemFlagsData, Signature, Type, Value, types,
};
use cranelift_codegen::isa::{CallConv, TargetIsa};
use cranelift_frontend::{FunctionBuilder, FunctionBuilderContext, Variable};
use flags::FlagState;
use flow::{
    Dirty, back_edge_targets, counts_in, dirty_in, dirty_in_view, needed_in, read_behind,
    sole_predecessors, surely_read,
};
use groups::Born;
use mem::For;
use sevlab_cpu::insn::{Insn, Op};
use sevlab_cpu::{Builder, Flag, Width};

/// Sets of registers, a bit each.
#[derive(Clone, Copy, Default, PartialEq)]
struct Written {
    gprs: u16,
    vecs: u16,
    highs: u16,
}

/// Where a block's control goes, noted by the semantics and emitted at the end of the block.
#[derive(Clone, Copy)]
enum Term {
    Next,
    Jump(u64),
    Branch(Value, u64),
    Indirect(Value),
}

/// Where the current value of a register is.
#[derive(Clone, Copy, PartialEq)]
enum Home {
    /// In the block's incoming variable, not yet read.
    Var,
    /// In state memory, current (a helper wrote it).
    Memory,
    /// Here.
    Value(Value),
}

/// A general register's value in the current block.
#[derive(Clone, Copy)]
struct Gpr {
    full: Home,
    /// The low 32 bits as an I32, where the register was last written as one.
    low: Option<Value>,
}

/// A vector register's halves in the current block (I8X16).
#[derive(Clone, Copy)]
struct Vec2 {
    low: Home,
    high: Home,
    /// The halves hold results of floating-point operations that nothing has used yet: were they dropped, so would be
    /// the sticky flags that the operations raise.
    raises: (bool, bool),
}

/// What a translated region needs beside its code.
#[derive(Debug, Default, Clone)]
pub struct ExitTable {
    /// Guest address that each exit slot leads to; slot numbers in the code are relative to the region's first.
    pub targets: Vec<u64>,
    /// Instructions that the code has helpers run; their numbers are relative to the region's first, too.
    pub steps: Vec<Insn>,
    /// Where accesses may fault: source locations are numbers of these.
    pub sites: Vec<Site>,
}

/// One region's translation in progress.
pub(crate) struct Lower<'a, 'f> {
    fb: &'a mut FunctionBuilder<'f>,
    options: &'a JitOptions,
    region: &'a Region,
    live_in: Vec<u64>,
    blocks: Vec<ClifBlock>,
    gpr_var: [Variable; 16],
    vec_var: [Variable; 16],
    vech_var: [Variable; 16],
    cc_var: [Variable; 4],
    bit_var: [Variable; 6],
    count_var: Variable,
    /// Registers whose variables exist at a block's entry: used anywhere in the region.
    used_gprs: u16,
    used_vecs: u16,
    used_highs: u16,
    /// Registers whose value at a block's start somebody may read.
    needed: Vec<Written>,
    /// Flags that are carried to a block's start by themselves, too.
    wanted: Vec<u64>,
    /// Vector registers whose value at a block's start is computed with on every way through the region from there.
    surely_read: Vec<Written>,
    /// The current instruction has read a result that nothing had used before.
    read_raising: bool,
    /// The block being translated.
    at: usize,
    // per guest block
    gprs: [Gpr; 16],
    vecs: [Vec2; 16],
    dirty_gprs: u16,
    dirty_vecs: u16,
    dirty_highs: u16,
    /// Registers that the block has written so far: their variables are defined at its end.
    written: Written,
    flags: FlagState,
    count: Option<Value>,
    done: u32,
    insn: Insn,
    term: Term,
    rmw_host: Option<(Value, Value)>,
    /// Whoever ran the current instruction has counted it in the state's tally.
    counted: bool,
    // per region
    /// Where caches are simulated.
    lines: Option<lines::Lines<'a>>,
    /// Registers are stored as soon as something may leave, so that a way out is short. For regions with many
    /// accesses: their ways out would otherwise be most of the code.
    eager: bool,
    /// Where accesses need no probe.
    view: Option<view::View>,
    sole_predecessor: Vec<Option<usize>>,
    /// Where accesses off one base share a probe.
    outlook: Option<groups::Outlook>,
    groups: groups::Groups,
    /// What is known of such accesses at the end of the blocks lowered so far.
    groups_out: Vec<Vec<groups::Group>>,
    /// The flags at the end of the blocks lowered so far.
    flags_out: Vec<Option<FlagState>>,
    /// Instructions retired since the region was entered, at each block's start, where every way there has as many.
    counts: Vec<Option<u64>>,
    /// A block reads the record that the region was entered with.
    reads_record: bool,
    /// Address of an instruction that used a register which [`vector::uses`] did not name.
    undeclared: Option<u64>,
    /// The state pointer, in the CLIF block that it was read in.
    pinned_here: Option<(ClifBlock, Value)>,
    /// The fast TLB's base, or that of the filter of lines, where every access looks there.
    tlb: Option<Value>,
    slot_base: u32,
    step_base: u32,
    exits: ExitTable,
    sig_helper: ir::SigRef,
    sig_line: Option<ir::SigRef>,
    sig_region: ir::SigRef,
}

/// The signature of translated code: takes a slot number, returns an exit number.
pub(crate) fn region_signature() -> Signature {
    let mut s = Signature::new(CallConv::Tail);
    s.params.push(ir::AbiParam::new(types::I64));
    s.returns.push(ir::AbiParam::new(types::I64));
    s
}

/// The CLIF type of an integer width.
const fn ty(w: Width) -> Type {
    match w {
        Width::B1 => types::I8,
        Width::B2 => types::I16,
        Width::B4 => types::I32,
        Width::B8 => types::I64,
    }
}

/// Flags of accesses to the CPU state: aligned, never trap, and (as a region) never alias guest memory.
fn state_flags() -> MemFlagsData {
    MemFlagsData::trusted()
}

/// Builds the CLIF function of `region`. Slot and step numbers in its code start at the two bases.
pub(crate) fn lower(
    func: &mut ir::Function,
    ctx: &mut FunctionBuilderContext,
    isa: &dyn TargetIsa,
    options: &JitOptions,
    region: &Region,
    (slot_base, step_base): (u32, u32),
) -> Result<ExitTable, Error> {
    func.signature = region_signature();
    let mut fb = FunctionBuilder::new(func, ctx);
    let mut declare = |t| std::array::from_fn(|_| fb.declare_var(t));
    let gpr_var: [Variable; 16] = declare(types::I64);
    let vec_var: [Variable; 16] = declare(types::I8X16);
    let vech_var: [Variable; 16] = declare(types::I8X16);
    let cc_var: [Variable; 4] = std::array::from_fn(|_| fb.declare_var(types::I64));
    let bit_var: [Variable; 6] = std::array::from_fn(|_| fb.declare_var(types::I8));
    let count_var = fb.declare_var(types::I64);
    let entry = fb.create_block();
    let flags_in = fb.create_block();
    let blocks: Vec<ClifBlock> = region.blocks.iter().map(|_| fb.create_block()).collect();
    fb.append_block_params_for_function_params(entry);
    fb.switch_to_block(entry);
    let mut helper = Signature::new(CallConv::PreserveAll);
    helper.params.extend([ir::AbiParam::new(types::I64); 3]);
    let sig_helper = fb.import_signature(helper);
    let sig_line = options.lines.then(|| {
        let mut helper = Signature::new(CallConv::PreserveAll);
        helper.params.extend([ir::AbiParam::new(types::I64); 5]);
        fb.import_signature(helper)
    });
    let sig_region = fb.import_signature(region_signature());

    let insn_uses: Vec<Vec<vector::Uses>> = region
        .blocks
        .iter()
        .map(|b| b.insns.iter().map(vector::uses).collect())
        .collect();
    let together = |uses: &Vec<vector::Uses>| {
        uses.iter()
            .fold(vector::Uses::default(), |all, &u| all.then(u))
    };
    let uses: Vec<vector::Uses> = insn_uses.iter().map(together).collect();
    let all = uses
        .iter()
        .copied()
        .fold(vector::Uses::default(), vector::Uses::then);
    let leaves = region
        .blocks
        .iter()
        .flat_map(|b| &b.insns)
        .filter(|i| liveness::may_fault(i))
        .count();
    let eager = leaves > options.lazy_accesses && !region.view;
    let sole_predecessor = sole_predecessors(region);
    let dirty = if region.view {
        dirty_in_view(region, &insn_uses, &sole_predecessor)
    } else {
        dirty_in(region, &uses, eager)
    };
    let needed = needed_in(region, &uses, &dirty);
    let pinned = fb.ins().get_pinned_reg(types::I64);
    let tlb_at = if options.lines {
        layout::LINES
    } else {
        layout::TLB
    };
    let constant = state_flags().with_readonly().with_can_move();
    // With a view few accesses look there, if any.
    let tlb = (!region.view).then(|| fb.ins().load(types::I64, constant, pinned, tlb_at));
    let view = region.view.then(|| {
        let base = fb.ins().load(types::I64, constant, pinned, layout::VIEW);
        view::View::new(base, dirty.clone())
    });
    let zero = fb.ins().iconst(types::I64, 0);
    fb.def_var(count_var, zero);
    for r in 0..16 {
        if needed[0].gprs >> r & 1 != 0 {
            let v = fb
                .ins()
                .load(types::I64, state_flags(), pinned, layout::gpr(r));
            fb.def_var(gpr_var[r], v);
        }
        if needed[0].vecs >> r & 1 != 0 {
            let v = fb
                .ins()
                .load(types::I8X16, state_flags(), pinned, layout::xmm(r));
            fb.def_var(vec_var[r], v);
        }
        if needed[0].highs >> r & 1 != 0 {
            let v = fb
                .ins()
                .load(types::I8X16, state_flags(), pinned, layout::ymmh(r));
            fb.def_var(vech_var[r], v);
        }
    }
    let live_in = if options.dead_flags {
        liveness::live_in(region)
    } else {
        vec![sevlab_cpu::flags::ARITH; region.blocks.len()]
    };
    let wanted = liveness::wanted_in(region, &live_in);
    let back_edges = back_edge_targets(region);
    let insn = region.blocks[0].insns[0];
    let lines = options.lines.then(|| {
        let tally = fb.declare_var(types::I64);
        lines::Lines::new(options.costs.as_deref(), region, &back_edges, tally)
    });
    let mut l = Lower {
        fb: &mut fb,
        options,
        region,
        live_in,
        blocks,
        gpr_var,
        vec_var,
        vech_var,
        cc_var,
        bit_var,
        count_var,
        used_gprs: all.gprs,
        used_vecs: all.vecs,
        used_highs: all.highs,
        needed,
        wanted,
        surely_read: surely_read(region, &uses),
        read_raising: false,
        at: 0,
        gprs: [Gpr {
            full: Home::Var,
            low: None,
        }; 16],
        vecs: [Vec2 {
            low: Home::Var,
            high: Home::Var,
            raises: (false, false),
        }; 16],
        dirty_gprs: 0,
        dirty_vecs: 0,
        dirty_highs: 0,
        written: Written::default(),
        flags: FlagState::default(),
        count: None,
        done: 0,
        insn,
        term: Term::Next,
        rmw_host: None,
        counted: false,
        lines,
        eager,
        outlook: (options.groups
            && region.groups
            && !region.view
            && !options.lines
            && !options.uncached)
            .then(|| groups::Outlook::new(region, &sole_predecessor)),
        view,
        sole_predecessor,
        groups: groups::Groups::default(),
        groups_out: vec![Vec::new(); region.blocks.len()],
        flags_out: vec![None; region.blocks.len()],
        counts: counts_in(region),
        reads_record: false,
        undeclared: None,
        pinned_here: None,
        tlb,
        slot_base,
        step_base,
        exits: ExitTable::default(),
        sig_helper,
        sig_line,
        sig_region,
    };
    if l.lines.is_some() {
        l.enter_lines(flags_in);
    } else {
        l.fb.ins().jump(flags_in, &[]);
    }
    for n in 0..region.blocks.len() {
        l.block(n, dirty[n], back_edges[n]);
    }
    l.finish_lines();
    l.flags_in(flags_in);
    let (mut exits, undeclared) = (std::mem::take(&mut l.exits), l.undeclared);
    exits.sites = l.view.take().map_or_else(Vec::new, view::View::into_sites);
    fb.seal_all_blocks();
    fb.finalize(isa.frontend_config());
    match undeclared {
        None => Ok(exits),
        Some(rip) => Err(Error::Compile {
            rip,
            reason: "the instruction uses a register that its operand list does not name".into(),
        }),
    }
}

/// Whether `i` may load what it has stored: were it left at a later fault and run again, it would not do the same.
fn stores_then_loads(i: &Insn) -> bool {
    i.op == Op::Enter
}

fn wanted_flags(mask: u64) -> impl Iterator<Item = Flag> {
    Flag::ALL.into_iter().filter(move |f| mask & f.bit() != 0)
}

impl Lower<'_, '_> {
    fn pinned(&mut self) -> Value {
        let here = self.fb.current_block();
        match self.pinned_here {
            Some((block, p)) if Some(block) == here => p,
            _ => {
                let p = self.fb.ins().get_pinned_reg(types::I64);
                self.pinned_here = here.map(|b| (b, p));
                p
            }
        }
    }

    /// The fast TLB's base, or that of the filter of lines.
    fn tlb(&mut self) -> Value {
        if let Some(tlb) = self.tlb {
            return tlb;
        }
        let p = self.pinned();
        self.fb
            .ins()
            .load(types::I64, state_flags(), p, layout::TLB)
    }

    fn iconst(&mut self, t: Type, v: u64) -> Value {
        let v = match t {
            types::I8 => i64::from(v as u8),
            types::I16 => i64::from(v as u16),
            types::I32 => i64::from(v as u32),
            _ => v as i64,
        };
        self.fb.ins().iconst(t, v)
    }

    /// The value of `v` if it is a constant.
    fn constant(&self, v: Value) -> Option<u64> {
        let inst = self.fb.func.dfg.value_def(v).inst()?;
        match self.fb.func.dfg.insts[inst] {
            ir::InstructionData::UnaryImm {
                opcode: ir::Opcode::Iconst,
                imm,
            } => Some(imm.bits() as u64),
            _ => None,
        }
    }

    /// `v + k` for an I64, folded into a constant or an addition of a constant that `v` already is.
    fn add_constant(&mut self, v: Value, k: u64) -> Value {
        if k == 0 {
            return v;
        }
        if let Some(c) = self.constant(v) {
            return self.iconst(types::I64, c.wrapping_add(k));
        }
        let (v, c) = self.parts(v);
        let k = k.wrapping_add(c as u64);
        if k == 0 {
            return v;
        }
        let k = self.iconst(types::I64, k);
        self.fb.ins().iadd(v, k)
    }

    /// Fills the block between the function's entry and the first guest block: it loads the flags' record if any block
    /// reads it.
    fn flags_in(&mut self, b: ClifBlock) {
        self.fb.switch_to_block(b);
        if self.reads_record || self.wanted[0] != 0 {
            let p = self.pinned();
            for (k, var) in self.cc_var.into_iter().enumerate() {
                let at = layout::CC + 8 * k as i32;
                let v = self.fb.ins().load(types::I64, state_flags(), p, at);
                self.fb.def_var(var, v);
            }
        }
        self.flags = FlagState::at_block_start(false);
        self.define_bits(self.wanted[0]);
        self.fb.ins().jump(self.blocks[0], &[]);
    }

    /// Translates block `n`.
    fn block(&mut self, n: usize, dirty: Dirty, header: bool) {
        let region = self.region;
        self.at = n;
        self.fb.switch_to_block(self.blocks[n]);
        // Where the one way here is known, so are the values that it brings: no parameters have to be made for them.
        let before = self.sole_predecessor[n].filter(|&p| self.flags_out[p].is_some());
        if before.is_some() {
            self.fb.seal_block(self.blocks[n]);
        }
        self.gprs = [Gpr {
            full: Home::Var,
            low: None,
        }; 16];
        self.vecs = [Vec2 {
            low: Home::Var,
            high: Home::Var,
            raises: (false, false),
        }; 16];
        (self.dirty_gprs, self.dirty_vecs, self.dirty_highs) =
            (dirty.gprs, dirty.vecs, dirty.highs);
        self.written = Written::default();
        // Read at the block's start: later uses sit behind merges that would each need a look-up of their own.
        let needed = self.needed[n];
        for r in 0..16 {
            if needed.gprs >> r & 1 != 0 {
                self.gprs[r].full = Home::Value(self.fb.use_var(self.gpr_var[r]));
            }
            if needed.vecs >> r & 1 != 0 {
                self.vecs[r].low = Home::Value(self.fb.use_var(self.vec_var[r]));
            }
            if needed.highs >> r & 1 != 0 {
                self.vecs[r].high = Home::Value(self.fb.use_var(self.vech_var[r]));
            }
        }
        // Where only one block leads here its flag records are at hand, with values that dominate this block.
        self.flags = match before.and_then(|p| self.flags_out[p].clone()) {
            Some(flags) => flags,
            None => {
                let mut flags = FlagState::at_block_start(dirty.flags);
                for f in wanted_flags(self.wanted[n]) {
                    flags.know(f, self.fb.use_var(self.bit_var[f as usize]));
                }
                flags
            }
        };
        self.count = Some(match self.counts[n] {
            Some(k) if self.lines.is_none() => self.iconst(types::I64, k),
            _ => self.fb.use_var(self.count_var),
        });
        self.done = 0;
        self.insn = region.blocks[n].insns[0];
        self.begin_lines(n);
        self.begin_groups(n, before);
        self.begin_view(before);
        if header && self.lines.is_none() {
            self.poll_exit_request();
        }
        for i in &region.blocks[n].insns {
            self.insn = *i;
            self.term = Term::Next;
            self.rmw_host = None;
            self.begin_view_insn();
            self.counted = false;
            self.poll_turn();
            self.fetch_insn();
            let whole = self.runs_whole();
            if !whole {
                self.leave_early();
            }
            let lowered = if stores_then_loads(i) {
                self.complex(i)
            } else if whole {
                self.run_by_helper(i);
                Ok(())
            } else {
                sevlab_cpu::sem::exec(self, i)
            };
            match lowered {
                Ok(()) => {}
                Err(Stopped) => {
                    // The instruction always stops; nothing after it runs.
                    self.leave_here();
                    return;
                }
            }
            self.born_groups(Born::Behind(self.done as usize));
            self.done += 1;
            self.insn_done(!self.counted);
        }
        self.end_groups(n);
        self.sync();
        self.keep_raising_behind(n);
        self.flags_out[n] = Some(self.flags.clone());
        self.terminate(n);
    }

    /// At the end of block `n`: floating-point results that nothing has used yet, and that some way from here does not use.
    fn keep_raising_behind(&mut self, n: usize) {
        let behind = read_behind(self.region, &self.surely_read, n);
        for r in 0..16 {
            if behind.vecs >> r & 1 == 0 {
                self.keep_raising(r, false);
            }
            if behind.highs >> r & 1 == 0 {
                self.keep_raising(r, true);
            }
        }
    }

    /// Ends a guest block: defines the variables it changed and goes where the terminator says.
    fn terminate(&mut self, n: usize) {
        let block = &self.region.blocks[n];
        let live = liveness::live_out(self.region, &self.live_in, n);
        let next = block.end();
        match self.term {
            Term::Next => {
                self.define_vars(live);
                self.end_view(n);
                self.edge(next);
            }
            Term::Jump(t) => {
                self.define_vars(live);
                self.end_view(n);
                self.edge(t);
            }
            Term::Branch(c, t) => {
                self.define_vars(live);
                self.end_view(n);
                let taken = self.edge_block(t);
                let fall = self.edge_block(next);
                self.fb.ins().brif(c, taken.0, &[], fall.0, &[]);
                for (b, target, empty) in [(taken.0, t, taken.1), (fall.0, next, fall.1)] {
                    if empty {
                        self.fb.switch_to_block(b);
                        // What one way works out of the flags does not dominate the other, and what it stores the other does not.
                        let flags = self.flags.clone();
                        let dirty = (self.dirty_gprs, self.dirty_vecs, self.dirty_highs);
                        self.edge(target);
                        self.flags = flags;
                        (self.dirty_gprs, self.dirty_vecs, self.dirty_highs) = dirty;
                    }
                }
            }
            Term::Indirect(v) => self.exit_indirect(v),
        }
    }

    /// The block to branch to for `target`, and whether it is an empty one, to be filled by [`Self::edge`].
    fn edge_block(&mut self, target: u64) -> (ClifBlock, bool) {
        match self.region.index.get(&target) {
            Some(&s) if !self.edge_fetches(s) && !self.edge_stores(s) => (self.blocks[s], false),
            _ => (self.fb.create_block(), true),
        }
    }

    fn edge(&mut self, target: u64) {
        match self.region.index.get(&target) {
            Some(&s) => {
                self.fetch_edge(s);
                self.store_for(s);
                self.fb.ins().jump(self.blocks[s], &[]);
            }
            None => self.exit_to(target),
        }
    }

    /// Defines the variables for the following blocks of the region.
    fn define_vars(&mut self, live_flags: u64) {
        for r in 0..16 {
            if self.written.gprs >> r & 1 != 0 {
                let v = self.gpr_full(r as u8);
                self.fb.def_var(self.gpr_var[r], v);
            } else if let Home::Value(v) = self.gprs[r].full {
                // It has not changed, but who looks for it need not go through the merges above.
                self.fb.def_var(self.gpr_var[r], v);
            }
            if self.written.vecs >> r & 1 != 0 {
                let v = self.vec_low(r);
                self.fb.def_var(self.vec_var[r], v);
            } else if let Home::Value(v) = self.vecs[r].low {
                self.fb.def_var(self.vec_var[r], v);
            }
            if self.written.highs >> r & 1 != 0 {
                let v = self.vec_high(r);
                self.fb.def_var(self.vech_var[r], v);
            } else if let Home::Value(v) = self.vecs[r].high {
                self.fb.def_var(self.vech_var[r], v);
            }
        }
        if live_flags != 0 && !self.flags.untouched() && self.view.is_none() {
            let record = self.flags_record(live_flags);
            for (var, value) in self.cc_var.into_iter().zip(record) {
                self.fb.def_var(var, value);
            }
        }
        let wanted = self.region.blocks[self.at]
            .successors()
            .filter_map(|t| self.region.index.get(&t))
            .fold(0, |mask, &s| mask | self.wanted[s]);
        self.define_bits(wanted);
        let count = self.retired_so_far();
        self.fb.def_var(self.count_var, count);
        self.define_tally();
    }

    /// Defines the variables of flags that are carried by themselves.
    fn define_bits(&mut self, wanted: u64) {
        for f in wanted_flags(wanted) {
            let v = self.flag_bit(f);
            self.fb.def_var(self.bit_var[f as usize], v);
        }
    }

    /// Instructions retired since the region was entered, as of the current instruction's start (or the block's end).
    fn retired_so_far(&mut self) -> Value {
        let base = self.count.expect("set at the block's start");
        if self.done == 0 {
            return base;
        }
        self.add_constant(base, u64::from(self.done))
    }
}

/// The current instruction always stops here (its stopping path has been emitted by [`Lower::leave_here`]).
pub(crate) struct Stopped;
