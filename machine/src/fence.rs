//! The guest half's way out: exits as a guest of each mode makes them.
//!
//! Without encrypted state an exit is the intercepted instruction itself, with its registers. Under
//! SEV-ES and SNP it is an event in the GHCB page and VMGEXIT. What comes back is not trusted: it goes
//! through the checks of the protocol's guest half, and the guest kernel checks the rest.

use std::ptr::NonNull;
use std::sync::{Arc, Mutex, PoisonError};

use corosensei::Yielder;
use sevlab_arch::exit::ExitCode;
use sevlab_arch::rmp::{RmpStatus, VmplPerms};
use sevlab_arch::vmsa::SevFeatures;
use sevlab_arch::{Asid, Gpa, PAGE_SIZE, Spa};
use sevlab_cpu::mmu::npf;
use sevlab_cpu::model::Cause;
use sevlab_cpu::svm::VmExit;
use sevlab_cpu::{Access, SevMode, Stop, Vcpu};
use sevlab_ghcb::guest::{self, Session};
use sevlab_ghcb::msr::{MsrRequest, MsrResponse};
use sevlab_ghcb::psc::{PscEntry, PscList, PscOperation};
use sevlab_ghcb::{
    ApCreation, ApOperation, Ghcb, HvFeatures, Hypercall, Request, Response, Scratch,
};
use sevlab_memctl::{PageSize, Rmp, RmpAdjust, RmpFault};
use zerocopy::{FromZeros, IntoBytes};

use crate::hv::cost::charge;
use crate::hv::cpuid::C_BIT;
use crate::hv::hostcall;
use crate::kernel::Error;
use crate::kernel::outside::{HostCall, Outside, pager_part};
use crate::layout::{LARGE_PAGE, Layout};

/// Small pages in a large one.
const LARGE: u64 = LARGE_PAGE / PAGE_SIZE;
/// What stands in a request block for a result until there is one. No system call returns it.
const UNANSWERED: i64 = i64::MIN;
/// The lowest result of a system call: `-MAX_ERRNO`.
const LOWEST: i64 = -4095;
/// How often an access is tried again after a nested fault.
const TRIES: usize = 4;

/// An exit on its way to the hypervisor.
pub(crate) struct GuestExit {
    /// The vCPU, lent to the hypervisor until the guest is resumed.
    pub(crate) vcpu: NonNull<Vcpu>,
    /// What happened.
    pub(crate) exit: VmExit,
}

/// Where the guest half leaves for the hypervisor, and what needs nothing else.
struct Port<'y>(&'y Yielder<(), GuestExit>);

/// The guest side of the fence.
pub(crate) struct Fence<'y> {
    port: Port<'y>,
    mode: SevMode,
    asid: Asid,
    ghcb_gpa: Gpa,
    request_gpa: Gpa,
    bounce_gpa: Gpa,
    bounce_len: usize,
    session: Option<Session>,
    page: Box<Ghcb>,
    regions: Arc<Mutex<Regions>>,
}

/// Which 2 MiB regions hold pages that the launch validated one by one, and which were validated whole.
pub(crate) struct Regions {
    launched: Vec<bool>,
    whole: Vec<bool>,
}

impl Regions {
    /// The regions of `layout`, with the launch's pages in `pages`.
    pub(crate) fn new(layout: &Layout, pages: impl Iterator<Item = Gpa>) -> Self {
        let count = (layout.memory / LARGE_PAGE) as usize;
        let mut launched = vec![false; count];
        for gpa in pages {
            if let Some(region) = launched.get_mut((gpa.0 / LARGE_PAGE) as usize) {
                *region = true;
            }
        }
        Self {
            launched,
            whole: vec![false; count],
        }
    }
}

impl Port<'_> {
    fn exit(&self, vcpu: &mut Vcpu, exit: VmExit) {
        self.0.suspend(GuestExit {
            vcpu: NonNull::from(vcpu),
            exit,
        });
    }

    /// #NPF: the hypervisor maps what is missing, or ends the guest.
    fn nested_fault(&self, vcpu: &mut Vcpu, gpa: Gpa, error: u64) {
        let exit = VmExit {
            code: ExitCode::NPF.0,
            info1: error,
            info2: gpa.0,
            next_rip: vcpu.state.rip,
            ..VmExit::default()
        };
        self.exit(vcpu, exit);
    }

    /// An access to shared memory, tried again after nested faults.
    fn access(
        &self,
        vcpu: &mut Vcpu,
        mut access: impl FnMut(&mut Vcpu) -> Result<(), Stop>,
    ) -> Result<(), Error> {
        let mut tries = 0;
        loop {
            match access(vcpu) {
                Ok(()) => return Ok(()),
                Err(Stop::NestedFault { gpa, error }) if tries < TRIES => {
                    tries += 1;
                    self.nested_fault(vcpu, gpa, error);
                }
                Err(Stop::NestedFault { gpa, error }) => {
                    return Err(Error::NotMapped { gpa, error });
                }
                Err(Stop::Host(e)) => return Err(e.into()),
                Err(stop) => {
                    return Err(Error::UnexpectedStop {
                        during: "accessing shared memory",
                        stop: format!("{stop:?}"),
                    });
                }
            }
        }
    }

    fn write(&self, vcpu: &mut Vcpu, gpa: Gpa, data: &[u8]) -> Result<(), Error> {
        self.access(vcpu, |vcpu| vcpu.write_gpa(gpa, false, data))
    }

    fn read(&self, vcpu: &mut Vcpu, gpa: Gpa, out: &mut [u8]) -> Result<(), Error> {
        self.access(vcpu, |vcpu| vcpu.read_gpa(gpa, false, out))
    }
}

impl<'y> Fence<'y> {
    /// A fence for a guest in `mode`; it has not talked to the hypervisor yet.
    pub(crate) fn new(
        yielder: &'y Yielder<(), GuestExit>,
        mode: SevMode,
        asid: Asid,
        port: crate::layout::Port,
        regions: Arc<Mutex<Regions>>,
    ) -> Self {
        Self {
            port: Port(yielder),
            mode,
            asid,
            ghcb_gpa: port.ghcb,
            request_gpa: port.request,
            bounce_gpa: port.bounce,
            bounce_len: port.bounce_len as usize,
            session: None,
            page: Box::new(Ghcb::new_zeroed()),
            regions,
        }
    }

    /// What a guest with encrypted state does first: agrees on a protocol version, checks the
    /// C-bit's position and the features, and registers its GHCB page.
    ///
    /// # Errors
    /// [`Error::Protocol`].
    pub(crate) fn boot(&mut self, vcpu: &mut Vcpu) -> Result<(), Error> {
        if !self.mode.encrypted_state() {
            return Ok(());
        }
        let MsrResponse::SevInfo { max, min, c_bit } = self.msr(vcpu, &MsrRequest::SevInfo)? else {
            return Err(protocol("SEV_INFO was not answered"));
        };
        let version =
            guest::negotiate(min, max).ok_or_else(|| protocol("no common GHCB version"))?;
        if u32::from(c_bit) != C_BIT {
            return Err(protocol("the C-bit is not where CPUID says"));
        }
        if self.mode == SevMode::Snp {
            match self.msr(vcpu, &MsrRequest::HvFeatures)? {
                MsrResponse::HvFeatures(f) if f.contains(HvFeatures::SNP) && version >= 2 => {}
                _ => return Err(protocol("the hypervisor does not support SNP")),
            }
            let gpa = self.ghcb_gpa;
            match self.msr(vcpu, &MsrRequest::RegisterGpa(gpa))? {
                MsrResponse::RegisterGpa(Some(got)) if got == gpa => {}
                _ => return Err(protocol("the GHCB page could not be registered")),
            }
        }
        vcpu.state.sys.ghcb = MsrRequest::Page(self.ghcb_gpa).encode();
        self.session = Some(Session {
            version,
            ghcb: self.ghcb_gpa,
        });
        Ok(())
    }

    // ---- exits ----

    fn vmgexit(&mut self, vcpu: &mut Vcpu) {
        let exit = VmExit {
            code: ExitCode::VMGEXIT.0,
            ..VmExit::default()
        };
        self.port.exit(vcpu, exit);
    }

    /// One exchange of the GHCB MSR protocol.
    fn msr(&mut self, vcpu: &mut Vcpu, request: &MsrRequest) -> Result<MsrResponse, Error> {
        let old = vcpu.state.sys.ghcb;
        vcpu.state.sys.ghcb = request.encode();
        self.vmgexit(vcpu);
        let value = vcpu.state.sys.ghcb;
        vcpu.state.sys.ghcb = old;
        request.finish(value).map_err(|e| protocol(&e.to_string()))
    }

    /// One event through the GHCB page. The page's shared buffer is what `self.page` holds.
    fn event(
        &mut self,
        vcpu: &mut Vcpu,
        session: Session,
        request: &Request,
    ) -> Result<Response, Error> {
        request.fill(&mut self.page, &session);
        let gpa = session.ghcb;
        self.port.write(vcpu, gpa, self.page.as_bytes())?;
        self.vmgexit(vcpu);
        self.port.read(vcpu, gpa, self.page.as_mut_bytes())?;
        request
            .finish(&self.page)
            .map_err(|e| protocol(&e.to_string()))
    }

    /// The intercept of an instruction of `len` bytes, executed by the guest kernel: RAX, RCX, RDX and
    /// RBX in and out. The program's own registers are put back.
    fn intercept(
        &mut self,
        vcpu: &mut Vcpu,
        code: ExitCode,
        len: u64,
        input: [u64; 4],
    ) -> [u64; 4] {
        let saved = vcpu.state.gpr;
        let rip = vcpu.state.rip;
        vcpu.state.gpr[..4].copy_from_slice(&input);
        let exit = VmExit {
            code: code.0,
            next_rip: rip.wrapping_add(len),
            ..VmExit::default()
        };
        self.port.exit(vcpu, exit);
        let mut out = [0; 4];
        out.copy_from_slice(&vcpu.state.gpr[..4]);
        vcpu.state.gpr = saved;
        vcpu.state.rip = rip;
        out
    }

    // ---- shared memory ----

    fn bounce(&self, off: usize, len: usize) -> Result<Gpa, Error> {
        match off.checked_add(len) {
            Some(end) if end <= self.bounce_len => Ok(self.bounce_gpa.plus(off as u64)),
            _ => Err(protocol("an access leaves the bounce area")),
        }
    }

    // ---- page validation ----

    /// An instruction on the RMP entry of `gpa`'s page, again after nested faults until it gives a result.
    fn on_rmp<R>(
        &mut self,
        vcpu: &mut Vcpu,
        instruction: &'static str,
        gpa: Gpa,
        run: impl Fn(&Rmp, Spa) -> Result<R, RmpFault>,
    ) -> Result<R, Error> {
        for _ in 0..TRIES {
            let spa = match vcpu.gpa_to_spa(gpa, false, Access::Read) {
                Ok(spa) => spa,
                Err(Stop::NestedFault { gpa, error }) => {
                    self.port.nested_fault(vcpu, gpa, error);
                    continue;
                }
                Err(stop) => {
                    return Err(Error::UnexpectedStop {
                        during: instruction,
                        stop: format!("{stop:?}"),
                    });
                }
            };
            let mem = vcpu.mem.clone();
            let cause = match instruction {
                "PVALIDATE" => Cause::Pvalidate,
                _ => Cause::Rmpadjust,
            };
            match run(mem.rmp(), spa) {
                Ok(result) => {
                    charge(vcpu, cause, 1);
                    return Ok(result);
                }
                Err(fault) => self.port.nested_fault(vcpu, gpa, fault.npf_bits()),
            }
        }
        Err(protocol(&format!("{instruction} of {gpa} keeps faulting")))
    }

    /// PVALIDATE of one page.
    fn pvalidate(
        &mut self,
        vcpu: &mut Vcpu,
        gpa: Gpa,
        size: PageSize,
        validate: bool,
    ) -> Result<(), Error> {
        let asid = self.asid;
        let done = self.on_rmp(vcpu, "PVALIDATE", gpa, |rmp, spa| {
            rmp.pvalidate(asid, gpa, spa, size, validate)
        })?;
        if done.status != RmpStatus::SUCCESS {
            return Err(protocol(&format!("PVALIDATE of {gpa}: {}", done.status)));
        }
        // A page that changed behind our back: the hypervisor remapped it.
        if done.unchanged {
            return Err(protocol(&format!("PVALIDATE of {gpa} changed nothing")));
        }
        Ok(())
    }

    /// RMPADJUST of one page: a save area or not.
    fn rmpadjust(&mut self, vcpu: &mut Vcpu, gpa: Gpa, vmsa: bool) -> Result<(), Error> {
        let adjust = RmpAdjust {
            target_vmpl: 1,
            perms: VmplPerms::empty(),
            vmsa,
        };
        let asid = self.asid;
        let status = self.on_rmp(vcpu, "RMPADJUST", gpa, |rmp, spa| {
            rmp.rmpadjust(asid, gpa, spa, PageSize::Size4K, 0, adjust)
        })?;
        match status {
            RmpStatus::SUCCESS => Ok(()),
            status => Err(protocol(&format!("RMPADJUST of {gpa}: {status}"))),
        }
    }

    /// Validates the region of `gpa` whole, if none of it was launched. True if that is done.
    fn accept_region(&mut self, vcpu: &mut Vcpu, gpa: Gpa) -> Result<bool, Error> {
        let region = (gpa.0 / LARGE_PAGE) as usize;
        {
            let mut regions = self.regions.lock().unwrap_or_else(PoisonError::into_inner);
            if regions.launched.get(region) != Some(&false) {
                return Ok(false);
            }
            // The guest kernel's lock is held: no other vCPU asks at the same time.
            if std::mem::replace(&mut regions.whole[region], true) {
                return Ok(true);
            }
        }
        let head = Gpa(gpa.0 & !(LARGE_PAGE - 1));
        self.pvalidate(vcpu, head, PageSize::Size2M, true)?;
        Ok(true)
    }

    fn page_state_change(
        &mut self,
        vcpu: &mut Vcpu,
        session: Session,
        entries: &[PscEntry],
    ) -> Result<(), Error> {
        let psc = |e: sevlab_ghcb::psc::PscError| protocol(&e.to_string());
        for chunk in entries.chunks(sevlab_arch::ghcb::PSC_MAX_ENTRIES) {
            let mut list = PscList::new(chunk).map_err(psc)?;
            let request = Request::PageStateChange {
                list: Scratch::shared(list.size()),
            };
            loop {
                list.write(self.page.shared_buffer_mut()).map_err(psc)?;
                match self.event(vcpu, session, &request)? {
                    Response::Info(0) => {}
                    _ => return Err(protocol("the page state change failed")),
                }
                let page = &*self.page;
                if list.check_progress(page.shared_buffer()).map_err(psc)? {
                    break;
                }
            }
        }
        Ok(())
    }
}

impl Outside for Fence<'_> {
    fn bounce_len(&self) -> usize {
        self.bounce_len - pager_part(self.bounce_len)
    }

    fn pager_len(&self) -> usize {
        pager_part(self.bounce_len)
    }

    fn bounce_write(&mut self, vcpu: &mut Vcpu, off: usize, data: &[u8]) -> Result<(), Error> {
        let gpa = self.bounce(off, data.len())?;
        self.port.write(vcpu, gpa, data)
    }

    fn bounce_read(&mut self, vcpu: &mut Vcpu, off: usize, out: &mut [u8]) -> Result<(), Error> {
        let gpa = self.bounce(off, out.len())?;
        self.port.read(vcpu, gpa, out)
    }

    fn host_call(&mut self, vcpu: &mut Vcpu, call: &HostCall) -> Result<i64, Error> {
        let mut block = [0u64; 8];
        block[0] = call.nr as u64;
        block[1..7].copy_from_slice(&call.args);
        block[7] = UNANSWERED as u64;
        let at = self.request_gpa;
        self.port.write(vcpu, at, block.as_bytes())?;
        let rax = match self.session {
            None => {
                let input = [hostcall::NUMBER, 0, 0, at.0];
                self.intercept(vcpu, ExitCode::VMMCALL, 3, input)[0]
            }
            Some(session) => {
                let request = Request::Vmmcall(Hypercall {
                    rax: hostcall::NUMBER,
                    cpl: 0,
                    rbx: Some(at.0),
                    ..Hypercall::default()
                });
                match self.event(vcpu, session, &request)? {
                    Response::Value(rax) => rax,
                    _ => return Err(protocol("the hypercall has no result")),
                }
            }
        };
        if rax != hostcall::DONE {
            return Err(protocol(&format!("the hypercall was refused: {rax:#x}")));
        }
        let mut result = [0; 8];
        self.port
            .read(vcpu, at.plus(hostcall::RESULT), &mut result)?;
        match i64::from_le_bytes(result) {
            UNANSWERED => Err(protocol("the system call was not executed")),
            result if result < LOWEST => {
                Err(protocol(&format!("{result} is no system call's result")))
            }
            result => Ok(result),
        }
    }

    fn cpuid(&mut self, vcpu: &mut Vcpu, leaf: u32, subleaf: u32) -> Result<[u32; 4], Error> {
        let Some(session) = self.session else {
            let input = [u64::from(leaf), u64::from(subleaf), 0, 0];
            let [a, c, d, b] = self.intercept(vcpu, ExitCode::CPUID, 2, input);
            return Ok([a as u32, b as u32, c as u32, d as u32]);
        };
        let state = (leaf == 0xd).then_some(vcpu.state.sys.xcr0);
        let request = Request::Cpuid {
            leaf,
            subleaf,
            xcr0: state,
            xss: None,
        };
        match self.event(vcpu, session, &request)? {
            Response::Cpuid { eax, ebx, ecx, edx } => Ok([eax, ebx, ecx, edx]),
            _ => Err(protocol("CPUID has no result")),
        }
    }

    fn rdtsc(&mut self, vcpu: &mut Vcpu, rdtscp: bool) -> Result<(u64, u32), Error> {
        let Some(session) = self.session else {
            let (code, len) = if rdtscp {
                (ExitCode::RDTSCP, 3)
            } else {
                (ExitCode::RDTSC, 2)
            };
            let [a, c, d, _] = self.intercept(vcpu, code, len, [0; 4]);
            return Ok((d << 32 | a & 0xffff_ffff, c as u32));
        };
        let request = if rdtscp {
            Request::Rdtscp
        } else {
            Request::Rdtsc
        };
        match self.event(vcpu, session, &request)? {
            Response::Wide(tsc) => Ok((tsc, 0)),
            Response::Rdtscp { tsc, aux } => Ok((tsc, aux)),
            _ => Err(protocol("RDTSC has no result")),
        }
    }

    fn accept(&mut self, vcpu: &mut Vcpu, gpa: Gpa, pages: u64) -> Result<(), Error> {
        if self.mode != SevMode::Snp {
            return Ok(());
        }
        let mut done = 0;
        while done < pages {
            let at = gpa.plus(done * PAGE_SIZE);
            if self.accept_region(vcpu, at)? {
                done += LARGE - at.pfn() % LARGE;
            } else {
                self.pvalidate(vcpu, at, PageSize::Size4K, true)?;
                done += 1;
            }
        }
        Ok(())
    }

    fn share(&mut self, vcpu: &mut Vcpu, gpa: Gpa, pages: u64, shared: bool) -> Result<(), Error> {
        let (SevMode::Snp, Some(session)) = (self.mode, self.session) else {
            return Ok(());
        };
        let at = |i: u64| gpa.plus(i * PAGE_SIZE);
        if shared {
            for i in 0..pages {
                self.pvalidate(vcpu, at(i), PageSize::Size4K, false)?;
            }
        }
        let operation = if shared {
            PscOperation::Shared
        } else {
            PscOperation::Private
        };
        let entries: Vec<PscEntry> = (0..pages)
            .map(|i| PscEntry {
                gpa: at(i),
                operation,
                large: false,
                done: 0,
            })
            .collect();
        self.page_state_change(vcpu, session, &entries)?;
        if !shared {
            for i in 0..pages {
                self.pvalidate(vcpu, at(i), PageSize::Size4K, true)?;
            }
        }
        Ok(())
    }

    fn create_vcpu(
        &mut self,
        vcpu: &mut Vcpu,
        cpu: usize,
        frame: Gpa,
        image: &[u8],
    ) -> Result<(), Error> {
        let Some(session) = self.session else {
            return self.bounce_write(vcpu, 0, image);
        };
        let snp = self.mode == SevMode::Snp;
        if snp {
            self.rmpadjust(vcpu, frame, false)?;
        }
        let mut page = [0; PAGE_SIZE as usize];
        page[..image.len()].copy_from_slice(image);
        self.port
            .access(vcpu, |vcpu| vcpu.write_gpa(frame, true, &page))?;
        if !snp {
            return Ok(());
        }
        self.rmpadjust(vcpu, frame, true)?;
        let request = Request::ApCreation(ApCreation {
            apic_id: cpu as u32,
            vmpl: 0,
            operation: ApOperation::Create {
                vmsa: frame,
                features: SevFeatures::SNP_ACTIVE.bits(),
            },
        });
        match self.event(vcpu, session, &request)? {
            Response::Info(0) => Ok(()),
            _ => Err(protocol("AP creation failed")),
        }
    }

    fn nested_fault(&mut self, vcpu: &mut Vcpu, gpa: Gpa, error: u64) -> Result<(), Error> {
        // Not an exit: hardware raises #VC in the guest, which has no business with such a page.
        if error & npf::NOT_VALIDATED != 0 {
            return Err(protocol(&format!("the page at {gpa} is not validated")));
        }
        self.port.nested_fault(vcpu, gpa, error);
        Ok(())
    }
}

fn protocol(what: &str) -> Error {
    Error::Protocol {
        what: what.to_owned(),
    }
}
