//! The built-in hypervisor: answers the exits of a process guest.
//!
//! It sees what a real one sees: the VMCB in plain DRAM, the shared window, and, for guests without
//! encrypted state, the registers. Under SEV-ES and SNP it learns only what the GHCB page says.

pub(crate) mod cost;
pub mod cpuid;
mod ghcb;
mod halt;
pub mod hostcall;
pub mod ids;
pub mod npt;
mod vfork;
pub mod window;

use std::collections::BTreeMap;
use std::fs::File;
use std::mem::offset_of;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use sevlab_arch::exit::ExitCode;
use sevlab_arch::rmp::{NpfError, RmpStatus, RmpUpdate};
use sevlab_arch::vmcb::{Control, Save};
use sevlab_arch::{Asid, Gpa, Spa};
use sevlab_cpu::state::gpr;
use sevlab_cpu::{SevMode, Vcpu};
use sevlab_memctl::{Domain, MemCtl, PageSize};

use crate::error::Error;
use crate::layout::{LARGE_PAGE, Layout};
use crate::simtime::SimTime;
use cpuid::CpuModel;
use ghcb::GhcbState;
pub use halt::halted;
use hostcall::HostCalls;
use npt::Npt;

/// Offset of the save area in the VMCB.
const SAVE: u64 = 0x400;

/// Exits by what caused them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Exits {
    /// By EXITCODE.
    pub codes: BTreeMap<u64, u64>,
    /// VMGEXITs by the GHCB's SW_EXITCODE; the MSR protocol is counted under 0.
    pub events: BTreeMap<u64, u64>,
}

impl Exits {
    /// Adds another vCPU's.
    pub fn add(&mut self, other: &Self) {
        for (code, n) in &other.codes {
            *self.codes.entry(*code).or_default() += n;
        }
        for (code, n) in &other.events {
            *self.events.entry(*code).or_default() += n;
        }
    }

    /// All exits.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.codes.values().sum()
    }
}

/// A guest's memory as the hypervisor manages it, for all its vCPUs.
pub struct GuestMemory {
    mem: Arc<MemCtl>,
    layout: Layout,
    mode: SevMode,
    asid: Asid,
    /// The guest's nested page tables.
    pub npt: Npt,
    /// SNP: which 2 MiB regions of private memory have been given to the guest. The others are, when it
    /// first asks for them.
    given: Vec<bool>,
    /// RMPUPDATEs since they were asked for.
    updates: u64,
}

/// The hypervisor's side of one vCPU.
pub struct Hypervisor {
    mem: Arc<MemCtl>,
    layout: Layout,
    mode: SevMode,
    cpu: usize,
    vmcb: Spa,
    memory: Arc<Mutex<GuestMemory>>,
    pub(crate) cpuid: Arc<CpuModel>,
    ghcb: GhcbState,
    /// To or from the other side of a vfork.
    clone_pipe: Option<File>,
    /// Pages that the clone gave with what it told last.
    given: Vec<u8>,
    /// The fault that was met last and needed nothing, and how often in a row.
    spurious: (Gpa, u32),
    /// SNP: save areas of vCPUs that the guest has created, by APIC id.
    created: BTreeMap<u32, Spa>,
    /// Proxied system calls.
    pub calls: HostCalls,
    /// The rest of the machine, where there is one.
    pub board: Option<Arc<dyn hostcall::Board>>,
    /// What happened so far.
    pub exits: Exits,
    /// The guest's clocks, where they are simulated.
    pub(crate) time: Option<Arc<SimTime>>,
    /// The vCPU has waited, and others may have run.
    pub(super) waited: bool,
}

impl Hypervisor {
    /// The hypervisor's side of the first vCPU of a guest, whose memory is mapped whole.
    ///
    /// # Errors
    /// [`Error::Npt`].
    pub fn new(
        mem: Arc<MemCtl>,
        layout: Layout,
        mode: SevMode,
        asid: Asid,
        cpuid: Arc<CpuModel>,
    ) -> Result<Self, Error> {
        let mut npt = Npt::new(Arc::clone(&mem), layout.tables.clone())?;
        npt.map_range(layout.private(), layout.guest)?;
        npt.map_range(layout.shared_window(), layout.shared)?;
        let regions = match mode {
            SevMode::Snp => layout.memory / LARGE_PAGE,
            _ => 0,
        };
        let memory = GuestMemory {
            mem,
            layout,
            mode,
            asid,
            npt,
            given: vec![false; regions as usize],
            updates: 0,
        };
        Self::for_cpu(Arc::new(Mutex::new(memory)), cpuid, 0)
    }

    /// The hypervisor's side of vCPU `cpu`.
    ///
    /// # Errors
    /// The vCPU's bounce area does not lie in DRAM.
    pub fn for_cpu(
        memory: Arc<Mutex<GuestMemory>>,
        cpuid: Arc<CpuModel>,
        cpu: usize,
    ) -> Result<Self, Error> {
        let (mem, layout, mode) = {
            let m = lock(&memory);
            (Arc::clone(&m.mem), m.layout.clone(), m.mode)
        };
        Ok(Self {
            calls: HostCalls::new(Arc::clone(&mem), layout.clone(), cpu)?,
            ghcb: GhcbState::new(mode, layout.port(cpu).ghcb),
            exits: Exits::default(),
            vmcb: layout.vmcb_of(cpu),
            cpu,
            mem,
            layout,
            mode,
            memory,
            cpuid,
            board: None,
            clone_pipe: None,
            given: Vec::new(),
            spurious: (Gpa(0), 0),
            created: BTreeMap::new(),
            time: None,
            waited: false,
        })
    }

    /// The vCPU's VMCB.
    #[must_use]
    pub fn vmcb(&self) -> Spa {
        self.vmcb
    }

    /// The part of the shared window that belongs to vCPU `cpu`.
    #[must_use]
    pub fn port(&self, cpu: usize) -> crate::layout::Port {
        self.layout.port(cpu)
    }

    /// The guest's memory.
    pub fn memory(&self) -> MutexGuard<'_, GuestMemory> {
        lock(&self.memory)
    }

    /// The same, to share.
    #[must_use]
    pub fn shared_memory(&self) -> Arc<Mutex<GuestMemory>> {
        Arc::clone(&self.memory)
    }

    /// SNP: the save area that the guest has created for `cpu`.
    pub(crate) fn take_created(&mut self, cpu: u32) -> Option<Spa> {
        self.created.remove(&cpu)
    }

    /// Answers the exit that the VMCB reports. `vcpu` holds what VMRUN does not switch.
    ///
    /// # Errors
    /// The guest can't go on.
    pub fn handle(&mut self, vcpu: &mut Vcpu) -> Result<(), Error> {
        let code = ExitCode(self.control(offset_of!(Control, exit_code))?);
        self.count(code);
        match code {
            ExitCode::VMGEXIT if self.mode.encrypted_state() => self.vmgexit(vcpu),
            ExitCode::NPF => {
                let error = self.control(offset_of!(Control, exit_info1))?;
                let gpa = Gpa(self.control(offset_of!(Control, exit_info2))?);
                self.nested_fault(vcpu, gpa, error)
            }
            ExitCode::VMMCALL if !self.mode.encrypted_state() => self.vmmcall(vcpu),
            ExitCode::CPUID if !self.mode.encrypted_state() => self.cpuid(vcpu),
            ExitCode::RDTSC | ExitCode::RDTSCP if !self.mode.encrypted_state() => {
                self.rdtsc(vcpu, code == ExitCode::RDTSCP)
            }
            code => Err(Error::Exit { code }),
        }
    }

    /// Counts an exit that nothing has to be done about.
    pub fn count(&mut self, code: ExitCode) {
        *self.exits.codes.entry(code.0).or_default() += 1;
    }

    // ---- the VMCB ----

    fn control(&self, offset: usize) -> Result<u64, Error> {
        let at = self.vmcb.plus(offset as u64);
        Ok(self.mem.read_u64(Domain::Shared, at)?)
    }

    fn set_control(&self, offset: usize, value: u64) -> Result<(), Error> {
        let at = self.vmcb.plus(offset as u64);
        Ok(self.mem.write_u64(Domain::Shared, at, value)?)
    }

    fn save(&self, offset: usize) -> Spa {
        self.vmcb.plus(SAVE + offset as u64)
    }

    fn rax(&self) -> Result<u64, Error> {
        let at = self.save(offset_of!(Save, rax));
        Ok(self.mem.read_u64(Domain::Shared, at)?)
    }

    fn set_rax(&self, value: u64) -> Result<(), Error> {
        let at = self.save(offset_of!(Save, rax));
        Ok(self.mem.write_u64(Domain::Shared, at, value)?)
    }

    /// Moves RIP behind the intercepted instruction.
    fn skip(&self) -> Result<(), Error> {
        let next = self.control(offset_of!(Control, next_rip))?;
        let at = self.save(offset_of!(Save, rip));
        Ok(self.mem.write_u64(Domain::Shared, at, next)?)
    }

    /// Has the next entry forget cached nested translations.
    fn flush_guest(&self) -> Result<(), Error> {
        let at = self.vmcb.plus(offset_of!(Control, tlb_control) as u64);
        Ok(self
            .mem
            .write(Domain::Shared, at, &[Control::TLB_FLUSH_ASID])?)
    }

    /// Undoes [`Hypervisor::flush_guest`] once an entry has done it.
    ///
    /// # Errors
    /// [`Error::Memory`].
    pub fn entered(&self) -> Result<(), Error> {
        let at = self.vmcb.plus(offset_of!(Control, tlb_control) as u64);
        let mut now = [0];
        self.mem.read(Domain::Shared, at, &mut now)?;
        if now[0] != Control::TLB_NOTHING {
            self.mem
                .write(Domain::Shared, at, &[Control::TLB_NOTHING])?;
        }
        Ok(())
    }

    // ---- intercepted instructions of guests without encrypted state ----

    fn vmmcall(&mut self, vcpu: &mut Vcpu) -> Result<(), Error> {
        let rax = self.rax()?;
        let result = if rax == hostcall::NUMBER {
            self.hypercall(vcpu, Gpa(vcpu.state.gpr[gpr::RBX as usize]))?
        } else {
            u64::MAX
        };
        self.set_rax(result)?;
        self.skip()
    }

    fn cpuid(&mut self, vcpu: &mut Vcpu) -> Result<(), Error> {
        let leaf = self.rax()? as u32;
        let regs = &mut vcpu.state.gpr;
        let [a, b, c, d] = self.cpuid.leaf(leaf, regs[gpr::RCX as usize] as u32);
        regs[gpr::RBX as usize] = u64::from(b);
        regs[gpr::RCX as usize] = u64::from(c);
        regs[gpr::RDX as usize] = u64::from(d);
        self.set_rax(u64::from(a))?;
        self.skip()
    }

    fn rdtsc(&mut self, vcpu: &mut Vcpu, with_aux: bool) -> Result<(), Error> {
        let tsc = host_tsc();
        let regs = &mut vcpu.state.gpr;
        regs[gpr::RDX as usize] = tsc >> 32;
        if with_aux {
            regs[gpr::RCX as usize] = 0;
        }
        self.set_rax(tsc & 0xffff_ffff)?;
        self.skip()
    }

    // ---- nested page faults and page states ----

    fn nested_fault(&mut self, vcpu: &mut Vcpu, gpa: Gpa, error: u64) -> Result<(), Error> {
        let resolved = self.memory().resolve(gpa, error)?;
        match resolved {
            Resolved::Given => {}
            Resolved::Changed => self.changed(vcpu)?,
            Resolved::Nothing => {
                // Another vCPU may have had the same fault, and this one an older view.
                let (last, times) = self.spurious;
                let times = if last == gpa { times + 1 } else { 1 };
                self.spurious = (gpa, times);
                if times > SPURIOUS || vcpu.cluster().vcpus() == 1 {
                    return Err(Error::NestedFault { gpa, error });
                }
                return self.flush_guest();
            }
        }
        self.spurious = (Gpa(0), 0);
        Ok(())
    }

    /// Nested tables or RMP have changed: no vCPU goes on with what it remembers of them.
    fn changed(&self, vcpu: &mut Vcpu) -> Result<(), Error> {
        vcpu.flush_nested_elsewhere();
        self.flush_guest()
    }
}

/// What a nested fault needed.
enum Resolved {
    /// A region that the guest did not have: now it has it.
    Given,
    /// Another size of page.
    Changed,
    /// Nothing that could be done.
    Nothing,
}

/// A guest may meet a fault that another vCPU's fault has resolved so often in a row.
const SPURIOUS: u32 = 8;

fn lock(memory: &Mutex<GuestMemory>) -> MutexGuard<'_, GuestMemory> {
    memory.lock().unwrap_or_else(PoisonError::into_inner)
}

impl GuestMemory {
    fn resolve(&mut self, gpa: Gpa, error: u64) -> Result<Resolved, Error> {
        let bits = NpfError::from_bits_retain(error);
        if self.mode != SevMode::Snp || !bits.contains(NpfError::RMP) {
            return Err(Error::NestedFault { gpa, error });
        }
        let Some((spa, leaf)) = self.npt.lookup(gpa)? else {
            return Err(Error::NestedFault { gpa, error });
        };
        if bits.contains(NpfError::ENC) && self.give_region(gpa)? {
            return Ok(Resolved::Given);
        }
        let entry = self.mem.rmp().lookup(spa);
        let large = entry.is_some_and(|e| e.assigned() && e.is_2m());
        // The only violation that is the hypervisor's to mend is a disagreement of page sizes.
        match (large, leaf) {
            (true, _) if bits.contains(NpfError::SIZEM) => self.smash(gpa)?,
            (true, PageSize::Size4K) => self.smash(gpa)?,
            (false, PageSize::Size2M) if bits.contains(NpfError::ENC) => {
                self.npt.split(gpa)?;
            }
            _ => return Ok(Resolved::Nothing),
        }
        Ok(Resolved::Changed)
    }

    /// Splits the 2 MiB page around `gpa` in the RMP and in the nested tables.
    fn smash(&mut self, gpa: Gpa) -> Result<(), Error> {
        let head = Gpa(gpa.0 & !(LARGE_PAGE - 1));
        let spa = self.layout.spa(head).ok_or(Error::NestedFault {
            gpa,
            error: NpfError::RMP.bits(),
        })?;
        let large = self
            .mem
            .rmp()
            .lookup(spa)
            .is_some_and(|e| e.assigned() && e.is_2m());
        if large {
            let status = self.mem.rmp().psmash(spa);
            rmp_result("PSMASH", head, status)?;
        }
        self.npt.split(gpa)?;
        Ok(())
    }

    /// Gives the guest the 2 MiB around `gpa`, if they are private memory that it never had. True if that
    /// is done now.
    fn give_region(&mut self, gpa: Gpa) -> Result<bool, Error> {
        let region = (gpa.0 / LARGE_PAGE) as usize;
        if self.given.get(region) != Some(&false) {
            return Ok(false);
        }
        let head = Gpa(gpa.0 & !(LARGE_PAGE - 1));
        self.assign(head, PageSize::Size2M, true, false)?;
        Ok(true)
    }

    /// Notes that the 2 MiB around `gpa` are given to the guest by whoever calls this.
    pub fn mark_given(&mut self, gpa: Gpa) {
        if let Some(given) = self.given.get_mut((gpa.0 / LARGE_PAGE) as usize) {
            *given = true;
        }
    }

    /// RMPUPDATE of a guest page: to the guest at its own address, or back to the hypervisor.
    ///
    /// # Errors
    /// [`Error::Rmp`].
    pub fn assign(
        &mut self,
        gpa: Gpa,
        size: PageSize,
        assigned: bool,
        immutable: bool,
    ) -> Result<(), Error> {
        let instruction = "RMPUPDATE";
        let Some(spa) = self.layout.spa(gpa) else {
            return Err(Error::Rmp {
                instruction,
                gpa,
                status: RmpStatus::FAIL_INPUT,
            });
        };
        match size {
            PageSize::Size4K => {
                self.give_region(gpa)?;
                self.smash_if_large(gpa, spa)?;
            }
            PageSize::Size2M => self.mark_given(gpa),
        }
        let update = RmpUpdate {
            gpa: if assigned { gpa.0 } else { 0 },
            assigned: u8::from(assigned),
            page_size: u8::from(size == PageSize::Size2M),
            immutable: u8::from(immutable),
            reserved: 0,
            asid: if assigned { self.asid.0 } else { 0 },
        };
        self.updates += 1;
        rmp_result(instruction, gpa, self.mem.rmp().rmpupdate(spa, &update))
    }

    /// How many pages have been given or taken since this was asked last.
    pub(crate) fn take_updates(&mut self) -> u64 {
        std::mem::take(&mut self.updates)
    }

    /// A 4 KiB page is about to differ from its neighbours.
    fn smash_if_large(&mut self, gpa: Gpa, spa: Spa) -> Result<(), Error> {
        let entry = self.mem.rmp().lookup(spa);
        if entry.is_some_and(|e| e.assigned() && e.is_2m()) {
            self.smash(gpa)
        } else {
            self.npt.split(gpa)?;
            Ok(())
        }
    }
}

/// A status of an RMP instruction as a result.
pub(crate) fn rmp_result(
    instruction: &'static str,
    gpa: Gpa,
    status: RmpStatus,
) -> Result<(), Error> {
    if status == RmpStatus::SUCCESS {
        Ok(())
    } else {
        Err(Error::Rmp {
            instruction,
            gpa,
            status,
        })
    }
}

/// The host's time-stamp counter, which is the guest's.
pub(crate) fn host_tsc() -> u64 {
    // A safe intrinsic: RDTSC is always there on x86-64 and touches no memory.
    #[allow(unsafe_code)]
    // SAFETY: see above.
    unsafe {
        std::arch::x86_64::_rdtsc()
    }
}

#[cfg(test)]
mod tests;
