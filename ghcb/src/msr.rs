//! The protocol of the GHCB MSR: one 64-bit value each way, for a guest that has no page yet.
//!
//! Source: GHCB specification, "GHCB MSR protocol". The low 12 bits tell what the rest is.

use sevlab_arch::Gpa;
use sevlab_arch::ghcb::{HvFeatures, MSR_INFO_MASK, MsrInfo, PscOp};

use crate::page;

/// A register of CPUID's result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CpuidRegister {
    /// EAX.
    Eax,
    /// EBX.
    Ebx,
    /// ECX.
    Ecx,
    /// EDX.
    Edx,
}

impl CpuidRegister {
    /// All four, in the order of their numbers.
    pub const ALL: [Self; 4] = [Self::Eax, Self::Ebx, Self::Ecx, Self::Edx];

    const fn from_bits(value: u64) -> Self {
        Self::ALL[((value >> 30) & 3) as usize]
    }

    const fn bits(self) -> u64 {
        (self as u64) << 30
    }
}

/// The state a page is to have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PageState {
    /// The guest's.
    Private,
    /// The hypervisor's.
    Shared,
}

/// What a guest writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MsrRequest {
    /// Look at the page there.
    Page(Gpa),
    /// Protocol versions and C-bit position.
    SevInfo,
    /// One register of CPUID with ECX = 0.
    Cpuid {
        /// EAX.
        leaf: u32,
        /// Register wanted.
        register: CpuidRegister,
    },
    /// Wait for INIT and SIPI.
    ApResetHold,
    /// Where the page should be.
    PreferredGpa,
    /// Register the page.
    RegisterGpa(Gpa),
    /// Change one page's state.
    PageState {
        /// The page.
        gpa: Gpa,
        /// Its new state.
        state: PageState,
    },
    /// Run another VMPL.
    RunVmpl(u8),
    /// Hypervisor features.
    HvFeatures,
    /// Terminate the guest.
    Terminate {
        /// Who defines the reason, 0..=15.
        set: u8,
        /// The reason.
        reason: u8,
    },
}

/// What the hypervisor answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MsrResponse {
    /// Protocol versions and C-bit position.
    SevInfo {
        /// Highest version.
        max: u16,
        /// Lowest version.
        min: u16,
        /// Position of the C-bit.
        c_bit: u8,
    },
    /// One register of CPUID.
    Cpuid {
        /// Which.
        register: CpuidRegister,
        /// Its value.
        value: u32,
    },
    /// Whether INIT and SIPI have come.
    ApResetHold {
        /// They have.
        released: bool,
    },
    /// Where the page should be, if it matters.
    PreferredGpa(Option<Gpa>),
    /// The page registered, if it was.
    RegisterGpa(Option<Gpa>),
    /// Result of the change, 0 for success.
    PageState {
        /// Error.
        error: u32,
    },
    /// Result of running another VMPL, 0 for success.
    RunVmpl {
        /// Error.
        error: u32,
    },
    /// Hypervisor features.
    HvFeatures(HvFeatures),
}

/// A value that is no request, or one with bits that may not be set. The hypervisor ends the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
#[error("GHCB MSR value {value:#x} is no request")]
pub struct BadRequest {
    /// The value.
    pub value: u64,
}

/// A value that does not answer the request. The guest ends itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
#[error("GHCB MSR value {value:#x} does not answer {request:?}")]
pub struct BadResponse {
    /// The request.
    pub request: MsrRequest,
    /// The value.
    pub value: u64,
}

/// GFN field that says "none": all ones.
const NO_GFN: u64 = !MSR_INFO_MASK;

fn info(value: u64) -> MsrInfo {
    MsrInfo((value & MSR_INFO_MASK) as u16)
}

fn with(kind: MsrInfo, rest: u64) -> u64 {
    u64::from(kind.0) | rest
}

impl MsrRequest {
    /// The value the guest writes.
    #[must_use]
    pub fn encode(&self) -> u64 {
        match *self {
            Self::Page(gpa) => with(MsrInfo::GHCB_GPA, gpa.page().0),
            Self::SevInfo => with(MsrInfo::SEV_INFO_REQ, 0),
            Self::Cpuid { leaf, register } => {
                with(MsrInfo::CPUID_REQ, u64::from(leaf) << 32 | register.bits())
            }
            Self::ApResetHold => with(MsrInfo::AP_RESET_HOLD_REQ, 0),
            Self::PreferredGpa => with(MsrInfo::PREFERRED_GPA_REQ, 0),
            Self::RegisterGpa(gpa) => with(MsrInfo::REGISTER_GPA_REQ, gpa.page().0),
            Self::PageState { gpa, state } => {
                let op = match state {
                    PageState::Private => PscOp::PRIVATE,
                    PageState::Shared => PscOp::SHARED,
                };
                with(MsrInfo::PSC_REQ, u64::from(op.0) << 52 | gpa.page().0)
            }
            Self::RunVmpl(vmpl) => with(MsrInfo::RUN_VMPL_REQ, u64::from(vmpl) << 32),
            Self::HvFeatures => with(MsrInfo::HV_FEATURES_REQ, 0),
            Self::Terminate { set, reason } => with(
                MsrInfo::TERMINATE,
                u64::from(set & 0xf) << 12 | u64::from(reason) << 16,
            ),
        }
    }

    /// The request a value stands for.
    pub fn decode(value: u64) -> Result<Self, BadRequest> {
        let bad = BadRequest { value };
        let rest = value & !MSR_INFO_MASK;
        let gpa = || page(rest).ok_or(bad);
        let empty = |request| if rest == 0 { Ok(request) } else { Err(bad) };
        match info(value) {
            MsrInfo::GHCB_GPA => gpa().map(Self::Page),
            MsrInfo::SEV_INFO_REQ => empty(Self::SevInfo),
            MsrInfo::CPUID_REQ if value & 0x3fff_f000 == 0 => Ok(Self::Cpuid {
                leaf: (value >> 32) as u32,
                register: CpuidRegister::from_bits(value),
            }),
            MsrInfo::AP_RESET_HOLD_REQ => empty(Self::ApResetHold),
            MsrInfo::PREFERRED_GPA_REQ => empty(Self::PreferredGpa),
            MsrInfo::REGISTER_GPA_REQ => gpa().map(Self::RegisterGpa),
            MsrInfo::PSC_REQ => {
                let gpa = page(rest & 0x000f_ffff_ffff_f000).ok_or(bad)?;
                match value >> 52 {
                    1 => Ok(Self::PageState {
                        gpa,
                        state: PageState::Private,
                    }),
                    2 => Ok(Self::PageState {
                        gpa,
                        state: PageState::Shared,
                    }),
                    _ => Err(bad),
                }
            }
            MsrInfo::RUN_VMPL_REQ if rest & !(3 << 32) == 0 => {
                Ok(Self::RunVmpl((value >> 32) as u8))
            }
            MsrInfo::HV_FEATURES_REQ => empty(Self::HvFeatures),
            MsrInfo::TERMINATE if value >> 24 == 0 => Ok(Self::Terminate {
                set: (value >> 12 & 0xf) as u8,
                reason: (value >> 16) as u8,
            }),
            _ => Err(bad),
        }
    }

    /// What the value the hypervisor left in the MSR answers to this request.
    pub fn finish(&self, value: u64) -> Result<MsrResponse, BadResponse> {
        let bad = BadResponse {
            request: *self,
            value,
        };
        let rest = value & !MSR_INFO_MASK;
        let gpa = || {
            if rest == NO_GFN {
                Ok(None)
            } else {
                page(rest).map(Some).ok_or(bad)
            }
        };
        let error = || {
            if value & 0xffff_f000 == 0 {
                Ok((value >> 32) as u32)
            } else {
                Err(bad)
            }
        };
        match (self, info(value)) {
            (Self::SevInfo, MsrInfo::SEV_INFO_RESP) => Ok(MsrResponse::SevInfo {
                max: (value >> 48) as u16,
                min: (value >> 32) as u16,
                c_bit: (value >> 24) as u8,
            }),
            (Self::Cpuid { register, .. }, MsrInfo::CPUID_RESP)
                if CpuidRegister::from_bits(value) == *register =>
            {
                Ok(MsrResponse::Cpuid {
                    register: *register,
                    value: (value >> 32) as u32,
                })
            }
            (Self::ApResetHold, MsrInfo::AP_RESET_HOLD_RESP) => Ok(MsrResponse::ApResetHold {
                released: rest != 0,
            }),
            (Self::PreferredGpa, MsrInfo::PREFERRED_GPA_RESP) => {
                gpa().map(MsrResponse::PreferredGpa)
            }
            (Self::RegisterGpa(asked), MsrInfo::REGISTER_GPA_RESP) => match gpa()? {
                Some(got) if got != asked.page() => Err(bad),
                answer => Ok(MsrResponse::RegisterGpa(answer)),
            },
            (Self::PageState { .. }, MsrInfo::PSC_RESP) => {
                Ok(MsrResponse::PageState { error: error()? })
            }
            (Self::RunVmpl(_), MsrInfo::RUN_VMPL_RESP) => {
                Ok(MsrResponse::RunVmpl { error: error()? })
            }
            (Self::HvFeatures, MsrInfo::HV_FEATURES_RESP) => Ok(MsrResponse::HvFeatures(
                HvFeatures::from_bits_retain(value >> 12),
            )),
            _ => Err(bad),
        }
    }
}

impl MsrResponse {
    /// The value the hypervisor leaves in the MSR.
    #[must_use]
    pub fn encode(&self) -> u64 {
        let gfn = |gpa: Option<Gpa>| gpa.map_or(NO_GFN, |gpa| gpa.page().0);
        match *self {
            Self::SevInfo { max, min, c_bit } => with(
                MsrInfo::SEV_INFO_RESP,
                u64::from(max) << 48 | u64::from(min) << 32 | u64::from(c_bit) << 24,
            ),
            Self::Cpuid { register, value } => with(
                MsrInfo::CPUID_RESP,
                u64::from(value) << 32 | register.bits(),
            ),
            Self::ApResetHold { released } => {
                with(MsrInfo::AP_RESET_HOLD_RESP, u64::from(released) << 12)
            }
            Self::PreferredGpa(gpa) => with(MsrInfo::PREFERRED_GPA_RESP, gfn(gpa)),
            Self::RegisterGpa(gpa) => with(MsrInfo::REGISTER_GPA_RESP, gfn(gpa)),
            Self::PageState { error } => with(MsrInfo::PSC_RESP, u64::from(error) << 32),
            Self::RunVmpl { error } => with(MsrInfo::RUN_VMPL_RESP, u64::from(error) << 32),
            Self::HvFeatures(features) => with(MsrInfo::HV_FEATURES_RESP, features.bits() << 12),
        }
    }
}
