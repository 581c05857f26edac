//! Differences that are known and not failures: each with the reason, counted on its own in the summary.
//!
//! Some are the host's (what its manual leaves to the implementation, or its kernel's), some the guest's. An entry is as
//! narrow as can be, and goes when its reason does.

use crate::check::{Analysis, Difference, Sticky};
use crate::layout::CODE_END;
use crate::outcome::{End, Outcome};
use iced_x86::{CpuidFeature as F, FlowControl, Instruction, Mnemonic as M, OpKind, Register};

/// Why a difference is expected.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Known {
    /// The guest translates the first page before it sees that the last byte is not canonical.
    AcrossTheHole,
    /// The guest leaves a gather's mask elements alone until they are done.
    GatherMask,
    /// The host raises sticky flags, or #XM, before the store faults.
    ConvertStore,
    /// The guest's thunks raise #GP for a stack segment's non-canonical address.
    StackSegment,
    /// The guest may report PE beside an unmasked OE or UE, and other flags for dot products.
    UnmaskedFlags,
    /// The host checks the address even if nothing is to be written (SDM: implementation-dependent).
    EmptyMask,
    /// The host has set TOP to 0 before an MMX store faults.
    MmxStore,
    /// Which byte of a large operand is touched first is up to the processor.
    LargeOperand,
    /// The guest looks at the operand's page before it sees that an unmasked exception keeps the store from happening.
    X87Store,
    /// Intel's processors fault at the branch, as both manuals have it; the guest at the target.
    BranchTarget,
    /// Which of two operands is read first is up to the processor.
    StringOrder,
    /// The host writes the first eight bytes of a ten-byte store whose other page faults.
    TenBytes,
    /// The guest does not look at the end of an FXSAVE image, which is not written.
    ImageEnd,
    /// The guest truncates a bit string's address behind the segment base.
    BitString,
    /// How many bytes it takes to see that they are no instruction is up to the processor.
    InvalidAtEnd,
    /// The guest has no descriptor tables.
    Selector,
    /// A component in its initial state may count as in use (SDM vol. 1, 13.6).
    InUse,
    /// The guest raises no #AC.
    Alignment,
    /// The guest's decoder takes invalid bytes that are 15 long for ones that are too long.
    TooLong,
    /// The guest finds an exact tiny result by flushing to zero, which VCVTPS2PH does not do.
    ConvertTiny,
    /// An operation whose result nobody reads is not carried out, and MXCSR is stored.
    StickyStored,
    /// The guest's repeated strings are one step under TF.
    RepStep,
}

/// All reasons with their words.
pub const REASONS: [(Known, &str); 22] = [
    (
        Known::AcrossTheHole,
        "guest: an operand across the end of the lower half is #PF of its first page, not #GP",
    ),
    (
        Known::GatherMask,
        "guest: a gather that faults leaves the elements still to come, and the upper half, as they were",
    ),
    (
        Known::ConvertStore,
        "host: VCVTPS2PH raises flags and #XM before its store faults",
    ),
    (
        Known::StackSegment,
        "guest: #GP where a non-canonical address in the stack segment is #SS",
    ),
    (
        Known::UnmaskedFlags,
        "guest: PE beside an unmasked OE or UE, flags of dot products that stop",
    ),
    (
        Known::EmptyMask,
        "host: MASKMOV checks bytes that it does not write",
    ),
    (
        Known::MmxStore,
        "host: an MMX store that faults has set TOP to 0",
    ),
    (
        Known::LargeOperand,
        "host: another byte of a large or masked operand is touched first",
    ),
    (
        Known::X87Store,
        "guest: an x87 store that an unmasked exception suppresses still faults",
    ),
    (
        Known::BranchTarget,
        "guest: a branch to a non-canonical address faults at its target, not at the branch",
    ),
    (
        Known::StringOrder,
        "host: CMPS reads the other operand first",
    ),
    (
        Known::TenBytes,
        "host: a ten-byte store across pages that faults has written eight bytes",
    ),
    (
        Known::ImageEnd,
        "guest: FXSAVE does not look at the last 96 bytes of its operand",
    ),
    (
        Known::BitString,
        "guest: a bit string's 32-bit address is truncated behind the segment base",
    ),
    (
        Known::InvalidAtEnd,
        "host, guest: bytes at the end of a page may be known to be invalid before the next page is fetched",
    ),
    (
        Known::Selector,
        "guest: no descriptor tables, so only null and flat selectors load",
    ),
    (
        Known::InUse,
        "host: XSAVE has a component in its initial state as in use",
    ),
    (Known::Alignment, "guest: no #AC where RFLAGS.AC is set"),
    (
        Known::TooLong,
        "guest: invalid bytes of exactly 15 are #GP, as if there were more",
    ),
    (
        Known::ConvertTiny,
        "guest: VCVTPS2PH with an exact denormal result raises no unmasked #U",
    ),
    (
        Known::StickyStored,
        "jit-on: sticky flags of operations with dead results are missing from a stored MXCSR",
    ),
    (
        Known::RepStep,
        "guest: a repeated string instruction is a single step under TF",
    ),
];

impl Known {
    /// Its words.
    #[must_use]
    pub fn words(self) -> &'static str {
        REASONS[self as usize].1
    }
}

fn gather(m: M) -> bool {
    use M::{
        Vgatherdpd, Vgatherdps, Vgatherqpd, Vgatherqps, Vpgatherdd, Vpgatherdq, Vpgatherqd,
        Vpgatherqq,
    };
    matches!(
        m,
        Vgatherdps
            | Vgatherdpd
            | Vgatherqps
            | Vgatherqpd
            | Vpgatherdd
            | Vpgatherdq
            | Vpgatherqd
            | Vpgatherqq
    )
}

fn saves_state(m: M) -> bool {
    matches!(
        m,
        M::Fxsave
            | M::Fxsave64
            | M::Fxrstor
            | M::Fxrstor64
            | M::Xsave
            | M::Xsave64
            | M::Xsavec
            | M::Xsavec64
            | M::Xrstor
            | M::Xrstor64
            | M::Fnsave
            | M::Frstor
            | M::Fnstenv
            | M::Fldenv
            | M::Iret
            | M::Iretd
            | M::Iretq
    )
}

fn vector(o: &Outcome) -> Option<u8> {
    match o.end {
        End::Exception { vector, .. } => Some(vector),
        _ => None,
    }
}

/// The reason, if all of the differences have one.
#[must_use]
pub fn reason(
    a: &Analysis,
    e: &Outcome,
    got: &Outcome,
    differences: &[Difference],
    sticky: Sticky,
) -> Option<Known> {
    let stores = |i: &Instruction| {
        matches!(i.mnemonic(), M::Stmxcsr | M::Vstmxcsr) || saves_state(i.mnemonic())
    };
    if sticky == Sticky::Ignored
        && differences.iter().all(|d| d.field.starts_with('['))
        && a.instructions.iter().any(stores)
    {
        return Some(Known::StickyStored);
    }
    narrow(a, e, got, differences).or_else(|| {
        // A real descriptor's rights, then carried on in flags and registers.
        let looks = |i: &Instruction| matches!(i.mnemonic(), M::Lar | M::Lsl | M::Verr | M::Verw);
        a.instructions.iter().any(looks).then_some(Known::Selector)
    })
}

fn narrow(a: &Analysis, e: &Outcome, got: &Outcome, differences: &[Difference]) -> Option<Known> {
    let only = |pass: &dyn Fn(&str) -> bool| differences.iter().all(|d| pass(&d.field));
    let host = vector(e)?;
    let page_fault = host == 14 || host == 12 || host == 13;
    let at = |rip| a.instruction(rip);
    if let Some(i) = at(e.rip)
        && page_fault
        && e.rip != got.rip
        && matches!(i.mnemonic(), M::Maskmovq | M::Maskmovdqu | M::Vmaskmovdqu)
    {
        return Some(Known::EmptyMask);
    }
    let guest = vector(got).unwrap_or(u8::MAX);
    if let Some(i) = at(got.rip)
        && matches!(guest, 12..=14)
        && (e.x87.status & 0x80 != 0 || got.x87.control & 0x3f != 0x3f)
        && i.mnemonic() != M::Fxsave
        && i.op_kind(0) == OpKind::Memory
        && i.cpuid_features()
            .iter()
            .any(|f| matches!(f, F::FPU | F::FPU287 | F::FPU387 | F::SSE3))
        && (e.rip != got.rip || host == 16)
    {
        return Some(Known::X87Store);
    }
    if a.instructions.iter().any(|i| {
        matches!(i.mnemonic(), M::Bt | M::Bts | M::Btr | M::Btc)
            && i.op0_kind() == OpKind::Memory
            && i.op1_kind() == OpKind::Register
            && matches!(i.memory_segment(), Register::FS | Register::GS)
            && (i.memory_base().size() == 4 || i.memory_index().size() == 4)
    }) {
        return Some(Known::BitString);
    }
    if host == 1 && guest == 1 {
        let repeats = |i: Instruction| i.has_rep_prefix() || i.has_repne_prefix();
        return at(e.rip).is_some_and(repeats).then_some(Known::RepStep);
    }
    if host == 17 {
        return Some(Known::Alignment);
    }
    if host == 6 && guest == 13 && e.rip == got.rip && at(e.rip).is_none() {
        return Some(Known::TooLong);
    }
    if host == 19
        && e.rip != got.rip
        && at(e.rip).is_some_and(|i| i.mnemonic() == M::Vcvtps2ph)
        && e.mxcsr & 0x810 == 0x10
    {
        return Some(Known::ConvertTiny);
    }
    let any = |pass: &dyn Fn(M) -> bool| a.instructions.iter().any(|i| pass(i.mnemonic()));
    let in_memory = only(&|f| f.starts_with('['));
    if in_memory
        && (differences.len() == 1 && any(&|m| matches!(m, M::Xsave | M::Xsave64))
            || any(&|m| matches!(m, M::Xsavec | M::Xsavec64)))
    {
        return Some(Known::InUse);
    }
    let fetch = |o: &Outcome| {
        matches!(
            o.end,
            End::Exception {
                vector: 14,
                address: CODE_END,
                ..
            }
        )
    };
    if e.rip == got.rip && (fetch(e) && guest == 6 || fetch(got) && host == 6) {
        return Some(Known::InvalidAtEnd);
    }
    let restores = |m| {
        matches!(
            m,
            M::Xrstor | M::Xrstor64 | M::Xsave | M::Xsave64 | M::Xsavec | M::Xsavec64
        )
    };
    if (host == 14 && at(e.rip).is_some_and(|i| restores(i.mnemonic())))
        || (guest == 14 && at(got.rip).is_some_and(|i| restores(i.mnemonic())))
    {
        return Some(Known::LargeOperand);
    }
    let selector = |i: &Instruction| {
        matches!(i.mnemonic(), M::Iret | M::Iretd | M::Iretq)
            || i.op0_kind() == OpKind::Register && i.op0_register().is_segment_register()
    };
    if guest == 13 && at(got.rip).is_some_and(|i| selector(&i)) && (host != 14 || e.rip != got.rip)
    {
        return Some(Known::Selector);
    }
    let i: &Instruction = &at(e.rip)?;
    let m = i.mnemonic();
    if e.rip != got.rip {
        let branch = matches!(
            i.flow_control(),
            FlowControl::IndirectBranch | FlowControl::IndirectCall | FlowControl::Return
        );
        if host == 14 && matches!(m, M::Fxsave | M::Fxsave64) {
            return Some(Known::ImageEnd);
        }
        let wild = ((got.rip as i64) << 16 >> 16) as u64 != got.rip;
        return (branch && wild && host == 13 && guest == 13).then_some(Known::BranchTarget);
    }
    if page_fault
        && matches!(guest, 12..=14)
        && matches!(m, M::Cmpsb | M::Cmpsw | M::Cmpsd | M::Cmpsq)
    {
        return only(&|f| f == "end").then_some(Known::StringOrder);
    }
    if host == 14 && guest == 14 && i.memory_size().size() == 10 {
        return only(&|f| f.starts_with('[')).then_some(Known::TenBytes);
    }
    if (host == 12 || host == 13)
        && let End::Exception {
            vector: 14,
            address,
            ..
        } = &got.end
        && (0x7fff_ffff_f000..0x8000_0000_0000).contains(address)
    {
        return Some(Known::AcrossTheHole);
    }
    if host == 12 && guest == 13 && only(&|f| f == "end") {
        return Some(Known::StackSegment);
    }
    if page_fault && gather(m) {
        let mask = format!("ymm{}", i.op_register(2).number());
        let to = format!("ymm{}", i.op_register(0).number());
        let segment = host == 12 && guest == 13;
        return only(&|f| f == mask || f == to || f == "end" && segment)
            .then_some(Known::GatherMask);
    }
    if m == M::Vcvtps2ph && only(&|f| f == "mxcsr" || f == "end" && (host == 19 || host == 12)) {
        return Some(Known::ConvertStore);
    }
    if host == 19 && guest == 19 && only(&|f| f == "mxcsr") {
        let extra = e.mxcsr ^ got.mxcsr;
        let dot = matches!(m, M::Dpps | M::Dppd | M::Vdpps | M::Vdppd);
        return (extra == 0x20 || dot).then_some(Known::UnmaskedFlags);
    }
    if page_fault && (host == guest || host == 12 && guest == 13) {
        let stores_mm = (0..i.op_count())
            .any(|n| i.op_kind(n) == OpKind::Register && i.op_register(n).is_mm())
            && (i.op_register(0) == Register::None || m == M::Maskmovq);
        let end = host == 12 || m == M::Maskmovq;
        let x87 = |f: &str| f == "end" && end || f == "fsw" || f == "ftw" || f.starts_with("st");
        if stores_mm && e.x87.status & 0x3800 == 0 && only(&x87) {
            return Some(Known::MmxStore);
        }
        let masked = matches!(m, M::Maskmovq | M::Maskmovdqu | M::Vmaskmovdqu)
            || matches!(
                m,
                M::Vmaskmovps | M::Vmaskmovpd | M::Vpmaskmovd | M::Vpmaskmovq
            );
        if (masked || saves_state(m)) && host == 14 && only(&|f| f == "end") {
            return Some(Known::LargeOperand);
        }
    }
    None
}
