//! VMRUN's consistency checks (APM vol. 2, 15.5.1), and what this processor can't run.

use sevlab_arch::vmcb::{Control, EventInjection, EventType, Intercepts2, Segment};

use super::EntryError;

const CR0_PE: u64 = 1 << 0;
const CR0_NW: u64 = 1 << 29;
const CR0_CD: u64 = 1 << 30;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const CR4_LA57: u64 = 1 << 12;
/// VME to PCE, OSFXSR, OSXMMEXCPT, UMIP, LA57, FSGSBASE, PCIDE, OSXSAVE, SMEP, SMAP, PKE, CET.
const CR4_KNOWN: u64 = 0x7ff | 1 << 11 | 1 << 12 | 1 << 16 | 1 << 17 | 1 << 18 | 0xf << 20;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;
const EFER_SVME: u64 = 1 << 12;
/// SCE, LME, LMA, NXE, SVME, LMSLE, FFXSR, TCE, MCOMMIT, INTWB, UAIE, AIBRSE.
const EFER_KNOWN: u64 = 0x1 | 0xfd00 | 1 << 17 | 1 << 18 | 1 << 20 | 1 << 21;

fn rule(broken: bool, error: EntryError) -> Result<(), EntryError> {
    if broken { Err(error) } else { Ok(()) }
}

pub(super) fn control(c: &Control) -> Result<(), EntryError> {
    let rule = |broken, reason| rule(broken, EntryError::Control { reason });
    rule(c.asid == 0, "ASID 0 is the hypervisor's")?;
    rule(
        c.intercept_misc2 & Intercepts2::VMRUN.bits() == 0,
        "the VMRUN intercept is clear",
    )?;
    let n = c.nested_control;
    let np = n & Control::NESTED_PAGING != 0;
    rule(
        n & Control::NESTED_SEV != 0 && !np,
        "SEV needs nested paging",
    )?;
    rule(
        n & Control::NESTED_SEV_ES != 0 && n & Control::NESTED_SEV == 0,
        "SEV-ES needs SEV",
    )?;
    rule(
        np && c.nested_cr3 & 0xfff0_0000_0000_0000 != 0,
        "nCR3 has reserved bits",
    )?;
    rule(
        !matches!(
            c.tlb_control,
            Control::TLB_NOTHING
                | Control::TLB_FLUSH_ALL
                | Control::TLB_FLUSH_ASID
                | Control::TLB_FLUSH_ASID_LOCAL
        ),
        "TLB_CONTROL is reserved",
    )?;
    let e = EventInjection(c.event_inj);
    rule(
        e.is_valid()
            && !(matches!(
                e.event_type(),
                EventType::INTR | EventType::NMI | EventType::SOFTWARE
            ) || (e.event_type() == EventType::EXCEPTION
                && e.vector() < 32
                && e.vector() != 2)),
        "EVENTINJ is not an event",
    )
}

pub(super) fn state(
    efer: u64,
    cr0: u64,
    cr4: u64,
    dr6: u64,
    dr7: u64,
    cs: u16,
) -> Result<(), EntryError> {
    let rule = |broken, reason| rule(broken, EntryError::State { reason });
    rule(efer & EFER_SVME == 0, "EFER.SVME is clear")?;
    rule(efer & !EFER_KNOWN != 0, "EFER has reserved bits")?;
    rule(
        cr0 & CR0_CD == 0 && cr0 & CR0_NW != 0,
        "CR0.NW without CR0.CD",
    )?;
    rule(cr0 >> 32 != 0, "CR0 has reserved bits")?;
    rule(cr4 & !CR4_KNOWN != 0, "CR4 has reserved bits")?;
    rule(dr6 >> 32 != 0, "DR6 has reserved bits")?;
    rule(dr7 >> 32 != 0, "DR7 has reserved bits")?;
    let long = efer & EFER_LME != 0 && cr0 & CR0_PG != 0;
    rule(long && cr4 & CR4_PAE == 0, "long mode without CR4.PAE")?;
    rule(long && cr0 & CR0_PE == 0, "long mode without CR0.PE")?;
    rule(
        long && cs & Segment::ATTR_L != 0 && cs & Segment::ATTR_DB != 0,
        "CS.L with CS.D",
    )?;
    // From here on what hardware runs and this processor does not.
    rule(
        efer & EFER_LMA == 0 || cs & Segment::ATTR_L == 0,
        "only 64-bit mode is implemented",
    )?;
    rule(cr4 & CR4_LA57 != 0, "5-level paging is not implemented")
}
