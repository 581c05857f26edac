//! Thunks without host code: accesses to guest memory element by element, and MXCSR.

use iced_x86::{Instruction, Mnemonic as M, OpKind, Register};

use super::run::ThunkCpu;
use super::{mxcsr, route};
use crate::interp::canonical;
use crate::state::{CpuState, gpr, seg};
use crate::stop::{Exception, Stop};
use crate::vcpu::Vcpu;

/// An address that is computed here, since the instruction has an implicit or a vector-indexed operand.
#[derive(Clone, Copy, Debug)]
pub(super) struct Address {
    base: Option<u8>,
    scale: u8,
    disp: u64,
    seg: Option<u8>,
    addr32: bool,
}

/// A gather: `dst[n] = load(base + index[n] * scale + disp)` where the sign of `mask[n]` is set.
#[derive(Clone, Copy, Debug)]
pub(super) struct Gather {
    dst: u8,
    mask: u8,
    index: u8,
    /// Bytes of an element, and of an index.
    elem: u8,
    index_elem: u8,
    count: u8,
    /// Bytes of the vector length.
    vector: u8,
    at: Address,
}

/// What a software thunk does. Vector registers by number, sizes in bytes.
#[derive(Clone, Copy, Debug)]
pub(super) enum Soft {
    /// Has host code.
    None,
    /// FWAIT.
    Wait,
    /// LDMXCSR, VLDMXCSR.
    LoadMxcsr,
    /// STMXCSR, VSTMXCSR.
    StoreMxcsr,
    /// VMASKMOV, VPMASKMOV from memory.
    MaskLoad {
        dst: u8,
        mask: u8,
        elem: u8,
        bytes: u8,
    },
    /// VMASKMOV, VPMASKMOV to memory.
    MaskStore {
        src: u8,
        mask: u8,
        elem: u8,
        bytes: u8,
    },
    /// MASKMOVDQU, VMASKMOVDQU.
    ByteStore { src: u8, mask: u8, at: Address },
    /// MASKMOVQ.
    ByteStoreMmx { src: u8, mask: u8, at: Address },
    /// The gathers.
    Gather(Gather),
}

/// Stores through an implicit RDI.
pub(super) fn is_implicit_store(m: M) -> bool {
    matches!(m, M::Maskmovq | M::Maskmovdqu | M::Vmaskmovdqu)
}

fn vec(ins: &Instruction, op: u32) -> Option<u8> {
    let r = ins.op_register(op);
    (ins.op_kind(op) == OpKind::Register && r.is_vector_register() && r.number() < 16)
        .then(|| r.number() as u8)
}

fn segment(r: Register) -> Option<u8> {
    match r {
        Register::FS => Some(seg::FS as u8),
        Register::GS => Some(seg::GS as u8),
        _ => None,
    }
}

/// What a software instruction does; `None` if its operands are not as expected.
pub(super) fn plan(ins: &Instruction) -> Option<Soft> {
    use M::*;
    let m = ins.mnemonic();
    Some(match m {
        Wait => Soft::Wait,
        Ldmxcsr | Vldmxcsr => Soft::LoadMxcsr,
        Stmxcsr | Vstmxcsr => Soft::StoreMxcsr,
        Vmaskmovps | Vmaskmovpd | Vpmaskmovd | Vpmaskmovq => {
            let elem = if matches!(m, Vmaskmovps | Vpmaskmovd) {
                4
            } else {
                8
            };
            let mask = vec(ins, 1)?;
            let bytes = ins.op_register(1).size() as u8;
            if ins.op_kind(0) == OpKind::Memory {
                let src = vec(ins, 2)?;
                Soft::MaskStore {
                    src,
                    mask,
                    elem,
                    bytes,
                }
            } else {
                let dst = vec(ins, 0)?;
                Soft::MaskLoad {
                    dst,
                    mask,
                    elem,
                    bytes,
                }
            }
        }
        Maskmovq | Maskmovdqu | Vmaskmovdqu => {
            let at = Address {
                base: Some(crate::state::gpr::RDI),
                scale: 1,
                disp: 0,
                seg: segment(ins.segment_prefix()),
                addr32: ins.op_kind(0) == OpKind::MemorySegEDI,
            };
            if m == Maskmovq {
                let mm = |op| ins.op_register(op).number() as u8;
                Soft::ByteStoreMmx {
                    src: mm(1),
                    mask: mm(2),
                    at,
                }
            } else {
                Soft::ByteStore {
                    src: vec(ins, 1)?,
                    mask: vec(ins, 2)?,
                    at,
                }
            }
        }
        _ if route::is_gather(m) => {
            let index = ins.memory_index();
            if !index.is_vector_register() {
                return None;
            }
            let elem = match m {
                Vgatherdps | Vgatherqps | Vpgatherdd | Vpgatherqd => 4,
                _ => 8,
            };
            let index_elem = match m {
                Vgatherdps | Vgatherdpd | Vpgatherdd | Vpgatherdq => 4,
                _ => 8,
            };
            let base = ins.memory_base();
            let count = (ins.op_register(0).size() / elem).min(index.size() / index_elem);
            Soft::Gather(Gather {
                dst: vec(ins, 0)?,
                mask: vec(ins, 2)?,
                index: index.number() as u8,
                elem: elem as u8,
                index_elem: index_elem as u8,
                count: count as u8,
                vector: ins.op_register(0).size().max(index.size()) as u8,
                at: Address {
                    base: base.is_gpr().then(|| base.number() as u8),
                    scale: ins.memory_index_scale() as u8,
                    disp: ins.memory_displacement64(),
                    seg: segment(ins.segment_prefix()),
                    addr32: base.is_gpr32()
                        || (base == Register::None && ins.memory_displ_size() == 4),
                },
            })
        }
        _ => return None,
    })
}

impl Address {
    fn linear(&self, s: &CpuState, index: u64) -> u64 {
        let base = self.base.map_or(0, |r| s.gpr[usize::from(r)]);
        let mut ea = base
            .wrapping_add(index.wrapping_mul(u64::from(self.scale)))
            .wrapping_add(self.disp);
        if self.addr32 {
            ea &= 0xffff_ffff;
        }
        ea.wrapping_add(self.seg.map_or(0, |n| s.seg[usize::from(n)].base))
    }

    /// The stop of an access there: #SS(0) for a non-canonical address off the stack's registers.
    fn named(&self, stop: Stop) -> Stop {
        let on_stack = self.seg.is_none() && matches!(self.base, Some(gpr::RSP | gpr::RBP));
        if on_stack {
            Vcpu::as_stack_access(stop)
        } else {
            stop
        }
    }
}

fn get(s: &CpuState, r: u8) -> [u8; 32] {
    let (lo, hi) = (s.xmm[usize::from(r)].0, s.ymmh[usize::from(r)].0);
    let mut out = [0; 32];
    for (chunk, q) in out.chunks_exact_mut(8).zip([lo[0], lo[1], hi[0], hi[1]]) {
        chunk.copy_from_slice(&q.to_le_bytes());
    }
    out
}

fn set(s: &mut CpuState, r: u8, v: &[u8; 32]) {
    let q = |n: usize| {
        let mut b = [0; 8];
        b.copy_from_slice(&v[8 * n..8 * n + 8]);
        u64::from_le_bytes(b)
    };
    s.xmm[usize::from(r)].0 = [q(0), q(1)];
    s.ymmh[usize::from(r)].0 = [q(2), q(3)];
}

/// Ranges of elements whose mask has its top bit set, neighbours joined.
fn runs(mask: &[u8], elem: usize) -> impl Iterator<Item = core::ops::Range<usize>> {
    let n = mask.len() / elem;
    let on = move |k: usize| k < n && mask[k * elem + elem - 1] & 0x80 != 0;
    let mut k = 0;
    core::iter::from_fn(move || {
        while k < n && !on(k) {
            k += 1;
        }
        let start = k;
        while on(k) {
            k += 1;
        }
        (start < k).then_some(start * elem..k * elem)
    })
}

/// #GP(0) if an element that is accessed is not canonical, before any page is looked at.
fn check_runs(va: u64, mask: &[u8], elem: usize) -> Result<(), Stop> {
    let reached = |at: usize| canonical(va.wrapping_add(at as u64));
    if runs(mask, elem).all(|r| reached(r.start) && reached(r.end - 1)) {
        return Ok(());
    }
    Err(Exception::GENERAL_PROTECTION.into())
}

fn masked_store<C: ThunkCpu>(
    cpu: &mut C,
    va: u64,
    data: &[u8],
    mask: &[u8],
    elem: usize,
) -> Result<(), Stop> {
    if elem == 1 {
        // MASKMOVDQU and MASKMOVQ: all of the operand must be writable whatever the mask.
        cpu.probe_write(va, data.len())?;
    }
    for r in runs(mask, elem) {
        cpu.probe_write(va.wrapping_add(r.start as u64), r.len())?;
    }
    for r in runs(mask, elem) {
        cpu.write(va.wrapping_add(r.start as u64), &data[r])?;
    }
    Ok(())
}

pub(super) fn run<C: ThunkCpu>(soft: &Soft, cpu: &mut C, va: u64) -> Result<(), Stop> {
    match *soft {
        Soft::None => Ok(()),
        Soft::Wait => match cpu.state().fx.pending() {
            true => Err(Exception::X87.into()),
            false => Ok(()),
        },
        Soft::LoadMxcsr => {
            let mut b = [0; 4];
            cpu.read(va, &mut b)?;
            let v = u32::from_le_bytes(b);
            if v & !mxcsr::WRITABLE != 0 {
                return Err(Exception::GENERAL_PROTECTION.into());
            }
            mxcsr::load(cpu.state(), v);
            Ok(())
        }
        Soft::StoreMxcsr => {
            let v = mxcsr::live(cpu.state());
            cpu.write(va, &v.to_le_bytes())
        }
        Soft::MaskLoad {
            dst,
            mask,
            elem,
            bytes,
        } => {
            let mask = get(cpu.state(), mask);
            check_runs(va, &mask[..usize::from(bytes)], usize::from(elem))?;
            let mut v = [0; 32];
            for r in runs(&mask[..usize::from(bytes)], usize::from(elem)) {
                cpu.read(va.wrapping_add(r.start as u64), &mut v[r])?;
            }
            set(cpu.state(), dst, &v);
            Ok(())
        }
        Soft::MaskStore {
            src,
            mask,
            elem,
            bytes,
        } => {
            let (data, mask) = (get(cpu.state(), src), get(cpu.state(), mask));
            let n = usize::from(bytes);
            check_runs(va, &mask[..n], usize::from(elem))?;
            masked_store(cpu, va, &data[..n], &mask[..n], usize::from(elem))
        }
        Soft::ByteStore { src, mask, at } => {
            let s = cpu.state();
            let (data, mask, va) = (get(s, src), get(s, mask), at.linear(s, 0));
            masked_store(cpu, va, &data[..16], &mask[..16], 1)
        }
        Soft::ByteStoreMmx { src, mask, at } => {
            let s = cpu.state();
            if s.fx.pending() {
                return Err(Exception::X87.into());
            }
            let mut fx = s.fx;
            fx.enter_mmx();
            let (data, mask) = (fx.mm(src).to_le_bytes(), fx.mm(mask).to_le_bytes());
            let va = at.linear(s, 0);
            masked_store(cpu, va, &data, &mask, 1)?;
            cpu.state().fx = fx;
            Ok(())
        }
        Soft::Gather(ref g) => gather(g, cpu),
    }
}

/// Elements from the lowest; on a fault those loaded so far are in place and their mask elements clear, so that the instruction
/// goes on where it stopped when it is run again. The rest is as Intel's processors leave it: the mask is all ones or zeros in each
/// element of the vector length and clear beyond it; the destination is clear beyond it if an element was loaded.
fn gather<C: ThunkCpu>(g: &Gather, cpu: &mut C) -> Result<(), Stop> {
    let (elem, index_elem) = (usize::from(g.elem), usize::from(g.index_elem));
    let s = cpu.state();
    let index = get(s, g.index);
    let mut dst = get(s, g.dst);
    let mut mask = get(s, g.mask);
    let mut result = Ok(());
    let mut loaded = false;
    for n in 0..usize::from(g.count) {
        let e = n * elem..(n + 1) * elem;
        if mask[e.end - 1] & 0x80 != 0 {
            let mut ix = [0; 8];
            ix[..index_elem].copy_from_slice(&index[n * index_elem..(n + 1) * index_elem]);
            let mut ix = u64::from_le_bytes(ix);
            if index_elem == 4 {
                ix = i64::from(ix as u32 as i32) as u64;
            }
            let va = g.at.linear(cpu.state(), ix);
            let mut v = [0; 8];
            result = cpu.read(va, &mut v[..elem]).map_err(|s| g.at.named(s));
            if result.is_err() {
                break;
            }
            dst[e.clone()].copy_from_slice(&v[..elem]);
            loaded = true;
            cpu.loaded_element();
        }
        mask[e].fill(0);
    }
    if result.is_ok() {
        mask.fill(0);
        dst[usize::from(g.count) * elem..].fill(0);
    } else {
        let vector = usize::from(g.vector);
        for e in mask[..vector].chunks_exact_mut(elem) {
            let sign = 0u8.wrapping_sub(e[elem - 1] >> 7);
            e.fill(sign);
        }
        mask[vector..].fill(0);
        if loaded {
            dst[vector..].fill(0);
        }
    }
    let s = cpu.state();
    set(s, g.dst, &dst);
    set(s, g.mask, &mask);
    result
}
