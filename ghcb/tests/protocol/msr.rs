//! The protocol of the GHCB MSR.

use crate::common::Random;
use sevlab_arch::Gpa;
use sevlab_ghcb::HvFeatures;
use sevlab_ghcb::msr::{
    BadRequest, BadResponse, CpuidRegister, MsrRequest, MsrResponse, PageState,
};

const GPA: Gpa = Gpa(0x1234_5000);

/// (request, its value, a response, its value)
fn rows() -> Vec<(MsrRequest, u64, MsrResponse, u64)> {
    use {MsrRequest as Q, MsrResponse as A};
    vec![
        (
            Q::SevInfo,
            0x002,
            A::SevInfo {
                max: 2,
                min: 1,
                c_bit: 51,
            },
            0x0002_0001_3300_0001,
        ),
        (
            Q::Cpuid {
                leaf: 0x8000_001f,
                register: CpuidRegister::Ebx,
            },
            0x8000_001f_4000_0004,
            A::Cpuid {
                register: CpuidRegister::Ebx,
                value: 0x33,
            },
            0x0000_0033_4000_0005,
        ),
        (
            Q::Cpuid {
                leaf: 1,
                register: CpuidRegister::Edx,
            },
            0x0000_0001_c000_0004,
            A::Cpuid {
                register: CpuidRegister::Edx,
                value: u32::MAX,
            },
            0xffff_ffff_c000_0005,
        ),
        (
            Q::ApResetHold,
            0x006,
            A::ApResetHold { released: true },
            0x1007,
        ),
        (
            Q::ApResetHold,
            0x006,
            A::ApResetHold { released: false },
            0x007,
        ),
        (
            Q::PreferredGpa,
            0x010,
            A::PreferredGpa(None),
            0xffff_ffff_ffff_f011,
        ),
        (
            Q::PreferredGpa,
            0x010,
            A::PreferredGpa(Some(GPA)),
            0x1234_5011,
        ),
        (
            Q::RegisterGpa(GPA),
            0x1234_5012,
            A::RegisterGpa(Some(GPA)),
            0x1234_5013,
        ),
        (
            Q::RegisterGpa(GPA),
            0x1234_5012,
            A::RegisterGpa(None),
            0xffff_ffff_ffff_f013,
        ),
        (
            Q::PageState {
                gpa: GPA,
                state: PageState::Private,
            },
            0x0010_0000_1234_5014,
            A::PageState { error: 0 },
            0x015,
        ),
        (
            Q::PageState {
                gpa: GPA,
                state: PageState::Shared,
            },
            0x0020_0000_1234_5014,
            A::PageState { error: 7 },
            0x7_0000_0015,
        ),
        (Q::RunVmpl(2), 0x2_0000_0016, A::RunVmpl { error: 0 }, 0x017),
        (
            Q::HvFeatures,
            0x080,
            A::HvFeatures(HvFeatures::SNP | HvFeatures::AP_CREATION),
            0x3081,
        ),
    ]
}

#[test]
fn every_value_is_the_specifications_and_comes_back() {
    for (request, asked, response, answered) in rows() {
        assert_eq!(request.encode(), asked, "{request:?}");
        assert_eq!(MsrRequest::decode(asked), Ok(request));
        assert_eq!(response.encode(), answered, "{response:?}");
        assert_eq!(request.finish(answered), Ok(response));
    }
    for request in [
        MsrRequest::Page(GPA),
        MsrRequest::Terminate {
            set: 1,
            reason: 0xab,
        },
    ] {
        assert_eq!(MsrRequest::decode(request.encode()), Ok(request));
    }
    assert_eq!(
        MsrRequest::Terminate {
            set: 1,
            reason: 0xab
        }
        .encode(),
        0x00ab_1100
    );
}

#[test]
fn values_that_are_no_request() {
    for value in [
        0x001,                 // a response
        0x003,                 // unknown
        0x1002,                // bits where none belong
        0x0000_0001_0000_1004, // reserved CPUID bits
        0x8_0000_0000_0000,    // a page with the C-bit
        0x10_0000_0000_0012,   // past the address bits
        0x0000_0000_1234_5014, // page state 0
        0x0030_0000_1234_5014, // page state 3
        0x0110_0000_1234_5014, // bits above the operation
        0x0018_0000_0000_0014, // a page with the C-bit
        0x4_0000_0016,         // VMPL 4
        0x1_0000_1016,         // bits below the VMPL
        0x0100_0100,           // bits above the reason
        u64::MAX,
    ] {
        assert_eq!(
            MsrRequest::decode(value),
            Err(BadRequest { value }),
            "{value:#x}"
        );
    }
}

#[test]
fn answers_to_another_question() {
    let rows = rows();
    for (request, ..) in &rows {
        for (other, _, _, value) in &rows {
            if std::mem::discriminant(request) != std::mem::discriminant(other) {
                assert_eq!(
                    request.finish(*value),
                    Err(BadResponse {
                        request: *request,
                        value: *value
                    })
                );
            }
        }
        // The request itself left in the register is no answer.
        assert!(request.finish(request.encode()).is_err());
    }
    let register = MsrRequest::RegisterGpa(GPA);
    assert!(
        register.finish(0x1234_6013).is_err(),
        "another page was registered"
    );
    let cpuid = MsrRequest::Cpuid {
        leaf: 1,
        register: CpuidRegister::Eax,
    };
    assert!(
        cpuid.finish(0x0000_0001_c000_0005).is_err(),
        "another register was answered"
    );
    let change = MsrRequest::PageState {
        gpa: GPA,
        state: PageState::Shared,
    };
    assert!(change.finish(0x1015).is_err(), "reserved bits");
}

#[test]
fn random_values_never_panic() {
    let mut random = Random(7);
    for _ in 0..200_000 {
        let value = random.next() & random.next() & !(random.next() & 0xe00);
        if let Ok(request) = MsrRequest::decode(value) {
            assert_eq!(request.encode(), value);
        }
        for (request, ..) in rows() {
            let _ = request.finish(value);
        }
    }
}
