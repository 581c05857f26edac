//! What the protocol tests share: one request of every kind, the agreement they run under, and a seeded generator.

use sevlab_arch::Gpa;
use sevlab_arch::ghcb::SHARED_BUFFER_LEN;
use sevlab_ghcb::guest::Session;
use sevlab_ghcb::hv::Context;
use sevlab_ghcb::{
    ApCreation, ApOperation, Doorbell, ExtendedRequest, HvFeatures, Hypercall, IoSize, Request,
    Scratch, StringIo,
};

/// Where the page is in these tests.
pub const GHCB: Gpa = Gpa(0x7_f000);

/// An SNP guest with every feature, version 2.
pub fn snp() -> Context {
    Context {
        version: 2,
        features: HvFeatures::all(),
        snp: true,
        ghcb: GHCB,
        registered: Some(GHCB),
    }
}

/// An SEV-ES guest, version 1, no features.
pub fn es() -> Context {
    Context {
        version: 1,
        features: HvFeatures::empty(),
        snp: false,
        ghcb: GHCB,
        registered: None,
    }
}

pub fn session(version: u16) -> Session {
    Session {
        version,
        ghcb: GHCB,
    }
}

/// Every request, with every variant of its operands.
pub fn requests() -> Vec<Request> {
    let data = Scratch::Shared {
        offset: 16,
        len: 64,
    };
    let string = |size: IoSize| StringIo {
        port: 0x1f0,
        size,
        count: 64 / size.bytes(),
        data,
    };
    let vmsa = Gpa(0x12_3000);
    vec![
        Request::Dr7Read,
        Request::Dr7Write { value: 0x400 },
        Request::Rdtsc,
        Request::Rdpmc { counter: 3 },
        Request::Cpuid {
            leaf: 1,
            subleaf: 0,
            xcr0: None,
            xss: None,
        },
        Request::Cpuid {
            leaf: 0xd,
            subleaf: 1,
            xcr0: Some(7),
            xss: None,
        },
        Request::Cpuid {
            leaf: 0xd,
            subleaf: 1,
            xcr0: Some(7),
            xss: Some(0x800),
        },
        Request::Invd,
        Request::IoIn {
            port: 0x3f8,
            size: IoSize::Byte,
        },
        Request::IoIn {
            port: 0xcfc,
            size: IoSize::Dword,
        },
        Request::IoOut {
            port: 0x3f8,
            size: IoSize::Byte,
            value: 0x41,
        },
        Request::IoOut {
            port: 0xcf8,
            size: IoSize::Dword,
            value: 0x8000_0000,
        },
        Request::IoIns(string(IoSize::Word)),
        Request::IoOuts(string(IoSize::Byte)),
        Request::MsrRead { msr: 0xc000_0080 },
        Request::MsrWrite {
            msr: 0xc000_0080,
            value: 0x1234_5678_9abc_def0,
        },
        Request::Vmmcall(Hypercall {
            rax: 0x5eb1,
            cpl: 3,
            rbx: Some(0x9000),
            ..Hypercall::default()
        }),
        Request::Vmmcall(Hypercall {
            rax: 1,
            cpl: 0,
            rbx: Some(2),
            rcx: Some(3),
            rdx: Some(4),
            rsi: Some(5),
        }),
        Request::Rdtscp,
        Request::Wbinvd,
        Request::Monitor {
            rax: 0x1000,
            rcx: 0,
            rdx: 0,
        },
        Request::Mwait { rax: 0xf0, rcx: 1 },
        Request::MmioRead {
            gpa: Gpa(0xfee0_0000),
            data: Scratch::shared(4),
        },
        Request::MmioWrite {
            gpa: Gpa(0xfee0_0300),
            data: Scratch::Shared {
                offset: 2024,
                len: 8,
            },
        },
        Request::NmiComplete,
        Request::ApResetHold,
        Request::ApJumpTableSet { table: Gpa(0x8000) },
        Request::ApJumpTableGet,
        Request::PageStateChange {
            list: Scratch::shared(SHARED_BUFFER_LEN),
        },
        Request::GuestRequest {
            request: Gpa(0x2000),
            response: Gpa(0x3000),
        },
        Request::ExtendedGuestRequest(ExtendedRequest {
            request: Gpa(0x2000),
            response: Gpa(0x3000),
            data: Gpa(0x4000),
            pages: 4,
        }),
        Request::ApCreation(ApCreation {
            apic_id: 7,
            vmpl: 0,
            operation: ApOperation::CreateOnInit { vmsa, features: 1 },
        }),
        Request::ApCreation(ApCreation {
            apic_id: 7,
            vmpl: 1,
            operation: ApOperation::Create { vmsa, features: 1 },
        }),
        Request::ApCreation(ApCreation {
            apic_id: 0x1_0000,
            vmpl: 3,
            operation: ApOperation::Destroy,
        }),
        Request::DoorbellPage(Doorbell::GetPreferred),
        Request::DoorbellPage(Doorbell::Set(Gpa(0x5000))),
        Request::DoorbellPage(Doorbell::Query),
        Request::DoorbellPage(Doorbell::Clear),
        Request::HvIpi { icr: 0x1_0000_00fd },
        Request::ApicIdList {
            gpa: Gpa(0x6000),
            pages: 1,
        },
        Request::RunVmpl { vmpl: 2 },
        Request::HvFeatures,
        Request::Terminate {
            set: 1,
            reason: 0xab,
        },
        Request::UnsupportedEvent { code: 0x8d },
    ]
}

/// SplitMix64.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }
}
