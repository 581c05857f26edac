//! Guest memory accesses: the inline probe of the fast TLB, and its cold path.
//!
//! `entry = tlb + (va >> 12 & (ENTRIES - 1)) * 32`; the access hits if the page of its last byte equals the tag,
//! so an access that crosses a page never hits. The cold path asks a helper for a host address (loads) or to do
//! the store; where even that can't be done (a fault, or a store into translated code) the region is left at the
//! instruction and the interpreter runs it. Accesses off one base can share a probe: see [`super::groups`].

use super::{Lower, ty};
use crate::layout;
use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::{
    Block as ClifBlock, BlockArg, InstBuilder, MemFlagsData, Type, Value, types,
};
use sevlab_cpu::Width;
use sevlab_memctl::{FastTlb, TlbEntry};
use std::mem::offset_of;

/// What a probe is for.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum For {
    Load,
    Store,
}

impl Lower<'_, '_> {
    /// The probe: (hit, host address if hit).
    pub(super) fn probe(&mut self, va: Value, bytes: u32, why: For) -> (Value, Value) {
        self.sync();
        let index_mask = (FastTlb::ENTRIES as u64 - 1) << 5;
        let tlb = self.tlb();
        let (entry, page) = if let Some(va) = self.constant(va) {
            let entry = self.add_constant(tlb, va >> (12 - 5) & index_mask);
            let page = self.iconst(types::I64, va.wrapping_add(u64::from(bytes - 1)) & !0xfff);
            (entry, page)
        } else {
            let shift = self.iconst(types::I64, 12 - 5);
            let mask = self.iconst(types::I64, index_mask);
            let x = self.fb.ins().ushr(va, shift);
            let x = self.fb.ins().band(x, mask);
            let entry = self.fb.ins().iadd(tlb, x);
            let last = self.add_constant(va, u64::from(bytes - 1));
            let page_mask = self.iconst(types::I64, !0xfff);
            (entry, self.fb.ins().band(last, page_mask))
        };
        let tag_at = match why {
            For::Load => offset_of!(TlbEntry, read),
            For::Store => offset_of!(TlbEntry, write),
        };
        // Each load right before its use: so both become memory operands.
        let addend = self.fb.ins().load(
            types::I64,
            super::state_flags(),
            entry,
            offset_of!(TlbEntry, addend) as i32,
        );
        let host = self.fb.ins().iadd(va, addend);
        let tag = self
            .fb
            .ins()
            .load(types::I64, super::state_flags(), entry, tag_at as i32);
        let hit = self.fb.ins().icmp(IntCC::Equal, page, tag);
        (hit, host)
    }

    /// The host address of `bytes` bytes at `va`, readable (and, for `rmw`, writable).
    pub(super) fn host_address(&mut self, va: Value, bytes: u32, rmw: bool) -> Value {
        if self.lines.is_some() {
            return self.line_address(va, bytes, rmw);
        }
        // Two stores, of which the second faults, would be no precise fault.
        let single = !rmw || bytes <= 16;
        if single && let Some(host) = self.viewed(va) {
            return host;
        }
        match self.grouped(va, bytes, rmw) {
            Some(host) => host,
            None => self.host_address_or_copy(va, bytes, rmw, false),
        }
    }

    /// As [`Self::host_address`]; with `copy` the address may be that of a copy in the scratch space.
    fn host_address_or_copy(&mut self, va: Value, bytes: u32, rmw: bool, copy: bool) -> Value {
        let (why, helper) = if rmw {
            (For::Store, layout::H_RMW)
        } else {
            (For::Load, layout::H_LOAD)
        };
        let how = if copy { layout::COPY } else { 0 };
        self.found_host(va, bytes, why, (helper, how), Self::leave_in)
    }

    /// The host address of `bytes` bytes at `va`: by a probe, or else by a helper, which is told `how`. Where that has none either,
    /// the region is left: `leave` fills the block that does so.
    pub(super) fn found_host(
        &mut self,
        va: Value,
        bytes: u32,
        why: For,
        (helper, how): (i32, u64),
        leave: fn(&mut Self, ClifBlock),
    ) -> Value {
        let (hit, host) = self.probe(va, bytes, why);
        let (merge, cold) = (self.fb.create_block(), self.fb.create_block());
        self.fb.set_cold_block(cold);
        let result = self.fb.append_block_param(merge, types::I64);
        self.fb
            .ins()
            .brif(hit, merge, &[BlockArg::Value(host)], cold, &[]);
        self.fb.switch_to_block(cold);
        let n = self.iconst(types::I64, u64::from(bytes));
        let how = self.iconst(types::I64, how | self.held());
        self.call_helper(helper, [va, n, how]);
        let p = self.pinned();
        let got = self
            .fb
            .ins()
            .load(types::I64, super::state_flags(), p, layout::RET);
        let out = self.leave_block();
        self.fb
            .ins()
            .brif(got, merge, &[BlockArg::Value(got)], out, &[]);
        leave(self, out);
        self.fb.switch_to_block(merge);
        result
    }

    /// Loads a value of CLIF type `t`.
    pub(super) fn load_type(&mut self, t: Type, va: Value) -> Value {
        let host = self.host_address(va, t.bytes(), false);
        let flags = self.guest_flags();
        self.fb.ins().load(t, flags, host, 0)
    }

    /// Stores a value of CLIF type `t` (up to 16 bytes).
    pub(super) fn store_type(&mut self, t: Type, va: Value, v: Value) {
        if self.lines.is_some() {
            return self.line_store(va, v, None);
        }
        if let Some(host) = self.viewed(va) {
            let flags = self.guest_flags();
            self.fb.ins().store(flags, v, host, 0);
            self.end_site();
            return;
        }
        self.end_site();
        let bytes = t.bytes();
        let grouped = self.grouped(va, bytes, true);
        if grouped.is_some() || self.held() != 0 {
            // The helper that stores could not take it back if a host address had become bad.
            let host = match grouped {
                Some(host) => host,
                None => self.host_address_or_copy(va, bytes, true, false),
            };
            let flags = self.guest_flags();
            self.fb.ins().store(flags, v, host, 0);
            return;
        }
        let (hit, host) = self.probe(va, bytes, For::Store);
        let (fast, merge, cold) = (
            self.fb.create_block(),
            self.fb.create_block(),
            self.fb.create_block(),
        );
        self.fb.set_cold_block(cold);
        self.fb.ins().brif(hit, fast, &[], cold, &[]);
        self.fb.switch_to_block(cold);
        let n = self.iconst(types::I64, u64::from(bytes));
        if bytes == 16 {
            let p = self.pinned();
            self.fb
                .ins()
                .store(super::state_flags(), v, p, layout::SCRATCH);
            self.call_helper(layout::H_STORE16, [va, n, n]);
        } else {
            let as_int = if t.is_int() {
                v
            } else {
                let int = if t == types::F32 {
                    types::I32
                } else {
                    types::I64
                };
                self.fb.ins().bitcast(int, MemFlagsData::new(), v)
            };
            let wide = if bytes == 8 {
                as_int
            } else {
                self.fb.ins().uextend(types::I64, as_int)
            };
            self.call_helper(layout::H_STORE, [va, wide, n]);
        }
        let p = self.pinned();
        let ok = self
            .fb
            .ins()
            .load(types::I64, super::state_flags(), p, layout::RET);
        let leave = self.leave_block();
        self.fb.ins().brif(ok, merge, &[], leave, &[]);
        self.leave_in(leave);
        self.fb.switch_to_block(fast);
        let flags = self.guest_flags();
        self.fb.ins().store(flags, v, host, 0);
        self.fb.ins().jump(merge, &[]);
        self.fb.switch_to_block(merge);
    }

    pub(super) fn load_int(&mut self, w: Width, va: Value) -> Value {
        self.load_type(ty(w), va)
    }

    pub(super) fn store_int(&mut self, w: Width, va: Value, v: Value) {
        // The store after a read-modify-write load of the same place needs no second probe.
        if let Some((at, host)) = self.rmw_host
            && at == va
        {
            let flags = self.guest_flags();
            self.fb.ins().store(flags, v, host, 0);
            self.end_site();
            return;
        }
        self.store_type(ty(w), va, v);
    }

    pub(super) fn load_rmw_int(&mut self, w: Width, va: Value) -> Value {
        if self.options.uncached {
            // The store behind it does its own probe.
            let host = self.host_address_or_copy(va, w.bytes(), true, true);
            let flags = self.guest_flags();
            return self.fb.ins().load(ty(w), flags, host, 0);
        }
        let host = self.host_address(va, w.bytes(), true);
        self.rmw_host = Some((va, host));
        let flags = self.guest_flags();
        self.fb.ins().load(ty(w), flags, host, 0)
    }
}
