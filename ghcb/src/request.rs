//! What a guest can ask for through the page, and what it can get.

use sevlab_arch::ghcb::{Ghcb, SHARED_BUFFER};
use sevlab_arch::{Gpa, exit::ExitCode};

/// Width of a port access.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum IoSize {
    /// One byte.
    Byte,
    /// Two bytes.
    Word,
    /// Four bytes.
    Dword,
}

impl IoSize {
    /// Bytes.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        match self {
            Self::Byte => 1,
            Self::Word => 2,
            Self::Dword => 4,
        }
    }

    /// The bits of a value that take part.
    #[must_use]
    pub const fn mask(self) -> u64 {
        match self {
            Self::Byte => 0xff,
            Self::Word => 0xffff,
            Self::Dword => 0xffff_ffff,
        }
    }
}

/// Where data that does not fit the registers lies, checked against the page's bounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scratch {
    /// In the page's shared buffer.
    Shared {
        /// First byte, counted from the buffer's start.
        offset: usize,
        /// Bytes.
        len: usize,
    },
    /// In other guest memory (protocol version 1 only). That it is shared is for the caller to check.
    Memory {
        /// First byte.
        gpa: Gpa,
        /// Bytes.
        len: usize,
    },
}

impl Scratch {
    /// The whole area at the start of the shared buffer.
    #[must_use]
    pub const fn shared(len: usize) -> Self {
        Self::Shared { offset: 0, len }
    }

    /// Bytes.
    #[must_use]
    pub const fn len(&self) -> usize {
        match *self {
            Self::Shared { len, .. } | Self::Memory { len, .. } => len,
        }
    }

    /// Whether there are no bytes.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The bytes, if they are in the page.
    #[must_use]
    pub fn bytes<'a>(&self, ghcb: &'a Ghcb) -> Option<&'a [u8]> {
        match *self {
            Self::Shared { offset, len } => ghcb.shared_buffer().get(offset..)?.get(..len),
            Self::Memory { .. } => None,
        }
    }

    /// The bytes, for writing, if they are in the page.
    #[must_use]
    pub fn bytes_mut<'a>(&self, ghcb: &'a mut Ghcb) -> Option<&'a mut [u8]> {
        match *self {
            Self::Shared { offset, len } => {
                ghcb.shared_buffer_mut().get_mut(offset..)?.get_mut(..len)
            }
            Self::Memory { .. } => None,
        }
    }

    /// The address SW_SCRATCH holds, for a page at `ghcb`.
    #[must_use]
    pub const fn gpa(&self, ghcb: Gpa) -> Gpa {
        match *self {
            Self::Shared { offset, .. } => ghcb.plus(SHARED_BUFFER as u64 + offset as u64),
            Self::Memory { gpa, .. } => gpa,
        }
    }
}

/// A string port access: REP INS or REP OUTS, with the data in the scratch area.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct StringIo {
    /// Port.
    pub port: u16,
    /// Width of one element.
    pub size: IoSize,
    /// Number of elements.
    pub count: u64,
    /// The elements.
    pub data: Scratch,
}

/// A hypercall. Registers the guest did not offer are absent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct Hypercall {
    /// Number of the call.
    pub rax: u64,
    /// The caller's privilege level.
    pub cpl: u8,
    /// Argument.
    pub rbx: Option<u64>,
    /// Argument.
    pub rcx: Option<u64>,
    /// Argument.
    pub rdx: Option<u64>,
    /// Argument.
    pub rsi: Option<u64>,
}

/// An extended guest request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ExtendedRequest {
    /// Page of the request message.
    pub request: Gpa,
    /// Page of the response message.
    pub response: Gpa,
    /// Where certificates go.
    pub data: Gpa,
    /// Pages there.
    pub pages: u64,
}

/// What AP creation does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ApOperation {
    /// The VMSA is used from the next INIT on.
    CreateOnInit {
        /// VMSA page.
        vmsa: Gpa,
        /// The SEV features in it.
        features: u64,
    },
    /// The VMSA runs at once.
    Create {
        /// VMSA page.
        vmsa: Gpa,
        /// The SEV features in it.
        features: u64,
    },
    /// The vCPU stops and its VMSA is free.
    Destroy,
}

/// AP creation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ApCreation {
    /// The vCPU.
    pub apic_id: u32,
    /// Its VMPL.
    pub vmpl: u8,
    /// What to do.
    pub operation: ApOperation,
}

/// An operation on the #HV doorbell page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Doorbell {
    /// Ask where the page should be.
    GetPreferred,
    /// Register the page.
    Set(Gpa),
    /// Ask where the page is.
    Query,
    /// Unregister the page.
    Clear,
}

/// What a guest asks for. Closed: an event that is not here is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Request {
    /// Read DR7.
    Dr7Read,
    /// Write DR7.
    Dr7Write {
        /// New value.
        value: u64,
    },
    /// RDTSC.
    Rdtsc,
    /// RDPMC.
    Rdpmc {
        /// Counter.
        counter: u32,
    },
    /// CPUID.
    Cpuid {
        /// EAX.
        leaf: u32,
        /// ECX.
        subleaf: u32,
        /// XCR0, there if and only if the leaf is 0xD.
        xcr0: Option<u64>,
        /// XSS, offered with leaf 0xD only.
        xss: Option<u64>,
    },
    /// INVD.
    Invd,
    /// IN.
    IoIn {
        /// Port.
        port: u16,
        /// Width.
        size: IoSize,
    },
    /// OUT.
    IoOut {
        /// Port.
        port: u16,
        /// Width.
        size: IoSize,
        /// Value, within the width.
        value: u32,
    },
    /// INS.
    IoIns(StringIo),
    /// OUTS.
    IoOuts(StringIo),
    /// RDMSR.
    MsrRead {
        /// Register.
        msr: u32,
    },
    /// WRMSR.
    MsrWrite {
        /// Register.
        msr: u32,
        /// New value.
        value: u64,
    },
    /// VMMCALL.
    Vmmcall(Hypercall),
    /// RDTSCP.
    Rdtscp,
    /// WBINVD.
    Wbinvd,
    /// MONITOR.
    Monitor {
        /// Address.
        rax: u64,
        /// Extensions.
        rcx: u64,
        /// Hints.
        rdx: u64,
    },
    /// MWAIT.
    Mwait {
        /// Hints.
        rax: u64,
        /// Extensions.
        rcx: u64,
    },
    /// MMIO read into the scratch area.
    MmioRead {
        /// Source.
        gpa: Gpa,
        /// Destination.
        data: Scratch,
    },
    /// MMIO write from the scratch area.
    MmioWrite {
        /// Destination.
        gpa: Gpa,
        /// Source.
        data: Scratch,
    },
    /// An NMI has been handled.
    NmiComplete,
    /// Wait for INIT and SIPI.
    ApResetHold,
    /// Tell where the AP jump table is.
    ApJumpTableSet {
        /// The table.
        table: Gpa,
    },
    /// Ask where the AP jump table is.
    ApJumpTableGet,
    /// Page state change; the list is in the scratch area, see [`crate::psc`].
    PageStateChange {
        /// All the room from the list's start on.
        list: Scratch,
    },
    /// A message for the firmware.
    GuestRequest {
        /// Page of the request message.
        request: Gpa,
        /// Page of the response message.
        response: Gpa,
    },
    /// A message for the firmware, with certificates in the answer.
    ExtendedGuestRequest(ExtendedRequest),
    /// AP creation.
    ApCreation(ApCreation),
    /// #HV doorbell page.
    DoorbellPage(Doorbell),
    /// #HV IPI.
    HvIpi {
        /// Value for the interrupt command register.
        icr: u64,
    },
    /// List of APIC identifiers.
    ApicIdList {
        /// Where it goes.
        gpa: Gpa,
        /// Pages there.
        pages: u64,
    },
    /// Run another VMPL.
    RunVmpl {
        /// The VMPL.
        vmpl: u8,
    },
    /// Hypervisor features.
    HvFeatures,
    /// Terminate the guest.
    Terminate {
        /// Who defines the reason.
        set: u8,
        /// The reason.
        reason: u8,
    },
    /// The guest got a #VC it does not handle.
    UnsupportedEvent {
        /// The #VC's error code.
        code: u64,
    },
}

/// Which [`Response`] a request gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Shape {
    /// [`Response::Done`].
    Done,
    /// [`Response::Value`].
    Value,
    /// [`Response::Wide`].
    Wide,
    /// [`Response::Rdtscp`].
    Rdtscp,
    /// [`Response::Cpuid`].
    Cpuid,
    /// [`Response::Info`].
    Info,
    /// [`Response::Certificates`].
    Certificates,
    /// Terminating has no response.
    Nothing,
}

/// What a request gets when the hypervisor has carried it out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Response {
    /// Nothing but success.
    Done,
    /// RAX: [`Request::Dr7Read`], [`Request::IoIn`], [`Request::Vmmcall`], [`Request::ApicIdList`].
    Value(u64),
    /// EDX:EAX: [`Request::Rdtsc`], [`Request::Rdpmc`], [`Request::MsrRead`].
    Wide(u64),
    /// [`Request::Rdtscp`].
    Rdtscp {
        /// EDX:EAX.
        tsc: u64,
        /// ECX.
        aux: u32,
    },
    /// [`Request::Cpuid`].
    Cpuid {
        /// EAX.
        eax: u32,
        /// EBX.
        ebx: u32,
        /// ECX.
        ecx: u32,
        /// EDX.
        edx: u32,
    },
    /// SW_EXITINFO2: features, addresses, result codes (0 is success for page state changes and guest requests).
    Info(u64),
    /// [`Request::ExtendedGuestRequest`].
    Certificates {
        /// SW_EXITINFO2: firmware status in bits 31:0, hypervisor error in bits 63:32.
        info: u64,
        /// RBX: pages needed, if there were too few.
        pages: Option<u64>,
    },
}

impl Response {
    /// Which of the responses this is.
    #[must_use]
    pub const fn shape(&self) -> Shape {
        match self {
            Self::Done => Shape::Done,
            Self::Value(_) => Shape::Value,
            Self::Wide(_) => Shape::Wide,
            Self::Rdtscp { .. } => Shape::Rdtscp,
            Self::Cpuid { .. } => Shape::Cpuid,
            Self::Info(_) => Shape::Info,
            Self::Certificates { .. } => Shape::Certificates,
        }
    }
}

impl Request {
    /// The exit code of this request.
    #[must_use]
    pub const fn exit_code(&self) -> ExitCode {
        match self {
            Self::Dr7Read => ExitCode::READ_DR7,
            Self::Dr7Write { .. } => ExitCode::WRITE_DR7,
            Self::Rdtsc => ExitCode::RDTSC,
            Self::Rdpmc { .. } => ExitCode::RDPMC,
            Self::Cpuid { .. } => ExitCode::CPUID,
            Self::Invd => ExitCode::INVD,
            Self::IoIn { .. } | Self::IoOut { .. } | Self::IoIns(_) | Self::IoOuts(_) => {
                ExitCode::IOIO
            }
            Self::MsrRead { .. } | Self::MsrWrite { .. } => ExitCode::MSR,
            Self::Vmmcall(_) => ExitCode::VMMCALL,
            Self::Rdtscp => ExitCode::RDTSCP,
            Self::Wbinvd => ExitCode::WBINVD,
            Self::Monitor { .. } => ExitCode::MONITOR,
            Self::Mwait { .. } => ExitCode::MWAIT,
            Self::MmioRead { .. } => ExitCode::MMIO_READ,
            Self::MmioWrite { .. } => ExitCode::MMIO_WRITE,
            Self::NmiComplete => ExitCode::NMI_COMPLETE,
            Self::ApResetHold => ExitCode::AP_RESET_HOLD,
            Self::ApJumpTableSet { .. } | Self::ApJumpTableGet => ExitCode::AP_JUMP_TABLE,
            Self::PageStateChange { .. } => ExitCode::PSC,
            Self::GuestRequest { .. } => ExitCode::GUEST_REQUEST,
            Self::ExtendedGuestRequest(_) => ExitCode::EXT_GUEST_REQUEST,
            Self::ApCreation(_) => ExitCode::AP_CREATION,
            Self::DoorbellPage(_) => ExitCode::HV_DOORBELL_PAGE,
            Self::HvIpi { .. } => ExitCode::HV_IPI,
            Self::ApicIdList { .. } => ExitCode::APIC_ID_LIST,
            Self::RunVmpl { .. } => ExitCode::RUN_VMPL,
            Self::HvFeatures => ExitCode::HV_FEATURES,
            Self::Terminate { .. } => ExitCode::TERMINATE,
            Self::UnsupportedEvent { .. } => ExitCode::UNSUPPORTED_EVENT,
        }
    }

    /// Which response this request gets.
    #[must_use]
    pub const fn shape(&self) -> Shape {
        match self {
            Self::Dr7Read | Self::IoIn { .. } | Self::Vmmcall(_) | Self::ApicIdList { .. } => {
                Shape::Value
            }
            Self::Rdtsc | Self::Rdpmc { .. } | Self::MsrRead { .. } => Shape::Wide,
            Self::Rdtscp => Shape::Rdtscp,
            Self::Cpuid { .. } => Shape::Cpuid,
            Self::ApResetHold
            | Self::ApJumpTableGet
            | Self::PageStateChange { .. }
            | Self::GuestRequest { .. }
            | Self::ApCreation(_)
            | Self::DoorbellPage(_)
            | Self::RunVmpl { .. }
            | Self::HvFeatures => Shape::Info,
            Self::ExtendedGuestRequest(_) => Shape::Certificates,
            Self::Terminate { .. } => Shape::Nothing,
            Self::Dr7Write { .. }
            | Self::Invd
            | Self::IoOut { .. }
            | Self::IoIns(_)
            | Self::IoOuts(_)
            | Self::MsrWrite { .. }
            | Self::Wbinvd
            | Self::Monitor { .. }
            | Self::Mwait { .. }
            | Self::MmioRead { .. }
            | Self::MmioWrite { .. }
            | Self::NmiComplete
            | Self::ApJumpTableSet { .. }
            | Self::HvIpi { .. }
            | Self::UnsupportedEvent { .. } => Shape::Done,
        }
    }
}
