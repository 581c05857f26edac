//! The world switch: VMRUN's two halves, by the APM's formats (APM vol. 2, 15.5, 15.35, 15.36.12).
//!
//! [`enter`] reads the VMCB's control area from plain DRAM, checks it as VMRUN does, and loads the
//! guest's state; [`leave`] stores it and writes the exit. Where the state is depends on the mode:
//!
//! | mode | save area | what the hypervisor finds in the vCPU afterwards |
//! |---|---|---|
//! | Off, SEV | the VMCB's own, in plain DRAM | all that VMRUN does not switch: GPRs but RAX and RSP, FP state |
//! | ES, SNP | the VMSA, encrypted under the guest's key | zeros |
//!
//! Under ES and SNP the processor keeps, where no bus reaches, what it last wrote to each VMSA, and
//! compares it at the next entry: one changed bit, in the page or (through another key) in what it
//! decrypts to, makes VMRUN fail. Hardware keeps a digest; a copy can also say *where* the change is.
//!
//! The execution engine stores x87, MXCSR and flags into [`CpuState`] before [`leave`], and takes them
//! from there after [`enter`]. Not here: which instruction exits with what (the guest half's), event
//! delivery (the pending event is in [`Vcpu::pending_event`]), and VMLOAD/VMSAVE as separate steps
//! (FS, GS, TR, LDTR and the syscall MSRs are switched with the rest).

mod check;
mod save;
mod vault;
mod vmsa;

use sevlab_arch::exit::ExitCode;
use sevlab_arch::vmcb::{Control, EventInjection, Save};
use sevlab_arch::vmsa::{SevFeatures, Vmsa};
use sevlab_arch::{Asid, Gpa, Spa};
use sevlab_memctl::Domain;
use zerocopy::IntoBytes;

use crate::flags::LazyFlags;
use crate::state::{CpuState, FxImage, Lane, Segment, SystemRegs};
use crate::vcpu::{SevMode, Vcpu};
use vault::Vault;

/// EXITCODE of a VMRUN that failed its checks.
pub const VMEXIT_INVALID: u64 = ExitCode::INVALID.0;

/// Bytes of the control area that have a meaning to the processor.
const CONTROL_BYTES: usize = 0x148;
/// Bytes of the VMCB's save area that are loaded and stored.
const SAVE_BYTES: usize = 0x2e8;
/// Where the save area is in the VMCB.
const SAVE_OFFSET: u64 = 0x400;

/// Why VMRUN failed. All but [`EntryError::Address`] also give the hypervisor [`VMEXIT_INVALID`].
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum EntryError {
    /// The VMCB is not at a page of DRAM (hardware: #GP of VMRUN).
    #[error("VMCB at {spa} is not an aligned page of DRAM")]
    Address {
        /// Its address.
        spa: Spa,
    },
    /// The control area breaks a rule.
    #[error("VMCB control area: {reason}")]
    Control {
        /// The rule.
        reason: &'static str,
    },
    /// The save area breaks a rule.
    #[error("save area: {reason}")]
    State {
        /// The rule.
        reason: &'static str,
    },
    /// The processor has never seen this VMSA: no launch or RMPADJUST made it.
    #[error("VMSA at {spa} was not installed by the firmware")]
    NotInstalled {
        /// Its address.
        spa: Spa,
    },
    /// The VMSA is not what the processor last wrote.
    #[error("VMSA at {spa} was changed at offset {offset:#x} ({region})")]
    Integrity {
        /// Its address.
        spa: Spa,
        /// The first changed byte. In DRAM, so a cipher block covers 16 bytes around it.
        offset: usize,
        /// What lies there.
        region: &'static str,
    },
    /// The RMP does not mark the page as a VMSA of this guest.
    #[error("RMP does not mark {spa} as a VMSA of {asid}")]
    NotVmsaPage {
        /// Its address.
        spa: Spa,
        /// The guest.
        asid: Asid,
    },
    /// `leave` without a running guest, or with another VMCB.
    #[error("no guest runs on VMCB {spa}")]
    NotRunning {
        /// The VMCB named.
        spa: Spa,
    },
    /// The memory controller failed.
    #[error(transparent)]
    Memory(#[from] sevlab_memctl::Error),
}

/// A #VMEXIT, as the VMCB reports it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct VmExit {
    /// EXITCODE.
    pub code: u64,
    /// EXITINFO1.
    pub info1: u64,
    /// EXITINFO2.
    pub info2: u64,
    /// EXITINTINFO: the event whose delivery was intercepted.
    pub int_info: u64,
    /// nRIP; reported only without encrypted state.
    pub next_rip: u64,
    /// Bytes of the instruction, for decode assist; reported only without encryption.
    pub insn: [u8; 15],
    /// How many of them.
    pub insn_len: u8,
}

/// What decides which of the processor's cached translations hold, kept while the hypervisor runs.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Space {
    asid: Asid,
    mode: SevMode,
    vmpl: u8,
    ncr3: Option<Spa>,
    cr3: u64,
    cr0: u64,
    cr4: u64,
    efer: u64,
    user: bool,
}

/// The world switch's own storage in a vCPU.
#[derive(Default)]
pub(crate) struct World {
    /// The VMCB of the guest that is running.
    running: Option<Spa>,
    vmsa_spa: Spa,
    /// The control area as it was at entry.
    control: Control,
    /// The save areas as they were at entry: the fields that [`CpuState`] has no place for pass
    /// through unchanged.
    save: Save,
    vmsa: Vmsa,
    space: Option<Space>,
    vault: Vault,
}

/// VMRUN, first half: checks the VMCB at `vmcb` and loads the guest's state into `vcpu`.
///
/// # Errors
/// See [`EntryError`]. The vCPU's state is unchanged then, and EXITCODE is [`VMEXIT_INVALID`].
pub fn enter(vcpu: &mut Vcpu, vmcb: Spa) -> Result<(), EntryError> {
    if vmcb.offset() != 0 || vmcb.0 >= vcpu.mem.size() {
        return Err(EntryError::Address { spa: vmcb });
    }
    let result = try_enter(vcpu, vmcb);
    if result.is_err() {
        let exit = [VMEXIT_INVALID, 0, 0, 0];
        vcpu.mem
            .write(Domain::Shared, vmcb.plus(0x70), exit.as_bytes())?;
    }
    result
}

fn try_enter(vcpu: &mut Vcpu, vmcb: Spa) -> Result<(), EntryError> {
    let mut world = vcpu.world.take().unwrap_or_default();
    let result = load(vcpu, &mut world, vmcb);
    vcpu.world = Some(world);
    result
}

fn load(vcpu: &mut Vcpu, world: &mut World, vmcb: Spa) -> Result<(), EntryError> {
    vcpu.mem.read(
        Domain::Shared,
        vmcb,
        &mut world.control.as_mut_bytes()[..CONTROL_BYTES],
    )?;
    let control = world.control;
    check::control(&control)?;
    let nested = control.nested_control;
    let asid = Asid(control.asid);
    let ncr3 = (nested & Control::NESTED_PAGING != 0).then_some(Spa(control.nested_cr3));
    let sev = nested & Control::NESTED_SEV != 0;
    let space;
    if sev && nested & Control::NESTED_SEV_ES != 0 {
        let spa = Spa(control.vmsa_pa & !vcpu.c_bit_mask());
        if spa.offset() != 0 || spa.0 >= vcpu.mem.size() {
            return Err(EntryError::Control {
                reason: "VMSA pointer is not an aligned page of DRAM",
            });
        }
        let snp_configured = vcpu.config_snp;
        if snp_configured {
            vault::check_rmp(&vcpu.mem, asid, spa)?;
        }
        world
            .vault
            .open(&vcpu.mem, asid, spa, snp_configured, &mut world.vmsa)?;
        let v = &world.vmsa;
        let features = SevFeatures::from_bits_retain(v.sev_features);
        let snp = features.contains(SevFeatures::SNP_ACTIVE);
        if snp != snp_configured {
            return Err(EntryError::State {
                reason: "SNP_ACTIVE in the VMSA does not fit the guest's context",
            });
        }
        if control.allowed_sev_features & Control::ALLOWED_SEV_FEATURES_VALID != 0
            && v.sev_features & !control.allowed_sev_features != 0
        {
            return Err(EntryError::State {
                reason: "SEV features that the VMCB does not allow",
            });
        }
        check::state(v.efer, v.cr0, v.cr4, v.dr6, v.dr7, v.cs.attributes)?;
        space = Space {
            asid,
            mode: if snp { SevMode::Snp } else { SevMode::Es },
            vmpl: v.vmpl,
            ncr3,
            cr3: v.cr3,
            cr0: v.cr0,
            cr4: v.cr4,
            efer: v.efer,
            user: v.cpl == 3,
        };
        vmsa::load(&mut vcpu.state, v);
        let s = &mut vcpu.state.sys;
        s.ghcb = control.ghcb_gpa;
        // SEV, SEV-ES, and the features two bits up, where SNP_ACTIVE is bit 2.
        s.sev_status = 3 | v.sev_features << SevFeatures::SEV_STATUS_SHIFT;
        if !features.contains(SevFeatures::SECURE_TSC) {
            s.tsc_offset = control.tsc_offset;
        }
        world.vmsa_spa = spa;
    } else {
        vcpu.mem.read(
            Domain::Shared,
            vmcb.plus(SAVE_OFFSET),
            &mut world.save.as_mut_bytes()[..SAVE_BYTES],
        )?;
        let v = &world.save;
        check::state(v.efer, v.cr0, v.cr4, v.dr6, v.dr7, v.cs.attributes)?;
        space = Space {
            asid,
            mode: if sev { SevMode::Sev } else { SevMode::Off },
            vmpl: 0,
            ncr3,
            cr3: v.cr3,
            cr0: v.cr0,
            cr4: v.cr4,
            efer: v.efer,
            user: v.cpl == 3,
        };
        save::load(&mut vcpu.state, v);
        vcpu.state.sys.sev_status = u64::from(sev);
        vcpu.state.sys.tsc_offset = control.tsc_offset;
    }
    vcpu.state.sys.cr8 = u64::from(control.int_control & Control::V_TPR);
    vcpu.asid = space.asid;
    vcpu.mode = space.mode;
    vcpu.vmpl = space.vmpl;
    vcpu.ncr3 = space.ncr3;
    vcpu.pending_event = EventInjection(control.event_inj);
    vcpu.counters.entries += 1;
    if control.tlb_control != Control::TLB_NOTHING {
        // What the hypervisor takes away it closes in the view by itself.
        vcpu.forget_nested();
    }
    if let Some(old) = world.space.replace(space) {
        invalidate(vcpu, &old, &space);
    } else {
        // A new vCPU: what others have in the view is theirs.
        vcpu.forget_nested();
    }
    world.running = Some(vmcb);
    Ok(())
}

/// Forgets cached translations that the change from `old` to `new` makes wrong.
fn invalidate(vcpu: &mut Vcpu, old: &Space, new: &Space) {
    if old == new {
        return;
    }
    if (old.asid, old.mode, old.ncr3) != (new.asid, new.mode, new.ncr3) {
        vcpu.flush_nested();
        vcpu.drop_all_code();
    } else if old.cr3 != new.cr3 {
        vcpu.set_cr3(new.cr3);
    } else {
        vcpu.flush_tlb();
    }
}

/// #VMEXIT: stores the guest's state, reports `exit` in the VMCB's control area, and under ES and SNP
/// wipes the register file.
///
/// # Errors
/// [`EntryError::NotRunning`], [`EntryError::Memory`].
pub fn leave(vcpu: &mut Vcpu, vmcb: Spa, exit: &VmExit) -> Result<(), EntryError> {
    let mut world = vcpu.world.take().unwrap_or_default();
    let result = store(vcpu, &mut world, vmcb, exit);
    vcpu.world = Some(world);
    result
}

fn store(vcpu: &mut Vcpu, world: &mut World, vmcb: Spa, exit: &VmExit) -> Result<(), EntryError> {
    if world.running != Some(vmcb) {
        return Err(EntryError::NotRunning { spa: vmcb });
    }
    let s = &vcpu.state;
    // What the guest may have changed in the meantime, so that the next entry compares with it.
    world.space = Some(Space {
        asid: vcpu.asid,
        mode: vcpu.mode,
        vmpl: vcpu.vmpl,
        ncr3: vcpu.ncr3,
        cr3: s.sys.cr3,
        cr0: s.sys.cr0,
        cr4: s.sys.cr4,
        efer: s.sys.efer,
        user: s.cpl == 3,
    });
    let encrypted_state = vcpu.mode.encrypted_state();
    let control = &mut world.control;
    control.int_control =
        (control.int_control & !Control::V_TPR) | (s.sys.cr8 as u32 & Control::V_TPR);
    control.int_state &= !Control::INT_STATE_GUEST_MASK;
    if encrypted_state && s.rflags & RFLAGS_IF != 0 {
        control.int_state |= Control::INT_STATE_GUEST_MASK;
    }
    control.exit_code = exit.code;
    control.exit_info1 = exit.info1;
    control.exit_info2 = exit.info2;
    control.exit_int_info = exit.int_info;
    control.event_inj &= !EventInjection::VALID;
    control.next_rip = if encrypted_state { 0 } else { exit.next_rip };
    let visible = !vcpu.mode.encrypted();
    control.insn_len = if visible { exit.insn_len } else { 0 };
    control.insn_bytes = if visible { exit.insn } else { [0; 15] };
    if encrypted_state {
        control.ghcb_gpa = s.sys.ghcb;
        control.guest_sev_features = world.vmsa.sev_features;
        vmsa::store(s, &mut world.vmsa);
        world.vmsa.vmpl = vcpu.vmpl;
        world
            .vault
            .seal(&vcpu.mem, vcpu.asid, world.vmsa_spa, &world.vmsa)?;
    } else {
        save::store(s, &mut world.save);
        vcpu.mem.write(
            Domain::Shared,
            vmcb.plus(SAVE_OFFSET),
            &world.save.as_bytes()[..SAVE_BYTES],
        )?;
    }
    // Only the fields that #VMEXIT writes: the hypervisor may have changed others meanwhile.
    let bytes = world.control.as_bytes();
    for part in [0x60..0x90, 0xa0..0xb0, 0xc8..0xe0, 0x140..0x148] {
        vcpu.mem
            .write(Domain::Shared, vmcb.plus(part.start as u64), &bytes[part])?;
    }
    if encrypted_state {
        scrub(&mut vcpu.state);
    }
    vcpu.pending_event = EventInjection::default();
    world.running = None;
    Ok(())
}

/// A save area for a vCPU that is to start in the state in which `vcpu` is.
#[must_use]
pub fn image_of(vcpu: &Vcpu) -> Box<Vmsa> {
    let mut image = Box::new(Vmsa::default());
    vmsa::store(&vcpu.state, &mut image);
    image.vmpl = vcpu.vmpl;
    if vcpu.mode == SevMode::Snp {
        image.sev_features = SevFeatures::SNP_ACTIVE.bits();
    }
    image
}

/// Sets the registers of a vCPU without encrypted state, and the save area in the VMCB at `vmcb`, as
/// `image` says: what a hypervisor does before the first VMRUN.
///
/// # Errors
/// The VMCB is not in DRAM.
pub fn load_registers(
    vcpu: &mut Vcpu,
    vmcb: Spa,
    image: &Vmsa,
) -> Result<(), sevlab_memctl::Error> {
    vmsa::load(&mut vcpu.state, image);
    let mut area = Save::default();
    save::store(&vcpu.state, &mut area);
    vcpu.mem.write(
        Domain::Shared,
        vmcb.plus(SAVE_OFFSET),
        &area.as_bytes()[..SAVE_BYTES],
    )
}

const RFLAGS_IF: u64 = 1 << 9;

/// Leaves nothing of the guest in the register file. What belongs to the engines stays: `tlb`,
/// `exit_request`, `retired`, what a machine model keeps, and `engine`, which holds addresses and slots, not guest values.
fn scrub(s: &mut CpuState) {
    s.gpr = [0; 16];
    s.rip = 0;
    s.cc = LazyFlags::explicit(0);
    s.rflags = 2;
    s.mxcsr = 0x1f80;
    s.xmm = [Lane::default(); 16];
    s.ymmh = [Lane::default(); 16];
    s.seg = [Segment::default(); 6];
    s.ldtr = Segment::default();
    s.tr = Segment::default();
    s.cpl = 0;
    s.fx = FxImage([0; 512]);
    s.scratch = FxImage([0; 512]);
    s.sys = SystemRegs::default();
}

impl Vcpu {
    /// Whether a guest runs: between [`enter`] and [`leave`].
    #[must_use]
    pub fn in_guest(&self) -> bool {
        self.world.as_ref().is_some_and(|w| w.running.is_some())
    }

    /// Tells the processor that the firmware has made the VMSA at `spa` for this vCPU's ASID (or the
    /// guest has, with RMPADJUST): from now on no bit of it may change but by the processor.
    ///
    /// # Errors
    /// [`sevlab_memctl::Error`] if the page is not there or the ASID has no key.
    pub fn vmsa_installed(&mut self, spa: Spa) -> Result<(), sevlab_memctl::Error> {
        let world = self.world.get_or_insert_default();
        world.vault.install(&self.mem, self.asid, spa)
    }

    /// The GHCB's guest physical address, as the guest set it.
    #[must_use]
    pub fn ghcb(&self) -> Gpa {
        Gpa(self.state.sys.ghcb)
    }
}
