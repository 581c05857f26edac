//! The VMCB's own save area: guests without encrypted state.

use sevlab_arch::vmcb::{Save, Segment as Saved};

use crate::state::{CpuState, Segment, gpr, seg};

pub(super) const fn segment_in(s: &Saved) -> Segment {
    Segment {
        selector: s.selector,
        attr: s.attributes,
        limit: s.limit,
        base: s.base,
    }
}

pub(super) const fn segment_out(s: &Segment) -> Saved {
    Saved {
        selector: s.selector,
        attributes: s.attr,
        limit: s.limit,
        base: s.base,
    }
}

pub(super) const fn table_out((base, limit): (u64, u32)) -> Saved {
    Saved {
        selector: 0,
        attributes: 0,
        limit,
        base,
    }
}

/// The fields that both save areas have, under the same names.
macro_rules! common_load {
    ($s:expr, $v:expr) => {{
        let (s, v) = ($s, $v);
        s.seg[seg::ES] = segment_in(&v.es);
        s.seg[seg::CS] = segment_in(&v.cs);
        s.seg[seg::SS] = segment_in(&v.ss);
        s.seg[seg::DS] = segment_in(&v.ds);
        s.seg[seg::FS] = segment_in(&v.fs);
        s.seg[seg::GS] = segment_in(&v.gs);
        s.ldtr = segment_in(&v.ldtr);
        s.tr = segment_in(&v.tr);
        s.cpl = v.cpl & 3;
        s.set_rflags(v.rflags);
        s.rip = v.rip;
        s.gpr[gpr::RSP as usize] = v.rsp;
        s.gpr[gpr::RAX as usize] = v.rax;
        let r = &mut s.sys;
        r.gdtr = (v.gdtr.base, v.gdtr.limit);
        r.idtr = (v.idtr.base, v.idtr.limit);
        r.efer = v.efer;
        r.cr0 = v.cr0;
        r.cr2 = v.cr2;
        r.cr3 = v.cr3;
        r.cr4 = v.cr4;
        r.dr[6] = v.dr6;
        r.dr[7] = v.dr7;
        r.star = v.star;
        r.lstar = v.lstar;
        r.cstar = v.cstar;
        r.sfmask = v.sfmask;
        r.kernel_gs_base = v.kernel_gs_base;
        r.sysenter_cs = v.sysenter_cs;
        r.sysenter_esp = v.sysenter_esp;
        r.sysenter_eip = v.sysenter_eip;
        r.pat = v.g_pat;
    }};
}

macro_rules! common_store {
    ($s:expr, $v:expr) => {{
        let (s, v) = ($s, $v);
        v.es = segment_out(&s.seg[seg::ES]);
        v.cs = segment_out(&s.seg[seg::CS]);
        v.ss = segment_out(&s.seg[seg::SS]);
        v.ds = segment_out(&s.seg[seg::DS]);
        v.fs = segment_out(&s.seg[seg::FS]);
        v.gs = segment_out(&s.seg[seg::GS]);
        v.ldtr = segment_out(&s.ldtr);
        v.tr = segment_out(&s.tr);
        v.cpl = s.cpl;
        v.rflags = s.rflags();
        v.rip = s.rip;
        v.rsp = s.gpr[gpr::RSP as usize];
        v.rax = s.gpr[gpr::RAX as usize];
        let r = &s.sys;
        v.gdtr = table_out(r.gdtr);
        v.idtr = table_out(r.idtr);
        v.efer = r.efer;
        v.cr0 = r.cr0;
        v.cr2 = r.cr2;
        v.cr3 = r.cr3;
        v.cr4 = r.cr4;
        v.dr6 = r.dr[6];
        v.dr7 = r.dr[7];
        v.star = r.star;
        v.lstar = r.lstar;
        v.cstar = r.cstar;
        v.sfmask = r.sfmask;
        v.kernel_gs_base = r.kernel_gs_base;
        v.sysenter_cs = r.sysenter_cs;
        v.sysenter_esp = r.sysenter_esp;
        v.sysenter_eip = r.sysenter_eip;
        v.g_pat = r.pat;
    }};
}
pub(super) use {common_load, common_store};

pub(super) fn load(s: &mut CpuState, v: &Save) {
    common_load!(s, v);
}

pub(super) fn store(s: &CpuState, v: &mut Save) {
    common_store!(s, v);
}
