//! The few functions on top of the tables, and that no table names one number twice.

use sevlab_arch::exit::ExitCode;
use sevlab_arch::ghcb::{Field, FieldNotValid, Ghcb};
use sevlab_arch::psp::{Command, SnpLaunchUpdate, SnpPageType, Status};
use sevlab_arch::rmp::{RmpEntry, VmplPerms};
use sevlab_arch::vector::Vector;
use sevlab_arch::vmcb::{EventInjection, EventType};
use sevlab_arch::{cpuid, msr, snp};

fn distinct<T: Copy + Ord + std::fmt::Debug>(all: &[T]) {
    let mut sorted = all.to_vec();
    sorted.sort();
    sorted.dedup();
    assert_eq!(sorted.len(), all.len(), "{all:?}");
}

#[test]
fn numbers_are_distinct() {
    distinct(ExitCode::ALL);
    distinct(Command::ALL);
    distinct(Status::ALL);
    distinct(Field::ALL);
    distinct(Vector::ALL);
    distinct(msr::Msr::ALL);
    distinct(cpuid::Leaf::ALL);
    distinct(snp::MessageType::ALL);
}

#[test]
fn open_values_print() {
    assert_eq!(ExitCode::VMGEXIT.to_string(), "VMGEXIT");
    assert_eq!(ExitCode(0x8000_1234).to_string(), "0x80001234");
    assert_eq!(format!("{:?}", Status(0x15)), "Status(0x15 UNSUPPORTED)");
    assert!(
        ExitCode::INTR.is_automatic()
            && !ExitCode::CPUID.is_automatic()
            && ExitCode::PSC.is_guest_event()
    );
}

#[test]
fn ghcb_fields_follow_their_bits() {
    let mut page = Ghcb::default();
    assert_eq!(page.rax(), Err(FieldNotValid { field: Field::RAX }));
    page.set_rax(5);
    assert_eq!(page.rax(), Ok(5));
    // Bit 63 is offset 0x1f8.
    assert_eq!(page.valid_bitmap()[7], 0x80);
    page.set_cpl(3);
    assert_eq!((page.cpl(), page.valid_bitmap()[3]), (Ok(3), 2));
    page.mark_invalid(Field::RAX);
    assert_eq!(page.rax(), Err(FieldNotValid { field: Field::RAX }));
    for &field in Field::ALL {
        page.clear_valid();
        page.mark_valid(field);
        assert!(page.is_valid(field));
        assert_eq!(
            page.valid_bitmap()
                .iter()
                .map(|byte| byte.count_ones())
                .sum::<u32>(),
            1
        );
    }
}

#[test]
fn packed_words_come_apart() {
    let mut entry = RmpEntry {
        lo: RmpEntry::pack(0x1234_5000, 42, RmpEntry::ASSIGNED | RmpEntry::VALIDATED),
        hi: 0,
    };
    assert!(
        entry.assigned()
            && entry.validated()
            && !entry.is_2m()
            && !entry.immutable()
            && !entry.vmsa()
    );
    assert_eq!((entry.gpa(), entry.asid()), (0x1234_5000, 42));
    entry.set_perms(1, VmplPerms::READ.bits());
    entry.set_perms(0, VmplPerms::FULL.bits());
    assert_eq!(
        (entry.perms(0), entry.perms(1), entry.perms(2)),
        (0xf, 1, 0)
    );

    let fault = EventInjection::exception(Vector::PF.0, Some(6));
    assert_eq!(fault.0, 0x6_8000_0b0e);
    assert_eq!(
        (fault.event_type(), fault.error(), fault.is_valid()),
        (EventType::EXCEPTION, Some(6), true)
    );

    let update = SnpLaunchUpdate {
        page: 0b1_0101,
        ..Default::default()
    };
    assert!(update.is_2m() && update.is_imi());
    assert_eq!(update.page_type(), SnpPageType::VMSA);

    assert_eq!(cpuid::sev_ebx(51, 5, 4), 0x8000_4173);
    assert_eq!(snp::tcb_milan(3, 0, 8, 115), 0x7308_0000_0000_0003);
}
