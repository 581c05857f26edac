//! Differences that are known and not failures: each with the reason, counted on its own in the summary.
//!
//! Some are the host's (what its manual leaves to the implementation, or its kernel's), some the guest's. An entry is as
//! narrow as can be, and goes when its reason does.

use crate::check::{Analysis, Difference, Sticky};
use crate::host::amd;
use crate::layout::CODE_END;
use crate::outcome::{End, Outcome};
use crate::policy::{Policy, policy};
use iced_x86::{Instruction, Mnemonic as M, OpKind, Register};

mod amd;

/// Why a difference is expected.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Known {
    /// The host raises sticky flags, or #XM, before the store faults.
    ConvertStore,
    /// The guest may report PE beside an unmasked OE or UE, and other flags for dot products.
    UnmaskedFlags,
    /// The host checks the address even if nothing is to be written (SDM: implementation-dependent).
    EmptyMask,
    /// The host has set TOP to 0 before an MMX store faults.
    MmxStore,
    /// Which byte of a large operand is touched first is up to the processor.
    LargeOperand,
    /// Which of two operands is read first is up to the processor.
    StringOrder,
    /// The host writes the first eight bytes of a ten-byte store whose other page faults.
    TenBytes,
    /// How many bytes it takes to see that they are no instruction is up to the processor.
    InvalidAtEnd,
    /// The guest has no descriptor tables.
    Selector,
    /// A component in its initial state may count as in use (SDM vol. 1, 13.6).
    InUse,
    /// An operation whose result nobody reads is not carried out, and MXCSR is stored.
    StickyStored,
    /// The host enables more state components than the guest has, so XRSTOR takes a header that names them.
    Components,
    /// Natively the bytes of an instruction that only the guest runs are not there, and the case reads its own code.
    OwnCode,
    /// What the guest has not, the process that runs the case natively may have: its stack is elsewhere each time.
    Process,
    /// Bytes in the middle of another instruction were run, and are one that the guest's hypervisor intercepts.
    Hidden,
    /// AMD's processors look for a canonical address before the base of FS or GS is added, too. The elements of a masked
    /// operand with a 32-bit address wrap at 4 GiB.
    AmdOffset,
    /// AMD's processors have another exception first: that of an operand that nothing is stored to, or of one whose end is not
    /// canonical.
    AmdOrder,
    /// AMD's processors look at the alignment of operands of 16 bytes and more under RFLAGS.AC, and before the page.
    AmdWide,
    /// AMD's processors ignore LOCK before VERR and VERW, and before MOV to CR0 it names CR8.
    AmdLock,
    /// A call to an address that is not canonical has not stored its return address on AMD's processors.
    AmdCall,
    /// SHA's operands need no alignment on AMD's processors.
    AmdAlignment,
    /// MOVSXD to 16 bits reads four bytes on AMD's processors.
    AmdWord,
    /// AMD's processors leave the mask elements of a gather that faults as they were, and what is beyond the vector.
    AmdGather,
    /// AMD's processors have the flags of the last comparison when a repeated one faults.
    AmdString,
    /// AMD's processors have a misaligned mode for SSE: bit 17 of MXCSR.
    AmdMisaligned,
}

/// All reasons with their words.
pub const REASONS: [(Known, &str); 25] = [
    (
        Known::ConvertStore,
        "host: VCVTPS2PH raises flags and #XM before its store faults",
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
        Known::StringOrder,
        "host: CMPS reads the other operand first",
    ),
    (
        Known::TenBytes,
        "host: a ten-byte store across pages that faults has written eight bytes",
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
    (
        Known::StickyStored,
        "jit-on: sticky flags of operations with dead results are missing from a stored MXCSR",
    ),
    (
        Known::Components,
        "host: XRSTOR takes a header with components that the guest lacks",
    ),
    (
        Known::OwnCode,
        "host: code that is read lacks the instruction that only the guest runs",
    ),
    (
        Known::Process,
        "host: the process has something of its own at an address that faults in the guest",
    ),
    (
        Known::Hidden,
        "guest: in the middle of an instruction begins another, which is intercepted",
    ),
    (
        Known::AmdOffset,
        "host, AMD: an address must be canonical without the segment's base, too",
    ),
    (
        Known::AmdOrder,
        "host, AMD: of two exceptions the other comes first",
    ),
    (
        Known::AmdWide,
        "host, AMD: operands of 16 bytes and more must be aligned under RFLAGS.AC",
    ),
    (
        Known::AmdLock,
        "host, AMD: LOCK is ignored where there can't be one",
    ),
    (
        Known::AmdCall,
        "host, AMD: a call that faults has not stored its return address",
    ),
    (
        Known::AmdAlignment,
        "host, AMD: operands of SHA need no alignment",
    ),
    (
        Known::AmdWord,
        "host, AMD: MOVSXD to 16 bits reads four bytes",
    ),
    (
        Known::AmdGather,
        "host, AMD: a gather that faults leaves mask elements as they were",
    ),
    (
        Known::AmdString,
        "host, AMD: a repeated comparison that faults has set flags",
    ),
    (Known::AmdMisaligned, "host, AMD: MXCSR has bit 17"),
];

impl Known {
    /// Its words.
    #[must_use]
    pub fn words(self) -> &'static str {
        REASONS[self as usize].1
    }
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

/// Whether it stores an MMX register.
fn stores_mm(i: &Instruction) -> bool {
    (0..i.op_count()).any(|n| i.op_kind(n) == OpKind::Register && i.op_register(n).is_mm())
        && (i.op_register(0) == Register::None || i.mnemonic() == M::Maskmovq)
}

/// Whether a field is one that TOP's being set to 0 changes.
fn is_x87(field: &str) -> bool {
    field == "fsw" || field == "ftw" || field.starts_with("st")
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
    let own = || amd().then(|| amd::reason(a, e, got, differences)).flatten();
    narrow(a, e, got, differences).or_else(own).or_else(|| {
        // A real descriptor's rights, then carried on in flags and registers.
        let looks = |i: &Instruction| matches!(i.mnemonic(), M::Lar | M::Lsl | M::Verr | M::Verw);
        a.instructions.iter().any(looks).then_some(Known::Selector)
    })
}

fn narrow(a: &Analysis, e: &Outcome, got: &Outcome, differences: &[Difference]) -> Option<Known> {
    let only = |pass: &dyn Fn(&str) -> bool| differences.iter().all(|d| pass(&d.field));
    if let End::Exception {
        vector: 14,
        address,
        ..
    } = got.end
        && got.end != e.end
        && crate::native::is_own(address)
    {
        return Some(Known::Process);
    }
    let hidden = a
        .instruction(got.rip)
        .filter(|_| a.position(got.rip) == a.instructions.len());
    if let (End::Intercept(..), Some(i)) = (&got.end, hidden)
        && matches!(policy(i.code()), Policy::Intercepted { .. })
    {
        return Some(Known::Hidden);
    }
    let host = vector(e)?;
    let page_fault = host == 14 || host == 12 || host == 13;
    let at = |rip| a.instruction(rip);
    if let Some(i) = at(e.rip)
        && page_fault
        && (e.rip != got.rip || vector(got) == Some(13) && only(&|f| f == "end"))
        && matches!(i.mnemonic(), M::Maskmovq | M::Maskmovdqu | M::Vmaskmovdqu)
    {
        return Some(Known::EmptyMask);
    }
    let guest = vector(got).unwrap_or(u8::MAX);
    if a.guest_only().is_some()
        && differences
            .iter()
            .all(|d| d.field.starts_with('[') && d.expected == "f4")
    {
        return Some(Known::OwnCode);
    }
    if guest == 13
        && e.rip != got.rip
        && at(got.rip).is_some_and(|i| matches!(i.mnemonic(), M::Xrstor | M::Xrstor64))
    {
        return Some(Known::Components);
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
        return None;
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
    if m == M::Vcvtps2ph && only(&|f| f == "mxcsr" || f == "end" && (host == 19 || host == 12)) {
        return Some(Known::ConvertStore);
    }
    if host == 19 && guest == 19 && only(&|f| f == "mxcsr") {
        let extra = e.mxcsr ^ got.mxcsr;
        let dot = matches!(m, M::Dpps | M::Dppd | M::Vdpps | M::Vdppd);
        return (extra == 0x20 || dot).then_some(Known::UnmaskedFlags);
    }
    if page_fault && (host == guest || host == 12 && guest == 13) {
        let end = host == 12 || m == M::Maskmovq;
        if stores_mm(i) && e.x87.status & 0x3800 == 0 && only(&|f| f == "end" && end || is_x87(f)) {
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
