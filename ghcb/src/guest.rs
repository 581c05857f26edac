//! The guest half: from a request to a page, and from the page to the response.
//!
//! The hypervisor is not trusted: the response's fields are read only if they are marked valid, and an exception is raised
//! only if the event could have caused it.

use sevlab_arch::Gpa;
use sevlab_arch::ghcb::{
    ErrorCode, FieldNotValid, Ghcb, ResponseKind, USAGE_STANDARD, VERSION_MAX, VERSION_MIN,
};
use sevlab_arch::vector::Vector;
use sevlab_arch::vmcb::{EventInjection, EventType, IoInfo};

use crate::request::{ApOperation, Doorbell, IoSize, Scratch, Shape, StringIo};
pub use crate::request::{Request, Response};

/// What the guest has agreed with the hypervisor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Session {
    /// Negotiated protocol version.
    pub version: u16,
    /// Where the page is.
    pub ghcb: Gpa,
}

/// Why a request has no response.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Failure {
    /// The hypervisor refused the event.
    #[error("the hypervisor refused the event: {code}")]
    Refused {
        /// Why.
        code: ErrorCode,
    },
    /// The instruction the request stands for is to raise an exception.
    #[error("exception {vector} is to be raised")]
    Exception {
        /// The vector: #UD or #GP.
        vector: Vector,
        /// The error code, if the exception has one.
        error: Option<u32>,
    },
    /// The hypervisor asked for an event that no request can cause.
    #[error("the hypervisor asked for the event {event:#x}")]
    BadEvent {
        /// The event.
        event: u64,
    },
    /// The hypervisor's answer is neither success, nor an exception, nor an error.
    #[error("the hypervisor's answer {info1:#x} is unknown")]
    UnknownAnswer {
        /// SW_EXITINFO1.
        info1: u64,
    },
    /// The hypervisor did not mark a field valid that the response needs.
    #[error("{0}")]
    Missing(#[from] FieldNotValid),
    /// The guest asked to be terminated and runs on.
    #[error("the hypervisor answered a request to terminate")]
    NotTerminated,
}

/// The highest version both sides speak.
#[must_use]
pub const fn negotiate(hv_min: u16, hv_max: u16) -> Option<u16> {
    let max = if hv_max < VERSION_MAX {
        hv_max
    } else {
        VERSION_MAX
    };
    if hv_min <= max && max >= VERSION_MIN && hv_min <= hv_max {
        Some(max)
    } else {
        None
    }
}

impl Request {
    /// Fills the page: everything before is forgotten, but the shared buffer stays as it is.
    pub fn fill(&self, ghcb: &mut Ghcb, session: &Session) {
        ghcb.clear_valid();
        ghcb.set_protocol_version(session.version);
        ghcb.set_usage(USAGE_STANDARD);
        let (info1, info2) = self.registers(ghcb, session);
        ghcb.set_sw_exit_code(self.exit_code().0);
        ghcb.set_sw_exit_info1(info1);
        ghcb.set_sw_exit_info2(info2);
    }

    /// Writes the registers the event needs and returns SW_EXITINFO1 and SW_EXITINFO2.
    fn registers(&self, ghcb: &mut Ghcb, session: &Session) -> (u64, u64) {
        let scratch =
            |ghcb: &mut Ghcb, area: &Scratch| ghcb.set_sw_scratch(area.gpa(session.ghcb).0);
        match *self {
            Self::Dr7Read
            | Self::Rdtsc
            | Self::Rdtscp
            | Self::Invd
            | Self::Wbinvd
            | Self::NmiComplete
            | Self::ApResetHold
            | Self::HvFeatures => (0, 0),
            Self::Dr7Write { value } => {
                ghcb.set_rax(value);
                (0, 0)
            }
            Self::Rdpmc { counter } => {
                ghcb.set_rcx(u64::from(counter));
                (0, 0)
            }
            Self::Cpuid {
                leaf,
                subleaf,
                xcr0,
                xss,
            } => {
                ghcb.set_rax(u64::from(leaf));
                ghcb.set_rcx(u64::from(subleaf));
                if let Some(xcr0) = xcr0 {
                    ghcb.set_xcr0(xcr0);
                }
                if let Some(xss) = xss {
                    ghcb.set_xss(xss);
                }
                (0, 0)
            }
            Self::IoIn { port, size } => (io_info(port, size) | IoInfo::IN, 0),
            Self::IoOut { port, size, value } => {
                ghcb.set_rax(u64::from(value) & size.mask());
                (io_info(port, size), 0)
            }
            Self::IoIns(StringIo {
                port,
                size,
                count,
                data,
            }) => {
                scratch(ghcb, &data);
                (
                    io_info(port, size) | IoInfo::IN | IoInfo::STRING | IoInfo::REP,
                    count,
                )
            }
            Self::IoOuts(StringIo {
                port,
                size,
                count,
                data,
            }) => {
                scratch(ghcb, &data);
                (io_info(port, size) | IoInfo::STRING | IoInfo::REP, count)
            }
            Self::MsrRead { msr } => {
                ghcb.set_rcx(u64::from(msr));
                (0, 0)
            }
            Self::MsrWrite { msr, value } => {
                ghcb.set_rcx(u64::from(msr));
                ghcb.set_rax(value & 0xffff_ffff);
                ghcb.set_rdx(value >> 32);
                (1, 0)
            }
            Self::Vmmcall(call) => {
                ghcb.set_rax(call.rax);
                ghcb.set_cpl(call.cpl);
                if let Some(rbx) = call.rbx {
                    ghcb.set_rbx(rbx);
                }
                if let Some(rcx) = call.rcx {
                    ghcb.set_rcx(rcx);
                }
                if let Some(rdx) = call.rdx {
                    ghcb.set_rdx(rdx);
                }
                if let Some(rsi) = call.rsi {
                    ghcb.set_rsi(rsi);
                }
                (0, 0)
            }
            Self::Monitor { rax, rcx, rdx } => {
                ghcb.set_rax(rax);
                ghcb.set_rcx(rcx);
                ghcb.set_rdx(rdx);
                (0, 0)
            }
            Self::Mwait { rax, rcx } => {
                ghcb.set_rax(rax);
                ghcb.set_rcx(rcx);
                (0, 0)
            }
            Self::MmioRead { gpa, data } | Self::MmioWrite { gpa, data } => {
                scratch(ghcb, &data);
                (gpa.0, data.len() as u64)
            }
            Self::ApJumpTableSet { table } => (0, table.0),
            Self::ApJumpTableGet => (1, 0),
            Self::PageStateChange { list } => {
                scratch(ghcb, &list);
                (0, 0)
            }
            Self::GuestRequest { request, response } => (request.0, response.0),
            Self::ExtendedGuestRequest(extended) => {
                ghcb.set_rax(extended.data.0);
                ghcb.set_rbx(extended.pages);
                (extended.request.0, extended.response.0)
            }
            Self::ApCreation(ap) => {
                let target = u64::from(ap.apic_id) << 32 | u64::from(ap.vmpl) << 16;
                match ap.operation {
                    ApOperation::CreateOnInit { vmsa, features } => {
                        ghcb.set_rax(features);
                        (target, vmsa.0)
                    }
                    ApOperation::Create { vmsa, features } => {
                        ghcb.set_rax(features);
                        (target | 1, vmsa.0)
                    }
                    ApOperation::Destroy => (target | 2, 0),
                }
            }
            Self::DoorbellPage(Doorbell::GetPreferred) => (0, 0),
            Self::DoorbellPage(Doorbell::Set(gpa)) => (1, gpa.0),
            Self::DoorbellPage(Doorbell::Query) => (2, 0),
            Self::DoorbellPage(Doorbell::Clear) => (3, 0),
            Self::HvIpi { icr } => (icr, 0),
            Self::ApicIdList { gpa, pages } => {
                ghcb.set_rax(pages);
                (gpa.0, 0)
            }
            Self::RunVmpl { vmpl } => (u64::from(vmpl), 0),
            Self::Terminate { set, reason } => (u64::from(set & 0xf) | u64::from(reason) << 4, 0),
            Self::UnsupportedEvent { code } => (code, 0),
        }
    }

    /// Checks the page after VMGEXIT and takes the response out of it.
    pub fn finish(&self, ghcb: &Ghcb) -> Result<Response, Failure> {
        let info1 = ghcb.sw_exit_info1()?;
        let info2 = ghcb.sw_exit_info2()?;
        match ResponseKind(info1 as u32) {
            ResponseKind::SUCCESS => {}
            ResponseKind::EXCEPTION => return Err(exception(EventInjection(info2))),
            ResponseKind::ERROR => {
                return Err(Failure::Refused {
                    code: ErrorCode(info2),
                });
            }
            _ => return Err(Failure::UnknownAnswer { info1 }),
        }
        Ok(match self.shape() {
            Shape::Done => Response::Done,
            Shape::Value => {
                let rax = ghcb.rax()?;
                Response::Value(match self {
                    Self::IoIn { size, .. } => rax & size.mask(),
                    _ => rax,
                })
            }
            Shape::Wide => Response::Wide(wide(ghcb)?),
            Shape::Rdtscp => Response::Rdtscp {
                tsc: wide(ghcb)?,
                aux: ghcb.rcx()? as u32,
            },
            Shape::Cpuid => Response::Cpuid {
                eax: ghcb.rax()? as u32,
                ebx: ghcb.rbx()? as u32,
                ecx: ghcb.rcx()? as u32,
                edx: ghcb.rdx()? as u32,
            },
            Shape::Info => Response::Info(info2),
            Shape::Certificates => Response::Certificates {
                info: info2,
                pages: ghcb.rbx().ok(),
            },
            Shape::Nothing => return Err(Failure::NotTerminated),
        })
    }
}

fn io_info(port: u16, size: IoSize) -> u64 {
    let size = match size {
        IoSize::Byte => IoInfo::SIZE_8,
        IoSize::Word => IoInfo::SIZE_16,
        IoSize::Dword => IoInfo::SIZE_32,
    };
    u64::from(port) << IoInfo::PORT_SHIFT | size | IoInfo::ADDR_64
}

fn wide(ghcb: &Ghcb) -> Result<u64, FieldNotValid> {
    Ok(ghcb.rdx()? << 32 | ghcb.rax()? & 0xffff_ffff)
}

/// Only what the emulated instructions can raise is believed.
fn exception(event: EventInjection) -> Failure {
    let vector = Vector(event.vector());
    let plausible = match vector {
        Vector::UD => event.error().is_none(),
        Vector::GP => event.error().is_some(),
        _ => false,
    };
    if event.is_valid() && event.event_type() == EventType::EXCEPTION && plausible {
        Failure::Exception {
            vector,
            error: event.error(),
        }
    } else {
        Failure::BadEvent { event: event.0 }
    }
}
