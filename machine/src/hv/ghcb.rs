//! VMGEXIT: the GHCB MSR protocol and the events in the GHCB page.

use std::mem::offset_of;

use sevlab_arch::Gpa;
use sevlab_arch::ghcb::{Ghcb, HvFeatures, PSC_ERROR_GENERIC};
use sevlab_arch::vmcb::{Control, EventInjection};
use sevlab_cpu::{SevMode, Vcpu};
use sevlab_ghcb::hv::{self, Context};
use sevlab_ghcb::msr::{CpuidRegister, MsrRequest, MsrResponse, PageState};
use sevlab_ghcb::psc::{PscList, PscOperation};
use sevlab_ghcb::{ApCreation, ApOperation, Request, Response, Scratch};
use sevlab_memctl::{Domain, PageSize};
use zerocopy::{FromZeros, IntoBytes};

use super::{Hypervisor, host_tsc, hostcall};
use crate::error::Error;
use crate::hv::cpuid::C_BIT;

/// Protocol versions this hypervisor speaks.
const VERSIONS: (u16, u16) = (1, 2);

/// What has been agreed with the guest.
pub(super) struct GhcbState {
    registered: Option<Gpa>,
    features: HvFeatures,
    snp: bool,
    /// Where the page should be.
    preferred: Gpa,
    /// Room for the private copy that an event works on.
    page: Option<Box<Ghcb>>,
}

impl GhcbState {
    pub(super) fn new(mode: SevMode, preferred: Gpa) -> Self {
        let snp = mode == SevMode::Snp;
        Self {
            registered: None,
            features: if snp {
                HvFeatures::SNP | HvFeatures::AP_CREATION
            } else {
                HvFeatures::empty()
            },
            snp,
            preferred,
            page: None,
        }
    }

    fn context(&self, ghcb: Gpa) -> Context {
        Context {
            version: VERSIONS.1,
            features: self.features,
            snp: self.snp,
            ghcb,
            registered: self.registered,
        }
    }
}

impl Hypervisor {
    pub(super) fn vmgexit(&mut self, vcpu: &mut Vcpu) -> Result<(), Error> {
        let msr = offset_of!(Control, ghcb_gpa);
        let value = self.control(msr)?;
        let request = MsrRequest::decode(value).map_err(|_| Error::GhcbMsr { value })?;
        match request {
            MsrRequest::Page(gpa) => self.page_event(vcpu, gpa),
            request => {
                *self.exits.events.entry(0).or_default() += 1;
                let response = self.msr_event(vcpu, &request, value)?;
                self.set_control(msr, response.encode())
            }
        }
    }

    fn msr_event(
        &mut self,
        vcpu: &mut Vcpu,
        request: &MsrRequest,
        value: u64,
    ) -> Result<MsrResponse, Error> {
        Ok(match *request {
            MsrRequest::SevInfo => MsrResponse::SevInfo {
                min: VERSIONS.0,
                max: VERSIONS.1,
                c_bit: C_BIT as u8,
            },
            MsrRequest::Cpuid { leaf, register } => {
                let values = self.cpuid.leaf(leaf, 0);
                let index = CpuidRegister::ALL.iter().position(|r| *r == register);
                MsrResponse::Cpuid {
                    register,
                    value: index.map_or(0, |i| values[i]),
                }
            }
            MsrRequest::PreferredGpa => MsrResponse::PreferredGpa(Some(self.ghcb.preferred)),
            MsrRequest::RegisterGpa(gpa) => {
                let known = self.layout.shared_spa(gpa, 4096).is_some();
                self.ghcb.registered = known.then_some(gpa);
                MsrResponse::RegisterGpa(self.ghcb.registered)
            }
            MsrRequest::PageState { gpa, state } if self.ghcb.snp => {
                let private = state == PageState::Private;
                let done = self.memory().assign(gpa, PageSize::Size4K, private, false);
                self.changed(vcpu)?;
                MsrResponse::PageState {
                    error: u32::from(done.is_err()),
                }
            }
            MsrRequest::HvFeatures => MsrResponse::HvFeatures(self.ghcb.features),
            MsrRequest::RunVmpl(_) => MsrResponse::RunVmpl { error: 1 },
            MsrRequest::Terminate { set, reason } => {
                return Err(Error::Terminated { set, reason });
            }
            MsrRequest::Page(_) | MsrRequest::PageState { .. } | MsrRequest::ApResetHold => {
                return Err(Error::GhcbMsr { value });
            }
        })
    }

    /// An event in the page at `gpa`: copied in once, answered on the copy, copied back.
    fn page_event(&mut self, vcpu: &mut Vcpu, gpa: Gpa) -> Result<(), Error> {
        let Some(at) = self.layout.shared_spa(gpa, size_of::<Ghcb>() as u64) else {
            return Err(Error::GhcbMsr { value: gpa.0 });
        };
        let room = self.ghcb.page.take();
        let mut page = room.unwrap_or_else(|| Box::new(Ghcb::new_zeroed()));
        self.mem.read(Domain::Shared, at, page.as_mut_bytes())?;
        let code = page.sw_exit_code().unwrap_or(u64::MAX);
        *self.exits.events.entry(code).or_default() += 1;
        match hv::validate(&page, &self.ghcb.context(gpa)) {
            Err(refusal) => hv::refuse(&mut page, &refusal),
            Ok(request) => match self.event(vcpu, &request, &mut page)? {
                Answer::Response(response) => {
                    if hv::respond(&mut page, &request, &response).is_err() {
                        hv::refuse(&mut page, &unsupported(code));
                    }
                }
                Answer::Exception(event) => hv::raise(&mut page, event),
                Answer::Unsupported => hv::refuse(&mut page, &unsupported(code)),
            },
        }
        self.mem.write(Domain::Shared, at, page.as_bytes())?;
        self.ghcb.page = Some(page);
        Ok(())
    }

    fn event(
        &mut self,
        vcpu: &mut Vcpu,
        request: &Request,
        page: &mut Ghcb,
    ) -> Result<Answer, Error> {
        Ok(Answer::Response(match *request {
            Request::Vmmcall(call) => {
                let rax = match call.rbx {
                    Some(block) if call.rax == hostcall::NUMBER && call.cpl == 0 => {
                        self.hypercall(vcpu, Gpa(block))?
                    }
                    _ => u64::MAX,
                };
                Response::Value(rax)
            }
            Request::Cpuid { leaf, subleaf, .. } => {
                let [eax, ebx, ecx, edx] = self.cpuid.leaf(leaf, subleaf);
                Response::Cpuid { eax, ebx, ecx, edx }
            }
            Request::Rdtsc => Response::Wide(host_tsc()),
            Request::Rdtscp => Response::Rdtscp {
                tsc: host_tsc(),
                aux: 0,
            },
            // No device answers: the bus floats.
            Request::IoIn { size, .. } => Response::Value(size.mask()),
            Request::IoOut { .. } | Request::Wbinvd | Request::Invd => Response::Done,
            Request::Dr7Read => Response::Value(0x400),
            Request::Dr7Write { .. } => Response::Done,
            Request::MsrRead { .. } | Request::MsrWrite { .. } | Request::Rdpmc { .. } => {
                return Ok(Answer::Exception(EventInjection::exception(13, Some(0))));
            }
            Request::HvFeatures => Response::Info(self.ghcb.features.bits()),
            Request::PageStateChange { list } => {
                Response::Info(self.page_states(vcpu, list, page)?)
            }
            Request::ApCreation(ApCreation {
                apic_id,
                vmpl: 0,
                operation: ApOperation::Create { vmsa, .. } | ApOperation::CreateOnInit { vmsa, .. },
            }) => match self.layout.spa(vmsa).filter(|_| vmsa.offset() == 0) {
                Some(spa) => {
                    self.created.insert(apic_id, spa);
                    Response::Info(0)
                }
                None => return Ok(Answer::Exception(EventInjection::exception(13, Some(0)))),
            },
            Request::Terminate { set, reason } => return Err(Error::Terminated { set, reason }),
            _ => return Ok(Answer::Unsupported),
        }))
    }

    /// Works a page state change off; returns SW_EXITINFO2.
    fn page_states(
        &mut self,
        vcpu: &mut Vcpu,
        list: Scratch,
        page: &mut Ghcb,
    ) -> Result<u64, Error> {
        let Scratch::Shared { offset, len } = list else {
            return Ok(PSC_ERROR_GENERIC);
        };
        let Some(buffer) = page.shared_buffer_mut().get_mut(offset..offset + len) else {
            return Ok(PSC_ERROR_GENERIC);
        };
        let mut list = match PscList::parse(buffer) {
            Ok(list) => list,
            Err(e) => return Ok(e.info()),
        };
        let info = loop {
            let entry = match list.current() {
                Ok(Some(entry)) => entry,
                Ok(None) => break 0,
                Err(e) => break e.info(),
            };
            let (size, rest) = match (entry.large, entry.done) {
                (true, 0) => (PageSize::Size2M, 1),
                _ => (
                    PageSize::Size4K,
                    entry.pages() - entry.done.min(entry.pages()),
                ),
            };
            let private = match entry.operation {
                PscOperation::Private => true,
                PscOperation::Shared => false,
                // Hints: nothing is gained by following them here.
                PscOperation::Psmash | PscOperation::Unsmash => {
                    list.advance(entry.pages());
                    continue;
                }
            };
            let first = entry.gpa.plus(u64::from(entry.done) * 4096);
            let step = if size == PageSize::Size2M { 512 } else { 1 };
            let mut failed = false;
            for i in 0..u64::from(rest.max(1)) {
                if self
                    .memory()
                    .assign(first.plus(i * 4096), size, private, false)
                    .is_err()
                {
                    failed = true;
                    break;
                }
                list.advance(step);
            }
            if failed {
                break PSC_ERROR_GENERIC;
            }
        };
        self.changed(vcpu)?;
        // The list fits where it came from.
        Ok(match list.write(buffer) {
            Ok(()) => info,
            Err(e) => e.info(),
        })
    }
}

/// How an event ends.
enum Answer {
    Response(Response),
    Exception(EventInjection),
    Unsupported,
}

fn unsupported(code: u64) -> hv::Refusal {
    hv::Refusal::InvalidEvent {
        code: sevlab_arch::exit::ExitCode(code),
    }
}
