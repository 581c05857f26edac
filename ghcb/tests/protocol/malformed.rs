//! Pages no hypervisor may act on: one row a mistake, then random ones.

use crate::common::{GHCB, Random, es, requests, session, snp};
use sevlab_arch::Gpa;
use sevlab_arch::exit::ExitCode;
use sevlab_arch::ghcb::{Field, SHARED_BUFFER, SHARED_BUFFER_LEN};
use sevlab_arch::vmcb::IoInfo;
use sevlab_ghcb::hv::{self, Context, Refusal};
use sevlab_ghcb::{ErrorCode, Ghcb, HvFeatures, Request, Scratch};
use zerocopy::{FromBytes, IntoBytes};

/// A page with the three fields every event needs.
fn event(code: ExitCode, info1: u64, info2: u64) -> Ghcb {
    let mut page = Ghcb::default();
    page.set_protocol_version(2);
    page.set_sw_exit_code(code.0);
    page.set_sw_exit_info1(info1);
    page.set_sw_exit_info2(info2);
    page
}

fn with(mut page: Ghcb, change: impl FnOnce(&mut Ghcb)) -> Ghcb {
    change(&mut page);
    page
}

fn refused(page: &Ghcb, context: &Context) -> Option<ErrorCode> {
    hv::validate(page, context)
        .err()
        .map(|refusal| refusal.code())
}

#[test]
fn the_page_itself() {
    let good = event(ExitCode::RDTSC, 0, 0);
    assert_eq!(hv::validate(&good, &snp()), Ok(Request::Rdtsc));
    let elsewhere = Context {
        registered: Some(Gpa(0x1000)),
        ..snp()
    };
    let nowhere = Context {
        registered: None,
        ..snp()
    };
    assert_eq!(refused(&good, &elsewhere), Some(ErrorCode::NOT_REGISTERED));
    assert_eq!(refused(&good, &nowhere), Some(ErrorCode::NOT_REGISTERED));
    assert_eq!(
        refused(
            &good,
            &Context {
                snp: false,
                ..nowhere
            }
        ),
        None
    );
    assert_eq!(
        refused(&with(good, |g| g.set_usage(1)), &snp()),
        Some(ErrorCode::INVALID_USAGE)
    );
    assert_eq!(
        refused(&with(good, |g| g.set_protocol_version(0)), &snp()),
        Some(ErrorCode::INVALID_USAGE)
    );
    assert_eq!(
        refused(&with(good, |g| g.set_protocol_version(3)), &snp()),
        Some(ErrorCode::INVALID_USAGE)
    );
    assert_eq!(refused(&good, &es()), Some(ErrorCode::INVALID_USAGE));
    for field in [
        Field::SW_EXIT_CODE,
        Field::SW_EXIT_INFO1,
        Field::SW_EXIT_INFO2,
    ] {
        assert_eq!(
            refused(&with(good, |g| g.mark_invalid(field)), &snp()),
            Some(ErrorCode::MISSING_INPUT)
        );
    }
}

#[test]
fn events_that_are_not_for_everyone() {
    let unknown = [
        0,
        0x40,
        0x78,
        0x400,
        0x403,
        0x404,
        0x8000_0000,
        0x8000_0006,
        0x8000_0016,
        0xf000_0000,
        u64::MAX,
    ];
    for code in unknown {
        let page = event(ExitCode(code), 0, 0);
        assert_eq!(
            hv::validate(&page, &snp()),
            Err(Refusal::InvalidEvent {
                code: ExitCode(code)
            })
        );
    }
    let needing = [
        (ExitCode::GUEST_REQUEST, HvFeatures::SNP),
        (ExitCode::EXT_GUEST_REQUEST, HvFeatures::SNP),
        (ExitCode::AP_CREATION, HvFeatures::AP_CREATION),
        (ExitCode::HV_DOORBELL_PAGE, HvFeatures::RESTRICTED_INJECTION),
        (ExitCode::HV_IPI, HvFeatures::RESTRICTED_INJECTION),
        (ExitCode::APIC_ID_LIST, HvFeatures::APIC_ID_LIST),
        (ExitCode::RUN_VMPL, HvFeatures::MULTI_VMPL),
    ];
    for (code, feature) in needing {
        let page = event(code, 0, 0);
        let without = Context {
            features: HvFeatures::all() - feature,
            ..snp()
        };
        assert_eq!(
            refused(&page, &without),
            Some(ErrorCode::INVALID_EVENT),
            "{code}"
        );
        assert_eq!(
            refused(
                &page,
                &Context {
                    snp: false,
                    ..snp()
                }
            ),
            Some(ErrorCode::INVALID_EVENT),
            "{code}"
        );
        let old = with(page, |g| g.set_protocol_version(1));
        assert_eq!(
            refused(&old, &snp()),
            Some(ErrorCode::INVALID_EVENT),
            "{code}"
        );
    }
    for code in [ExitCode::HV_FEATURES, ExitCode::TERMINATE, ExitCode::PSC] {
        let old = with(event(code, 0, 0), |g| g.set_protocol_version(1));
        assert_eq!(
            refused(&old, &snp()),
            Some(ErrorCode::INVALID_EVENT),
            "{code}"
        );
    }
    // A page state change without SNP needs its own feature.
    let list = with(event(ExitCode::PSC, 0, 0), |g| {
        g.set_sw_scratch(GHCB.0 + SHARED_BUFFER as u64)
    });
    let plain = Context {
        snp: false,
        ..snp()
    };
    assert_eq!(refused(&list, &plain), None);
    let without = Context {
        features: HvFeatures::all() - HvFeatures::PSC,
        ..plain
    };
    assert_eq!(refused(&list, &without), Some(ErrorCode::INVALID_EVENT));
}

#[test]
fn values_an_event_does_not_allow() {
    const BEYOND: u64 = 1 << 51;
    let io = |bits: u64| event(ExitCode::IOIO, 0x3f8 << 16 | bits, 1);
    let scratch = GHCB.0 + SHARED_BUFFER as u64;
    let rows = [
        ("no size", io(IoInfo::IN)),
        (
            "two sizes",
            io(IoInfo::IN | IoInfo::SIZE_8 | IoInfo::SIZE_16),
        ),
        ("reserved bit 1", io(IoInfo::IN | IoInfo::SIZE_8 | 2)),
        ("reserved bit 13", io(IoInfo::IN | IoInfo::SIZE_8 | 1 << 13)),
        (
            "bits above the port",
            io(IoInfo::IN | IoInfo::SIZE_8 | 1 << 32),
        ),
        (
            "two elements without REP",
            with(io(IoInfo::STRING | IoInfo::SIZE_8), |g| {
                g.set_sw_exit_info2(2);
                g.set_sw_scratch(scratch);
            }),
        ),
        (
            "element count overflows",
            with(io(IoInfo::STRING | IoInfo::REP | IoInfo::SIZE_32), |g| {
                g.set_sw_exit_info2(u64::MAX / 2);
                g.set_sw_scratch(scratch);
            }),
        ),
        (
            "neither read nor write",
            with(event(ExitCode::MSR, 2, 0), |g| g.set_rcx(1)),
        ),
        (
            "CPL 4",
            with(event(ExitCode::VMMCALL, 0, 0), |g| {
                g.set_rax(0);
                g.set_cpl(4);
            }),
        ),
        (
            "MMIO of nothing",
            with(event(ExitCode::MMIO_READ, 0x1000, 0), |g| {
                g.set_sw_scratch(scratch)
            }),
        ),
        (
            "MMIO past the C-bit",
            with(event(ExitCode::MMIO_READ, BEYOND - 2, 4), |g| {
                g.set_sw_scratch(scratch)
            }),
        ),
        (
            "MMIO wraps",
            with(event(ExitCode::MMIO_WRITE, u64::MAX, 4), |g| {
                g.set_sw_scratch(scratch)
            }),
        ),
        (
            "jump table operation 2",
            event(ExitCode::AP_JUMP_TABLE, 2, 0),
        ),
        (
            "jump table past the C-bit",
            event(ExitCode::AP_JUMP_TABLE, 0, BEYOND),
        ),
        (
            "request not a page",
            event(ExitCode::GUEST_REQUEST, 0x2001, 0x3000),
        ),
        (
            "response not a page",
            event(ExitCode::GUEST_REQUEST, 0x2000, 0x3008),
        ),
        (
            "request is response",
            event(ExitCode::GUEST_REQUEST, 0x2000, 0x2000),
        ),
        (
            "request past the C-bit",
            event(ExitCode::GUEST_REQUEST, BEYOND, 0x2000),
        ),
        (
            "certificates not a page",
            with(event(ExitCode::EXT_GUEST_REQUEST, 0x2000, 0x3000), |g| {
                g.set_rax(0x4010);
                g.set_rbx(1);
            }),
        ),
        (
            "too many pages",
            with(event(ExitCode::EXT_GUEST_REQUEST, 0x2000, 0x3000), |g| {
                g.set_rax(0x4000);
                g.set_rbx(u64::MAX / 2);
            }),
        ),
        (
            "AP operation 3",
            with(event(ExitCode::AP_CREATION, 3, 0x1000), |g| g.set_rax(1)),
        ),
        (
            "AP of VMPL 4",
            with(event(ExitCode::AP_CREATION, 4 << 16, 0x1000), |g| {
                g.set_rax(1)
            }),
        ),
        (
            "VMSA not a page",
            with(event(ExitCode::AP_CREATION, 1, 0x1004), |g| g.set_rax(1)),
        ),
        (
            "doorbell operation 4",
            event(ExitCode::HV_DOORBELL_PAGE, 4, 0),
        ),
        (
            "doorbell not a page",
            event(ExitCode::HV_DOORBELL_PAGE, 1, 0x10),
        ),
        (
            "APIC list not a page",
            with(event(ExitCode::APIC_ID_LIST, 8, 0), |g| g.set_rax(1)),
        ),
        ("VMPL 4", event(ExitCode::RUN_VMPL, 4, 0)),
        (
            "reason past its bits",
            event(ExitCode::TERMINATE, 0x1000, 0),
        ),
    ];
    for (what, page) in rows {
        assert_eq!(
            refused(&page, &snp()),
            Some(ErrorCode::INVALID_INPUT),
            "{what}"
        );
    }
}

#[test]
fn scratch_areas() {
    let start = GHCB.0 + SHARED_BUFFER as u64;
    let end = start + SHARED_BUFFER_LEN as u64;
    let page = |version: u16, scratch: u64, len: u64| {
        with(event(ExitCode::MMIO_READ, 0xfee0_0000, len), |g| {
            g.set_protocol_version(version);
            g.set_sw_scratch(scratch);
        })
    };
    let shared = |offset, len| Some(Scratch::Shared { offset, len });
    let memory = |gpa, len| Some(Scratch::Memory { gpa: Gpa(gpa), len });
    // (SW_SCRATCH, bytes, what version 1 allows, what version 2 allows)
    let rows = [
        (start, 1, shared(0, 1), shared(0, 1)),
        (
            start,
            SHARED_BUFFER_LEN as u64,
            shared(0, SHARED_BUFFER_LEN),
            shared(0, SHARED_BUFFER_LEN),
        ),
        (
            end - 8,
            8,
            shared(SHARED_BUFFER_LEN - 8, 8),
            shared(SHARED_BUFFER_LEN - 8, 8),
        ),
        (start, SHARED_BUFFER_LEN as u64 + 1, None, None),
        (end - 8, 9, None, None),
        (end, 1, None, None),
        (start - 1, 4, None, None),
        (GHCB.0, 8, None, None),
        (GHCB.0 - 4, 8, None, None),
        (GHCB.0 + 0xffc, 8, None, None),
        (GHCB.0 - 8, 8, memory(GHCB.0 - 8, 8), None),
        (GHCB.0 + 0x1000, 8, memory(GHCB.0 + 0x1000, 8), None),
        (0x20_0000, 0x1_0000, memory(0x20_0000, 0x1_0000), None),
        (0x20_0000, 0x1_0001, None, None),
        (0, 8, None, None),
        ((1 << 51) - 4, 8, None, None),
        (1 << 51, 8, None, None),
        (u64::MAX - 3, 8, None, None),
    ];
    for (scratch, len, old, new) in rows {
        for (version, wanted) in [(1, old), (2, new)] {
            let got = match hv::validate(&page(version, scratch, len), &snp()) {
                Ok(Request::MmioRead { data, .. }) => Some(data),
                Err(Refusal::BadScratch { gpa: Gpa(gpa), .. }) if gpa == scratch => None,
                other => panic!("{scratch:#x}, {len}: {other:?}"),
            };
            assert_eq!(got, wanted, "version {version}: {scratch:#x}, {len}");
        }
    }
    for scratch in [start - 8, end - 7, end, 0x20_0000, u64::MAX] {
        let list = with(event(ExitCode::PSC, 0, 0), |g| g.set_sw_scratch(scratch));
        assert_eq!(
            refused(&list, &snp()),
            Some(ErrorCode::INVALID_SCRATCH_AREA),
            "{scratch:#x}"
        );
    }
}

/// The fields an event needs besides the three of every event, written down apart from the code under test.
fn required(code: u64, info1: u64, rax: u64) -> &'static [Field] {
    match code {
        0x37 => &[Field::RAX],
        0x6f => &[Field::RCX],
        0x72 if rax as u32 == 0xd => &[Field::RAX, Field::RCX, Field::XCR0],
        0x72 => &[Field::RAX, Field::RCX],
        0x7b if info1 & 4 != 0 => &[Field::SW_SCRATCH],
        0x7b if info1 & 1 == 0 => &[Field::RAX],
        0x7c if info1 == 1 => &[Field::RCX, Field::RAX, Field::RDX],
        0x7c => &[Field::RCX],
        0x81 => &[Field::RAX, Field::CPL],
        0x8a => &[Field::RAX, Field::RCX, Field::RDX],
        0x8b => &[Field::RAX, Field::RCX],
        0x8000_0001 | 0x8000_0002 | 0x8000_0010 => &[Field::SW_SCRATCH],
        0x8000_0012 => &[Field::RAX, Field::RBX],
        0x8000_0013 if info1 as u16 != 2 => &[Field::RAX],
        0x8000_0017 => &[Field::RAX],
        _ => &[],
    }
}

/// The page's raw value at a field, valid or not.
fn raw(page: &Ghcb, field: Field) -> u64 {
    let at = usize::from(field.0);
    u64::read_from_bytes(&page.as_bytes()[at..at + 8]).unwrap()
}

fn check(page: &Ghcb, context: &Context) {
    let Ok(request) = hv::validate(page, context) else {
        return;
    };
    let code = raw(page, Field::SW_EXIT_CODE);
    let needed = required(code, raw(page, Field::SW_EXIT_INFO1), raw(page, Field::RAX));
    let always = [
        Field::SW_EXIT_CODE,
        Field::SW_EXIT_INFO1,
        Field::SW_EXIT_INFO2,
    ];
    for &field in always.iter().chain(needed) {
        assert!(page.is_valid(field), "{request:?} accepted without {field}");
    }
    assert_eq!(request.exit_code().0, code);
    // What was accepted means the same when the guest half says it.
    let mut again = Ghcb::default();
    request.fill(&mut again, &session(page.protocol_version()));
    assert_eq!(hv::validate(&again, context), Ok(request));
}

#[test]
fn leaving_out_a_required_field_is_refused() {
    for request in requests() {
        let mut page = Ghcb::default();
        request.fill(&mut page, &session(2));
        let code = raw(&page, Field::SW_EXIT_CODE);
        for &field in required(
            code,
            raw(&page, Field::SW_EXIT_INFO1),
            raw(&page, Field::RAX),
        ) {
            let lacking = with(page, |g| g.mark_invalid(field));
            assert_eq!(
                refused(&lacking, &snp()),
                Some(ErrorCode::MISSING_INPUT),
                "{request:?} without {field}"
            );
        }
    }
}

#[test]
fn random_pages_never_panic_and_never_pass_incomplete() {
    let mut random = Random(0x5e_71ab);
    let seeds = requests();
    let contexts = [
        snp(),
        es(),
        Context {
            snp: false,
            ..snp()
        },
        Context { version: 2, ..es() },
    ];
    let mut accepted = 0_u32;
    for round in 0..200_000_u32 {
        let mut page = Ghcb::default();
        seeds[random.below(seeds.len())].fill(&mut page, &session(1 + (round % 2) as u16));
        let mut bytes: [u8; 4096] = zerocopy::transmute!(page);
        for _ in 0..random.below(6) {
            match random.below(4) {
                // A bit of the bitmap.
                0 => bytes[0x3f0 + random.below(16)] ^= 1 << random.below(8),
                // A bit of any field, which the fields of the save area are likelier to be than the buffer.
                1 => bytes[random.below(0x400)] ^= 1 << random.below(8),
                // A whole field, with values near limits.
                2 => {
                    let field = Field::ALL[random.below(Field::ALL.len())];
                    let value = match random.below(4) {
                        0 => random.next(),
                        1 => u64::MAX - random.next() % 16,
                        2 => GHCB
                            .0
                            .wrapping_add(random.next() % 0x2000)
                            .wrapping_sub(0x800),
                        _ => 1 << random.below(64),
                    };
                    let at = usize::from(field.0).min(0x3e8);
                    bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
                }
                // The page's tail: version and usage.
                _ => bytes[0xff0 + random.below(16)] ^= 1 << random.below(8),
            }
        }
        let page: Ghcb = zerocopy::transmute!(bytes);
        let context = &contexts[random.below(contexts.len())];
        accepted += u32::from(hv::validate(&page, context).is_ok());
        check(&page, context);
    }
    // The mutations must not be so wild that nothing is left to check.
    assert!(accepted > 20_000, "only {accepted} accepted");

    for _ in 0..20_000 {
        let mut bytes = [0_u8; 4096];
        for chunk in bytes.chunks_exact_mut(8) {
            chunk.copy_from_slice(&random.next().to_le_bytes());
        }
        bytes[0xffa..].copy_from_slice(&[2, 0, 0, 0, 0, 0]);
        let code = seeds[random.below(seeds.len())].exit_code().0;
        bytes[0x390..0x398].copy_from_slice(&code.to_le_bytes());
        check(&zerocopy::transmute!(bytes), &snp());
    }
}
