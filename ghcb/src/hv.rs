//! The hypervisor half: from a page to a request, and back to a page.
//!
//! Every byte of the page comes from the guest. [`validate`] reads only fields the guest marked valid and returns a
//! request whose addresses and lengths have been checked as far as the page alone allows; whether an address is memory, and
//! shared memory, only the machine knows.

use sevlab_arch::exit::ExitCode;
use sevlab_arch::ghcb::{
    ErrorCode, FieldNotValid, Ghcb, HvFeatures, ResponseKind, SHARED_BUFFER, SHARED_BUFFER_LEN,
    USAGE_STANDARD,
};
use sevlab_arch::vmcb::{EventInjection, IoInfo};
use sevlab_arch::{Gpa, PAGE_SIZE};

use crate::request::{
    ApCreation, ApOperation, Doorbell, ExtendedRequest, Hypercall, IoSize, Scratch, Shape, StringIo,
};
pub use crate::request::{Request, Response};
use crate::{is_gpa, page};

/// Most bytes of scratch area outside the page.
pub const MEMORY_SCRATCH_LIMIT: usize = 0x1_0000;

/// What the hypervisor has agreed with the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Context {
    /// Negotiated protocol version.
    pub version: u16,
    /// Features the hypervisor has announced.
    pub features: HvFeatures,
    /// Whether the guest is an SNP guest: its page must be registered, and it may use the SNP events.
    pub snp: bool,
    /// Where the page is.
    pub ghcb: Gpa,
    /// The page the guest has registered.
    pub registered: Option<Gpa>,
}

/// Why the hypervisor does not carry an event out. The guest is told the [`ErrorCode`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Refusal {
    /// The page is not the registered one.
    #[error("GHCB at {ghcb} is not registered")]
    NotRegistered {
        /// Where the page is.
        ghcb: Gpa,
    },
    /// The page's usage or version is not what was agreed.
    #[error("GHCB usage {usage:#x}, version {version} is not supported")]
    BadUsage {
        /// The page's usage.
        usage: u32,
        /// The page's version.
        version: u16,
    },
    /// The scratch area is not where it may be.
    #[error("scratch area {gpa}, {len} bytes, is not allowed")]
    BadScratch {
        /// First byte.
        gpa: Gpa,
        /// Bytes.
        len: u64,
    },
    /// A field the event needs is not marked valid.
    #[error("{0}")]
    MissingInput(#[from] FieldNotValid),
    /// A field holds a value the event does not allow.
    #[error("{code} does not allow the value {value:#x}")]
    InvalidInput {
        /// The event.
        code: ExitCode,
        /// The value.
        value: u64,
    },
    /// The event is unknown, or not allowed here.
    #[error("event {code} is not supported")]
    InvalidEvent {
        /// The event.
        code: ExitCode,
    },
}

impl Refusal {
    /// The number the guest gets.
    #[must_use]
    pub const fn code(&self) -> ErrorCode {
        match self {
            Self::NotRegistered { .. } => ErrorCode::NOT_REGISTERED,
            Self::BadUsage { .. } => ErrorCode::INVALID_USAGE,
            Self::BadScratch { .. } => ErrorCode::INVALID_SCRATCH_AREA,
            Self::MissingInput(_) => ErrorCode::MISSING_INPUT,
            Self::InvalidInput { .. } => ErrorCode::INVALID_INPUT,
            Self::InvalidEvent { .. } => ErrorCode::INVALID_EVENT,
        }
    }
}

/// The hypervisor's code answered a request with a response of the wrong shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a response of shape {got:?} where the request wants {wanted:?}")]
pub struct WrongShape {
    /// What the request wants.
    pub wanted: Shape,
    /// What came.
    pub got: Shape,
}

/// Makes a request of the page, or says why not.
pub fn validate(ghcb: &Ghcb, context: &Context) -> Result<Request, Refusal> {
    if context.snp && context.registered != Some(context.ghcb) {
        return Err(Refusal::NotRegistered { ghcb: context.ghcb });
    }
    let version = ghcb.protocol_version();
    if ghcb.usage() != USAGE_STANDARD || version == 0 || version > context.version {
        return Err(Refusal::BadUsage {
            usage: ghcb.usage(),
            version,
        });
    }
    // The three are needed whatever the event is (GHCB specification, "Invoking VMGEXIT").
    let code = ExitCode(ghcb.sw_exit_code()?);
    let info1 = ghcb.sw_exit_info1()?;
    let info2 = ghcb.sw_exit_info2()?;
    Event {
        ghcb,
        context,
        code,
        info1,
        info2,
    }
    .decode()
}

/// The page while it is taken apart.
struct Event<'a> {
    ghcb: &'a Ghcb,
    context: &'a Context,
    code: ExitCode,
    info1: u64,
    info2: u64,
}

impl Event<'_> {
    fn decode(&self) -> Result<Request, Refusal> {
        let g = self.ghcb;
        Ok(match self.code {
            ExitCode::READ_DR7 => Request::Dr7Read,
            ExitCode::WRITE_DR7 => Request::Dr7Write { value: g.rax()? },
            ExitCode::RDTSC => Request::Rdtsc,
            ExitCode::RDPMC => Request::Rdpmc {
                counter: g.rcx()? as u32,
            },
            ExitCode::CPUID => self.cpuid()?,
            ExitCode::INVD => Request::Invd,
            ExitCode::IOIO => self.io()?,
            ExitCode::MSR => self.msr()?,
            ExitCode::VMMCALL => Request::Vmmcall(Hypercall {
                rax: g.rax()?,
                cpl: match g.cpl()? {
                    cpl @ 0..=3 => cpl,
                    cpl => return Err(self.invalid(u64::from(cpl))),
                },
                rbx: g.rbx().ok(),
                rcx: g.rcx().ok(),
                rdx: g.rdx().ok(),
                rsi: g.rsi().ok(),
            }),
            ExitCode::RDTSCP => Request::Rdtscp,
            ExitCode::WBINVD => Request::Wbinvd,
            ExitCode::MONITOR => Request::Monitor {
                rax: g.rax()?,
                rcx: g.rcx()?,
                rdx: g.rdx()?,
            },
            ExitCode::MWAIT => Request::Mwait {
                rax: g.rax()?,
                rcx: g.rcx()?,
            },
            ExitCode::MMIO_READ => {
                let (gpa, data) = self.mmio()?;
                Request::MmioRead { gpa, data }
            }
            ExitCode::MMIO_WRITE => {
                let (gpa, data) = self.mmio()?;
                Request::MmioWrite { gpa, data }
            }
            ExitCode::NMI_COMPLETE => Request::NmiComplete,
            ExitCode::AP_RESET_HOLD => Request::ApResetHold,
            ExitCode::AP_JUMP_TABLE => match self.info1 {
                0 if is_gpa(self.info2) => Request::ApJumpTableSet {
                    table: Gpa(self.info2),
                },
                0 => return Err(self.invalid(self.info2)),
                1 => Request::ApJumpTableGet,
                other => return Err(self.invalid(other)),
            },
            ExitCode::PSC => self.page_state_change()?,
            ExitCode::GUEST_REQUEST => {
                let (request, response) = self.messages()?;
                Request::GuestRequest { request, response }
            }
            ExitCode::EXT_GUEST_REQUEST => {
                let (request, response) = self.messages()?;
                let (data, pages) = (g.rax()?, g.rbx()?);
                let data = self.pages(data, pages)?;
                Request::ExtendedGuestRequest(ExtendedRequest {
                    request,
                    response,
                    data,
                    pages,
                })
            }
            ExitCode::AP_CREATION => self.ap_creation()?,
            ExitCode::HV_DOORBELL_PAGE => {
                self.needs(HvFeatures::RESTRICTED_INJECTION)?;
                Request::DoorbellPage(match self.info1 {
                    0 => Doorbell::GetPreferred,
                    1 => Doorbell::Set(self.page(self.info2)?),
                    2 => Doorbell::Query,
                    3 => Doorbell::Clear,
                    other => return Err(self.invalid(other)),
                })
            }
            ExitCode::HV_IPI => {
                self.needs(HvFeatures::RESTRICTED_INJECTION)?;
                Request::HvIpi { icr: self.info1 }
            }
            ExitCode::APIC_ID_LIST => {
                self.needs(HvFeatures::APIC_ID_LIST)?;
                let pages = g.rax()?;
                Request::ApicIdList {
                    gpa: self.pages(self.info1, pages)?,
                    pages,
                }
            }
            ExitCode::RUN_VMPL => {
                self.needs(HvFeatures::MULTI_VMPL)?;
                match self.info1 {
                    vmpl @ 0..=3 => Request::RunVmpl { vmpl: vmpl as u8 },
                    other => return Err(self.invalid(other)),
                }
            }
            ExitCode::HV_FEATURES => {
                self.needs(HvFeatures::empty())?;
                Request::HvFeatures
            }
            ExitCode::TERMINATE => {
                self.needs(HvFeatures::empty())?;
                if self.info1 >> 12 != 0 {
                    return Err(self.invalid(self.info1));
                }
                Request::Terminate {
                    set: (self.info1 & 0xf) as u8,
                    reason: (self.info1 >> 4) as u8,
                }
            }
            ExitCode::UNSUPPORTED_EVENT => Request::UnsupportedEvent { code: self.info1 },
            code => return Err(Refusal::InvalidEvent { code }),
        })
    }

    fn invalid(&self, value: u64) -> Refusal {
        Refusal::InvalidInput {
            code: self.code,
            value,
        }
    }

    /// The event exists from version 2 on, and only with these features.
    fn needs(&self, features: HvFeatures) -> Result<(), Refusal> {
        let allowed = self.ghcb.protocol_version() >= 2 && self.context.features.contains(features);
        let snp_only = HvFeatures::SNP
            | HvFeatures::AP_CREATION
            | HvFeatures::RESTRICTED_INJECTION
            | HvFeatures::APIC_ID_LIST
            | HvFeatures::MULTI_VMPL;
        if allowed && (self.context.snp || !features.intersects(snp_only)) {
            Ok(())
        } else {
            Err(Refusal::InvalidEvent { code: self.code })
        }
    }

    fn page(&self, address: u64) -> Result<Gpa, Refusal> {
        page(address).ok_or(self.invalid(address))
    }

    /// A run of whole pages below the C-bit.
    fn pages(&self, address: u64, count: u64) -> Result<Gpa, Refusal> {
        let first = self.page(address)?;
        let end = count
            .checked_mul(PAGE_SIZE)
            .and_then(|bytes| address.checked_add(bytes));
        match end {
            Some(end) if end == address || is_gpa(end - 1) => Ok(first),
            _ => Err(self.invalid(count)),
        }
    }

    /// The area SW_SCRATCH names, `len` bytes of it.
    fn scratch(&self, len: u64) -> Result<Scratch, Refusal> {
        let start = self.ghcb.sw_scratch()?;
        let bad = Refusal::BadScratch {
            gpa: Gpa(start),
            len,
        };
        let (Some(end), Ok(len)) = (start.checked_add(len), usize::try_from(len)) else {
            return Err(bad);
        };
        let page_start = self.context.ghcb.0;
        let page_end = page_start.saturating_add(PAGE_SIZE);
        let buffer = page_start.saturating_add(SHARED_BUFFER as u64);
        let buffer_end = buffer.saturating_add(SHARED_BUFFER_LEN as u64);
        if start >= buffer && end <= buffer_end {
            return Ok(Scratch::Shared {
                offset: (start - buffer) as usize,
                len,
            });
        }
        // From version 2 on the area has to be in the page; before, anywhere but across the page's other fields.
        let touches_page = start < page_end && end > page_start;
        let in_memory = self.ghcb.protocol_version() < 2
            && !touches_page
            && start != 0
            && is_gpa(end.saturating_sub(1))
            && is_gpa(start)
            && len <= MEMORY_SCRATCH_LIMIT;
        if in_memory {
            Ok(Scratch::Memory {
                gpa: Gpa(start),
                len,
            })
        } else {
            Err(bad)
        }
    }

    fn cpuid(&self) -> Result<Request, Refusal> {
        let leaf = self.ghcb.rax()? as u32;
        let subleaf = self.ghcb.rcx()? as u32;
        // XCR0 decides the sizes leaf 0xD reports.
        let (xcr0, xss) = if leaf == 0xd {
            (Some(self.ghcb.xcr0()?), self.ghcb.xss().ok())
        } else {
            (None, None)
        };
        Ok(Request::Cpuid {
            leaf,
            subleaf,
            xcr0,
            xss,
        })
    }

    fn io(&self) -> Result<Request, Refusal> {
        const RESERVED: u64 = !0xffff_1ffd;
        if self.info1 & RESERVED != 0 {
            return Err(self.invalid(self.info1));
        }
        let size = match self.info1 & (IoInfo::SIZE_8 | IoInfo::SIZE_16 | IoInfo::SIZE_32) {
            IoInfo::SIZE_8 => IoSize::Byte,
            IoInfo::SIZE_16 => IoSize::Word,
            IoInfo::SIZE_32 => IoSize::Dword,
            _ => return Err(self.invalid(self.info1)),
        };
        let port = (self.info1 >> IoInfo::PORT_SHIFT) as u16;
        let input = self.info1 & IoInfo::IN != 0;
        if self.info1 & IoInfo::STRING == 0 {
            return Ok(if input {
                Request::IoIn { port, size }
            } else {
                Request::IoOut {
                    port,
                    size,
                    value: (self.ghcb.rax()? & size.mask()) as u32,
                }
            });
        }
        let count = self.info2;
        if self.info1 & IoInfo::REP == 0 && count != 1 {
            return Err(self.invalid(count));
        }
        let bytes = count.checked_mul(size.bytes()).ok_or(self.invalid(count))?;
        let string = StringIo {
            port,
            size,
            count,
            data: self.scratch(bytes)?,
        };
        Ok(if input {
            Request::IoIns(string)
        } else {
            Request::IoOuts(string)
        })
    }

    fn msr(&self) -> Result<Request, Refusal> {
        let msr = self.ghcb.rcx()? as u32;
        match self.info1 {
            0 => Ok(Request::MsrRead { msr }),
            1 => {
                let low = self.ghcb.rax()? & 0xffff_ffff;
                let high = self.ghcb.rdx()? & 0xffff_ffff;
                Ok(Request::MsrWrite {
                    msr,
                    value: high << 32 | low,
                })
            }
            other => Err(self.invalid(other)),
        }
    }

    fn mmio(&self) -> Result<(Gpa, Scratch), Refusal> {
        let len = self.info2;
        let end = self.info1.checked_add(len).ok_or(self.invalid(len))?;
        if len == 0 {
            return Err(self.invalid(len));
        }
        if !is_gpa(end - 1) {
            return Err(self.invalid(self.info1));
        }
        Ok((Gpa(self.info1), self.scratch(len)?))
    }

    fn page_state_change(&self) -> Result<Request, Refusal> {
        // SNP guests have it with version 2; others where the hypervisor says so.
        if !self.context.snp {
            self.needs(HvFeatures::PSC)?;
        }
        self.needs(HvFeatures::empty())?;
        let start = self.ghcb.sw_scratch()?;
        let room = (self
            .context
            .ghcb
            .0
            .saturating_add((SHARED_BUFFER + SHARED_BUFFER_LEN) as u64))
        .saturating_sub(start);
        // The header has to fit; how many entries do, the list's parser sees.
        let list = self.scratch(room.max(8))?;
        Ok(Request::PageStateChange { list })
    }

    fn messages(&self) -> Result<(Gpa, Gpa), Refusal> {
        self.needs(HvFeatures::SNP)?;
        let request = self.page(self.info1)?;
        let response = self.page(self.info2)?;
        if request == response {
            return Err(self.invalid(self.info2));
        }
        Ok((request, response))
    }

    fn ap_creation(&self) -> Result<Request, Refusal> {
        self.needs(HvFeatures::AP_CREATION)?;
        let apic_id = (self.info1 >> 32) as u32;
        let vmpl = match (self.info1 >> 16) as u16 {
            vmpl @ 0..=3 => vmpl as u8,
            _ => return Err(self.invalid(self.info1)),
        };
        let operation = match self.info1 as u16 {
            op @ (0 | 1) => {
                let features = self.ghcb.rax()?;
                let vmsa = self.page(self.info2)?;
                if op == 0 {
                    ApOperation::CreateOnInit { vmsa, features }
                } else {
                    ApOperation::Create { vmsa, features }
                }
            }
            2 => ApOperation::Destroy,
            _ => return Err(self.invalid(self.info1)),
        };
        Ok(Request::ApCreation(ApCreation {
            apic_id,
            vmpl,
            operation,
        }))
    }
}

/// Writes a response: nothing is marked valid but what the response holds.
pub fn respond(ghcb: &mut Ghcb, request: &Request, response: &Response) -> Result<(), WrongShape> {
    let (wanted, got) = (request.shape(), response.shape());
    if wanted != got {
        return Err(WrongShape { wanted, got });
    }
    finish(ghcb, ResponseKind::SUCCESS, 0);
    match *response {
        Response::Done => {}
        Response::Value(value) => ghcb.set_rax(match request {
            Request::IoIn { size, .. } => value & size.mask(),
            _ => value,
        }),
        Response::Wide(value) => set_wide(ghcb, value),
        Response::Rdtscp { tsc, aux } => {
            set_wide(ghcb, tsc);
            ghcb.set_rcx(u64::from(aux));
        }
        Response::Cpuid { eax, ebx, ecx, edx } => {
            ghcb.set_rax(u64::from(eax));
            ghcb.set_rbx(u64::from(ebx));
            ghcb.set_rcx(u64::from(ecx));
            ghcb.set_rdx(u64::from(edx));
        }
        Response::Info(info) => ghcb.set_sw_exit_info2(info),
        Response::Certificates { info, pages } => {
            ghcb.set_sw_exit_info2(info);
            if let Some(pages) = pages {
                ghcb.set_rbx(pages);
            }
        }
    }
    Ok(())
}

/// Tells the guest why its event was not carried out.
pub fn refuse(ghcb: &mut Ghcb, refusal: &Refusal) {
    finish(ghcb, ResponseKind::ERROR, refusal.code().0);
}

/// Has the guest raise an exception, as the instruction it asked for would have: #GP or #UD.
pub fn raise(ghcb: &mut Ghcb, event: EventInjection) {
    finish(ghcb, ResponseKind::EXCEPTION, event.0);
}

fn finish(ghcb: &mut Ghcb, kind: ResponseKind, info2: u64) {
    ghcb.clear_valid();
    ghcb.set_sw_exit_info1(u64::from(kind.0));
    ghcb.set_sw_exit_info2(info2);
}

fn set_wide(ghcb: &mut Ghcb, value: u64) {
    ghcb.set_rax(value & 0xffff_ffff);
    ghcb.set_rdx(value >> 32);
}
