//! The reverse map table's rules, a row each (APM vol. 2, 15.36).

mod common;

use std::sync::Arc;

use common::{ONE, bus, config, machine};
use sevlab_arch::{Asid, Gpa, Spa, Va};
use sevlab_memctl::{
    CacheMode, CipherKind, Domain, FastTlb, MemCtl, PageSize, Perms, Rmp, RmpAccess, RmpAdjust,
    RmpReason, RmpStatus, RmpUpdate, VmplPerms,
};

use PageSize::{Size2M, Size4K};

const A: Asid = Asid(1);
const LARGE: u64 = 2 << 20;

fn snp() -> Arc<MemCtl> {
    let mut cfg = config(CipherKind::Aes128Xex, CacheMode::Page);
    cfg.snp = true;
    machine(cfg)
}

fn assign(gpa: u64, asid: u32, size: PageSize) -> RmpUpdate {
    RmpUpdate {
        gpa,
        assigned: 1,
        page_size: u8::from(size == Size2M),
        asid,
        ..RmpUpdate::default()
    }
}

fn give(r: &Rmp, spa: u64, gpa: u64, size: PageSize) {
    assert_eq!(
        r.rmpupdate(Spa(spa), &assign(gpa, 1, size)),
        RmpStatus::SUCCESS
    );
}

fn validate(r: &Rmp, spa: u64, gpa: u64, size: PageSize, on: bool) -> (RmpStatus, bool) {
    let p = r
        .pvalidate(A, Gpa(gpa), Spa(spa), size, on)
        .expect("no fault");
    (p.status, p.unchanged)
}

fn reason(
    r: &Rmp,
    asid: u32,
    gpa: u64,
    spa: u64,
    access: RmpAccess,
    vmpl: u8,
) -> Option<RmpReason> {
    r.check_guest(Asid(asid), Gpa(gpa), Spa(spa), access, vmpl)
        .err()
        .map(|f| f.reason)
}

#[test]
fn the_table_is_in_dram() {
    let m = snp();
    let r = m.rmp();
    let base = r.base().0;
    assert_eq!(base % 8192, 0);
    assert!(base + 0x4000 + (m.size() >> 12) * 16 <= m.size());
    assert_eq!((m.usable_size(), r.end().0), (base, m.size() - 1));
    give(r, 0x5000, 0x12_3000, Size4K);
    let at = base + 0x4000 + 5 * 16;
    let lo = u64::from_le_bytes(bus(&m, at));
    assert_eq!(lo, 1 | 0x12_3000 | 1 << 51);
    assert_eq!(
        validate(r, 0x5000, 0x12_3000, Size4K, true),
        (RmpStatus::SUCCESS, false)
    );
    assert_eq!(u64::from_le_bytes(bus(&m, at)), lo | 1 << 62);
    // An attack on the table itself works as it would on hardware without integrity.
    m.bus_write(Spa(at), &[0]);
    assert_eq!(
        reason(r, 1, 0x12_3000, 0x5000, RmpAccess::Read, 0),
        Some(RmpReason::NotAssigned)
    );
    // Software writes to it do not pass a check, and the hypervisor can't give it away.
    assert!(r.check_host_write(Spa(at)).is_err());
    assert_eq!(
        r.rmpupdate(Spa(at & !0xfff), &assign(0, 1, Size4K)),
        RmpStatus::FAIL_PERMISSION
    );
}

#[test]
fn guest_checks() {
    let m = snp();
    let r = m.rmp();
    give(r, 0x5000, 0x8000, Size4K);
    let rd = RmpAccess::Read;
    assert_eq!(
        reason(r, 1, 0x8000, 0x5000, rd, 0),
        Some(RmpReason::NotValidated)
    );
    validate(r, 0x5000, 0x8000, Size4K, true);
    let rows = [
        // asid, gpa, spa, access, vmpl, refused
        (1, 0x8000, 0x5000, rd, 0, None),
        (1, 0x8abc, 0x5abc, RmpAccess::Write, 0, None),
        (1, 0x8000, 0x5000, RmpAccess::ExecUser, 0, None),
        (1, 0x8000, 0x5000, RmpAccess::ExecSupervisor, 0, None),
        (2, 0x8000, 0x5000, rd, 0, Some(RmpReason::Asid)),
        (1, 0x9000, 0x5000, rd, 0, Some(RmpReason::Gpa)),
        (1, 0x8000, 0x6000, rd, 0, Some(RmpReason::NotAssigned)),
        (1, 0x8000, m.size(), rd, 0, Some(RmpReason::NotAssigned)),
        (1, 0x8000, u64::MAX, rd, 0, Some(RmpReason::NotAssigned)),
        (1, 0x8000, r.base().0, rd, 0, Some(RmpReason::Asid)),
        (1, 0x8000, 0x5000, rd, 1, Some(RmpReason::Vmpl)),
        (
            1,
            0x8000,
            0x5000,
            RmpAccess::Write,
            3,
            Some(RmpReason::Vmpl),
        ),
    ];
    for (asid, gpa, spa, access, vmpl, want) in rows {
        let got = reason(r, asid, gpa, spa, access, vmpl);
        assert_eq!(
            got, want,
            "ASID {asid} {gpa:#x} at {spa:#x} {access:?} VMPL{vmpl}"
        );
    }
    assert_eq!(r.check_host_write(Spa(0x6000)), Ok(()));
    let f = r.check_host_write(Spa(0x5008)).expect_err("assigned");
    assert_eq!(
        (f.spa, f.reason, f.npf_bits()),
        (Spa(0x5000), RmpReason::Assigned, 1 << 31)
    );
}

#[test]
fn fault_bits() {
    let m = snp();
    let r = m.rmp();
    give(r, LARGE, LARGE, Size2M);
    let f = |asid, gpa, spa| {
        r.check_guest(Asid(asid), Gpa(gpa), Spa(spa), RmpAccess::Read, 1)
            .expect_err("fault")
    };
    let unvalidated = f(1, LARGE, LARGE);
    assert!(unvalidated.is_vc() && unvalidated.npf_bits() == 0);
    validate(r, LARGE, LARGE, Size2M, true);
    let enc = 1 << 31 | 1 << 34;
    assert_eq!(f(2, LARGE, LARGE).npf_bits(), enc);
    assert_eq!(f(1, 0, LARGE).npf_bits(), enc);
    assert_eq!(f(1, 0, 0x1000).npf_bits(), enc);
    assert_eq!(f(1, LARGE, LARGE).npf_bits(), enc | 1 << 36);
    let f = r
        .pvalidate(A, Gpa(LARGE), Spa(LARGE), Size4K, false)
        .expect_err("fault");
    assert_eq!(
        (f.reason, f.npf_bits()),
        (RmpReason::OperandSize, enc | 1 << 35)
    );
    let f = r
        .check_guest_sized(A, Gpa(LARGE), Spa(LARGE), RmpAccess::Read, 0, Size4K)
        .expect_err("fault");
    assert_eq!((f.reason, f.npf_bits()), (RmpReason::NestedSize, enc));
    assert_eq!(
        r.check_guest_sized(A, Gpa(LARGE), Spa(LARGE), RmpAccess::Read, 0, Size2M),
        Ok(())
    );
}

#[test]
fn rmpupdate() {
    let m = snp();
    let r = m.rmp();
    use RmpStatus as S;
    let with = |f: &dyn Fn(&mut RmpUpdate)| {
        let mut u = assign(0x8000, 1, Size4K);
        f(&mut u);
        u
    };
    let rows = [
        ("unaligned SPA", 0x5008, with(&|_| ()), S::FAIL_INPUT),
        ("beyond DRAM", m.size(), with(&|_| ()), S::FAIL_INPUT),
        ("far beyond DRAM", !0xfff, with(&|_| ()), S::FAIL_INPUT),
        (
            "unaligned GPA",
            0x5000,
            with(&|u| u.gpa = 0x8010),
            S::FAIL_INPUT,
        ),
        (
            "wide GPA",
            0x5000,
            with(&|u| u.gpa = 1 << 51),
            S::FAIL_INPUT,
        ),
        ("wide ASID", 0x5000, with(&|u| u.asid = 1024), S::FAIL_INPUT),
        (
            "no such size",
            0x5000,
            with(&|u| u.page_size = 2),
            S::FAIL_INPUT,
        ),
        (
            "large at 4 KiB",
            0x5000,
            assign(0, 1, Size2M),
            S::FAIL_INPUT,
        ),
        (
            "large to 4 KiB",
            LARGE,
            assign(0x1000, 1, Size2M),
            S::FAIL_INPUT,
        ),
        ("small", 0x5000, with(&|_| ()), S::SUCCESS),
        ("small again", 0x5000, with(&|_| ()), S::SUCCESS),
        (
            "to another guest",
            0x5000,
            with(&|u| u.asid = 2),
            S::SUCCESS,
        ),
        ("large over small", 0, assign(0, 1, Size2M), S::FAIL_OVERLAP),
        ("large", LARGE, assign(0, 1, Size2M), S::SUCCESS),
        (
            "small in large",
            LARGE + 0x1000,
            with(&|_| ()),
            S::FAIL_OVERLAP,
        ),
        (
            "small at the large one's head",
            LARGE,
            with(&|_| ()),
            S::FAIL_OVERLAP,
        ),
        (
            "small taken from large",
            LARGE + 0x1000,
            RmpUpdate::default(),
            S::FAIL_OVERLAP,
        ),
        ("large again", LARGE, assign(LARGE, 2, Size2M), S::SUCCESS),
        (
            "large taken",
            LARGE,
            with(&|u| {
                *u = RmpUpdate {
                    page_size: 1,
                    ..RmpUpdate::default()
                }
            }),
            S::SUCCESS,
        ),
        ("small there now", LARGE + 0x1000, with(&|_| ()), S::SUCCESS),
        (
            "small taken",
            LARGE + 0x1000,
            RmpUpdate::default(),
            S::SUCCESS,
        ),
        (
            "firmware's",
            0x6000,
            with(&|u| (u.gpa, u.asid, u.immutable) = (0, 0, 1)),
            S::SUCCESS,
        ),
        (
            "firmware's again",
            0x6000,
            with(&|_| ()),
            S::FAIL_PERMISSION,
        ),
        (
            "firmware's taken",
            0x6000,
            RmpUpdate::default(),
            S::FAIL_PERMISSION,
        ),
    ];
    for (what, spa, update, want) in rows {
        assert_eq!(r.rmpupdate(Spa(spa), &update), want, "{what}");
    }
    let e = r.lookup(Spa(LARGE + 0x1000)).expect("covered");
    assert!(!e.assigned());
}

#[test]
fn a_remap_voids_what_the_guest_validated() {
    let m = snp();
    let r = m.rmp();
    give(r, 0x5000, 0x8000, Size4K);
    validate(r, 0x5000, 0x8000, Size4K, true);
    let to_vmpl1 = RmpAdjust {
        target_vmpl: 1,
        perms: VmplPerms::READ,
        vmsa: false,
    };
    assert_eq!(
        r.rmpadjust(A, Gpa(0x8000), Spa(0x5000), Size4K, 0, to_vmpl1),
        Ok(RmpStatus::SUCCESS)
    );
    assert_eq!(reason(r, 1, 0x8000, 0x5000, RmpAccess::Read, 1), None);
    assert_eq!(
        r.rmpupdate(Spa(0x5000), &RmpUpdate::default()),
        RmpStatus::SUCCESS
    );
    give(r, 0x5000, 0x8000, Size4K);
    assert_eq!(
        reason(r, 1, 0x8000, 0x5000, RmpAccess::Read, 0),
        Some(RmpReason::NotValidated)
    );
    validate(r, 0x5000, 0x8000, Size4K, true);
    assert_eq!(
        reason(r, 1, 0x8000, 0x5000, RmpAccess::Read, 1),
        Some(RmpReason::Vmpl)
    );
}

#[test]
fn pvalidate() {
    let m = snp();
    let r = m.rmp();
    give(r, 0x5000, 0x8000, Size4K);
    give(r, LARGE, LARGE, Size2M);
    let ok = RmpStatus::SUCCESS;
    assert_eq!(validate(r, 0x5000, 0x8000, Size4K, true), (ok, false));
    assert_eq!(
        validate(r, 0x5000, 0x8000, Size4K, true),
        (ok, true),
        "CF: already so"
    );
    assert_eq!(validate(r, 0x5000, 0x8000, Size4K, false), (ok, false));
    assert_eq!(validate(r, 0x5000, 0x8000, Size4K, false), (ok, true));
    assert_eq!(validate(r, LARGE, LARGE, Size2M, true), (ok, false));
    assert_eq!(
        validate(r, LARGE, LARGE + 0x1000, Size2M, true),
        (RmpStatus::FAIL_INPUT, false)
    );
    // A large operand on small pages: the guest is to try small ones.
    give(r, 2 * LARGE, 2 * LARGE, Size4K);
    let (status, carry) = validate(r, 2 * LARGE, 2 * LARGE, Size2M, true);
    assert_eq!((status, carry), (RmpStatus::FAIL_SIZEMISMATCH, false));
    for (asid, gpa, spa, want) in [
        (2, 0x8000, 0x5000, RmpReason::Asid),
        (1, 0x9000, 0x5000, RmpReason::Gpa),
        (1, 0x8000, 0x7000, RmpReason::NotAssigned),
        (1, LARGE, m.size(), RmpReason::NotAssigned),
    ] {
        let f = r
            .pvalidate(Asid(asid), Gpa(gpa), Spa(spa), Size4K, true)
            .expect_err("fault");
        assert_eq!(f.reason, want);
    }
}

#[test]
fn psmash() {
    let m = snp();
    let r = m.rmp();
    give(r, LARGE, 4 * LARGE, Size2M);
    validate(r, LARGE, 4 * LARGE, Size2M, true);
    let last = LARGE - 0x1000;
    assert_eq!(
        reason(r, 1, 4 * LARGE + last, LARGE + last, RmpAccess::Read, 0),
        None
    );
    assert_eq!(r.psmash(Spa(LARGE + 0x1000)), RmpStatus::FAIL_INPUT);
    assert_eq!(r.psmash(Spa(0)), RmpStatus::FAIL_INPUT);
    assert_eq!(r.psmash(Spa(m.size())), RmpStatus::FAIL_INPUT);
    assert_eq!(r.psmash(Spa(LARGE)), RmpStatus::SUCCESS);
    assert_eq!(r.psmash(Spa(LARGE)), RmpStatus::FAIL_INPUT, "small already");
    for at in [0, 0x1000, last] {
        assert_eq!(
            reason(r, 1, 4 * LARGE + at, LARGE + at, RmpAccess::Write, 0),
            None,
            "{at:#x}"
        );
        let e = r.lookup(Spa(LARGE + at)).expect("covered");
        assert!(e.validated() && !e.is_2m() && e.gpa() == 4 * LARGE + at);
    }
    // Each by itself now.
    assert_eq!(
        r.rmpupdate(Spa(LARGE + last), &RmpUpdate::default()),
        RmpStatus::SUCCESS
    );
    assert_eq!(reason(r, 1, 4 * LARGE, LARGE, RmpAccess::Read, 0), None);
    let sealed = RmpUpdate {
        immutable: 1,
        ..assign(0, 0, Size2M)
    };
    assert_eq!(r.rmpupdate(Spa(2 * LARGE), &sealed), RmpStatus::SUCCESS);
    assert_eq!(r.psmash(Spa(2 * LARGE)), RmpStatus::FAIL_PERMISSION);
}

#[test]
fn rmpadjust() {
    let m = snp();
    let r = m.rmp();
    give(r, 0x5000, 0x8000, Size4K);
    let adjust = |by: u8, target_vmpl: u8, perms: VmplPerms, vmsa: bool| {
        let a = RmpAdjust {
            target_vmpl,
            perms,
            vmsa,
        };
        r.rmpadjust(A, Gpa(0x8000), Spa(0x5000), Size4K, by, a)
    };
    let rw = VmplPerms::READ | VmplPerms::WRITE;
    assert_eq!(
        adjust(0, 1, rw, false).map_err(|f| f.reason),
        Err(RmpReason::NotValidated)
    );
    validate(r, 0x5000, 0x8000, Size4K, true);
    use RmpStatus as S;
    let rows = [
        (0, 0, rw, false, S::FAIL_PERMISSION, "its own level"),
        (1, 0, rw, false, S::FAIL_PERMISSION, "a level above"),
        (0, 4, rw, false, S::FAIL_INPUT, "no such level"),
        (
            1,
            2,
            VmplPerms::READ,
            false,
            S::FAIL_PERMISSION,
            "more than it has",
        ),
        (0, 1, rw, false, S::SUCCESS, "grant"),
        (
            1,
            2,
            VmplPerms::FULL,
            false,
            S::FAIL_PERMISSION,
            "more than it has",
        ),
        (
            1,
            2,
            VmplPerms::READ,
            true,
            S::FAIL_PERMISSION,
            "a VMSA from VMPL1",
        ),
        (1, 2, VmplPerms::READ, false, S::SUCCESS, "pass on"),
        (0, 1, VmplPerms::empty(), true, S::SUCCESS, "a VMSA"),
    ];
    for (by, target, perms, vmsa, want, what) in rows {
        assert_eq!(adjust(by, target, perms, vmsa), Ok(want), "{what}");
    }
    assert!(r.lookup(Spa(0x5000)).expect("covered").vmsa());
    assert_eq!(reason(r, 1, 0x8000, 0x5000, RmpAccess::Read, 2), None);
    assert_eq!(
        reason(r, 1, 0x8000, 0x5000, RmpAccess::Write, 2),
        Some(RmpReason::Vmpl)
    );
    assert_eq!(
        reason(r, 1, 0x8000, 0x5000, RmpAccess::Read, 1),
        Some(RmpReason::Vmpl)
    );
    let from = RmpAdjust::from_rdx(1 << 16 | 0x3 << 8 | 1);
    assert_eq!(
        from,
        RmpAdjust {
            target_vmpl: 1,
            perms: rw,
            vmsa: true
        }
    );
    give(r, LARGE, LARGE, Size2M);
    validate(r, LARGE, LARGE, Size2M, true);
    let small = r
        .rmpadjust(A, Gpa(LARGE), Spa(LARGE), Size4K, 0, from)
        .expect_err("fault");
    assert_eq!(small.reason, RmpReason::OperandSize);
    give(r, 0, 0, Size4K);
    validate(r, 0, 0, Size4K, true);
    assert_eq!(
        r.rmpadjust(A, Gpa(0), Spa(0), Size2M, 0, from),
        Ok(S::FAIL_SIZEMISMATCH)
    );
}

#[test]
fn every_change_drops_fast_tlb_entries() {
    let m = snp();
    let r = m.rmp();
    let tlb = Arc::new(FastTlb::new());
    m.attach_tlb(Arc::clone(&tlb));
    let fill = |d: Domain, spa: u64| {
        m.fill_tlb(&tlb, Va(0x40_0000 + spa), d, Spa(spa), Perms::RW)
            .expect("fill")
            .expect("page");
        assert!(tlb.lookup_read(Va(0x40_0000 + spa), 8).is_some());
    };
    let empty = |what: &str| assert_eq!(tlb.occupied(), 0, "{what}");
    fill(Domain::Shared, 0x5000);
    give(r, 0x5000, 0x8000, Size4K);
    empty("rmpupdate of a shared page");
    validate(r, 0x5000, 0x8000, Size4K, true);
    fill(ONE, 0x5000);
    let a = RmpAdjust {
        target_vmpl: 1,
        perms: VmplPerms::READ,
        vmsa: false,
    };
    r.rmpadjust(A, Gpa(0x8000), Spa(0x5000), Size4K, 0, a)
        .expect("no fault");
    empty("rmpadjust");
    fill(ONE, 0x5000);
    validate(r, 0x5000, 0x8000, Size4K, false);
    empty("pvalidate");
    give(r, LARGE, LARGE, Size2M);
    for at in [0, 0x1000, LARGE - 0x1000] {
        fill(ONE, LARGE + at);
    }
    assert_eq!(
        r.rmpupdate(
            Spa(LARGE),
            &RmpUpdate {
                page_size: 1,
                ..RmpUpdate::default()
            }
        ),
        RmpStatus::SUCCESS
    );
    empty("rmpupdate of 2 MiB");
}

#[test]
fn off_means_no_checks_and_no_instructions() {
    let m = machine(config(CipherKind::Aes128Xex, CacheMode::Page));
    let r = m.rmp();
    assert!(!r.is_enabled());
    assert_eq!(
        (r.base().0, r.end().0, m.usable_size()),
        (m.size(), 0, m.size())
    );
    assert_eq!(
        r.check_guest(Asid(9), Gpa(0), Spa(0x1000), RmpAccess::Write, 3),
        Ok(())
    );
    assert_eq!(r.check_host_write(Spa(0x1000)), Ok(()));
    assert_eq!(
        r.rmpupdate(Spa(0x1000), &assign(0, 1, Size4K)),
        RmpStatus::FAIL_INPUT
    );
    assert_eq!(r.psmash(Spa(0)), RmpStatus::FAIL_INPUT);
    assert!(r.lookup(Spa(0)).is_none());
}
