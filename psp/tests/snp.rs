//! SNP launches: the digest against plain code and a value made elsewhere, RMP states, refused orders.

mod common;

use common::*;
use p384::ecdsa::signature::Signer;
use p384::ecdsa::{Signature, SigningKey};
use sha2::{Digest, Sha384};
use zerocopy::{FromZeros, IntoBytes};

const POLICY: SnpPolicy = SnpPolicy::SMT.union(SnpPolicy::RESERVED_MUST_BE_ONE);
const ASID: Asid = Asid(3);
const NONE: VmplPerms = VmplPerms {
    vmpl1: 0,
    vmpl2: 0,
    vmpl3: 0,
};

fn snp() -> Rig {
    rig(true, CipherKind::Aes256Xts)
}

/// A guest in the LAUNCH state, active.
fn launching() -> Rig {
    let r = snp();
    r.driver.snp_init().expect("SNP_INIT");
    r.assign(GCTX, 0, 0, true, false);
    r.driver.snp_gctx_create(GCTX).expect("GCTX_CREATE");
    r.driver
        .snp_launch_start(GCTX, POLICY)
        .expect("LAUNCH_START");
    r.driver.snp_activate(GCTX, ASID).expect("ACTIVATE");
    r
}

fn update(r: &Rig, at: Spa, kind: SnpPageType) -> Status {
    status(r.driver.snp_launch_update(GCTX, at, kind, false, NONE))
}

/// One link of the chain, in plain code.
fn extend(ld: [u8; 48], kind: u8, perms: VmplPerms, gpa: u64, contents: Option<&[u8]>) -> [u8; 48] {
    let mut info = ld.to_vec();
    match contents {
        Some(page) => info.extend_from_slice(&Sha384::digest(page)),
        None => info.extend_from_slice(&[0; 48]),
    }
    info.extend_from_slice(&[0x70, 0, kind, 0]);
    info.extend_from_slice(&[perms.vmpl3, perms.vmpl2, perms.vmpl1, 0]);
    info.extend_from_slice(&gpa.to_le_bytes());
    assert_eq!(info.len(), 0x70);
    Sha384::digest(&info).into()
}

#[test]
fn the_digest_is_the_chain_of_the_specification() {
    let r = launching();
    let perms = VmplPerms {
        vmpl1: 1,
        vmpl2: 3,
        vmpl3: 7,
    };
    let mut ld = [0; 48];
    let at = |i: u64| GUEST.plus(i * 4096);
    let pages: [(u64, SnpPageType, VmplPerms, bool); 5] = [
        (0x1000, SnpPageType::NORMAL, perms, true),
        (0x2000, SnpPageType::ZERO, NONE, false),
        (0x3000, SnpPageType::UNMEASURED, NONE, false),
        (0x4000, SnpPageType::SECRETS, NONE, false),
        (0x5000, SnpPageType::CPUID, NONE, false),
    ];
    for (i, (gpa, kind, perms, measured)) in pages.into_iter().enumerate() {
        let at = at(i as u64);
        let contents = if kind == SnpPageType::CPUID {
            vec![0; 4096]
        } else {
            pattern(1)
        };
        r.write(at, &contents);
        r.assign(at, gpa, ASID.0, true, false);
        r.driver
            .snp_launch_update(GCTX, at, kind, false, perms)
            .expect("LAUNCH_UPDATE");
        ld = extend(ld, kind.0, perms, gpa, measured.then_some(&contents));
        let e = r.entry(at);
        assert!(e.assigned() && e.validated() && !e.immutable() && !e.vmsa());
        assert_eq!((e.gpa(), e.asid()), (gpa, ASID.0));
        assert_eq!(e.perms(1), perms.vmpl1);
        assert_eq!(e.perms(3), perms.vmpl3);
        let plain = r.private(ASID, at, 4096);
        match kind {
            SnpPageType::ZERO => assert_eq!(plain, vec![0; 4096]),
            SnpPageType::SECRETS => {
                assert_eq!(plain[..4], 3u32.to_le_bytes());
                assert_ne!(plain[0x20..0x40], [0; 32], "VMPCK0");
                assert_ne!(plain[0x20..0x40], plain[0x40..0x60]);
            }
            _ => assert_eq!(plain, contents),
        }
        assert_ne!(r.raw(at, 4096), plain, "DRAM holds ciphertext");
    }
    // A 2 MiB page counts as its 512 small ones.
    let large = Spa(0x80_0000);
    for i in 0..512u64 {
        let page = pattern(i as u8);
        r.write(large.plus(i * 4096), &page);
        ld = extend(ld, 1, NONE, 0x20_0000 + i * 4096, Some(&page));
    }
    r.assign(large, 0x20_0000, ASID.0, true, true);
    r.driver
        .snp_launch_update(GCTX, large, SnpPageType::NORMAL, true, NONE)
        .expect("LAUNCH_UPDATE");
    assert!(r.entry(large).validated() && r.entry(large).is_2m());
    let vmsa = GUEST.plus(0x2_0000);
    r.write(vmsa, &pattern(3));
    r.assign(vmsa, 0xffff_ffff_f000, ASID.0, true, false);
    assert_eq!(update(&r, vmsa, SnpPageType::VMSA), Status::SUCCESS);
    assert!(r.entry(vmsa).vmsa());
    ld = extend(ld, 2, NONE, 0xffff_ffff_f000, Some(&pattern(3)));

    assert_eq!(r.fw.snp_identity(GCTX), None, "not before LAUNCH_FINISH");
    r.driver
        .snp_launch_finish(GCTX, [0xdd; 32], None)
        .expect("LAUNCH_FINISH");
    let (measured, identity) = r.fw.snp_identity(GCTX).expect("launched");
    assert_eq!(measured, ld);
    assert_eq!(identity.host_data, [0xdd; 32]);
    // The same chain, computed by another program.
    let golden: String = measured.iter().map(|b| format!("{b:02x}")).collect();
    assert_eq!(golden, GOLDEN);
    let (policy, asid, state) = r.driver.snp_guest_status(GCTX).expect("GUEST_STATUS");
    assert_eq!(
        (policy, asid, state),
        (POLICY, ASID, SnpGuestState::RUNNING)
    );
}

const GOLDEN: &str = "ba3c708f899bab24bbe8b093b435c2222f608067951d57701df59ca4732e7189574507060a5c3ccd0d6fca36c0676a7a";

#[test]
fn pages_must_be_pre_guest_pages_of_the_guest() {
    let r = launching();
    let at = |i: u64| GUEST.plus(i * 4096);
    let digest_free = [
        (at(0), Status::INVALID_PAGE_STATE), // the hypervisor's
        (at(1), Status::INVALID_PAGE_STATE), // assigned, but not immutable
        (at(2), Status::INVALID_PAGE_OWNER), // another guest's
        (at(3), Status::INVALID_PAGE_STATE), // the firmware's
        (GCTX, Status::INVALID_PAGE_STATE),
        (Spa(GUEST.0 + 8), Status::INVALID_ADDRESS),
        (Spa(r.mem.size()), Status::INVALID_ADDRESS),
        (Spa(0x80_0000), Status::INVALID_PAGE_SIZE),
    ];
    r.assign(at(1), 0x1000, ASID.0, false, false);
    r.assign(at(2), 0x2000, 9, true, false);
    r.assign(at(3), 0, 0, true, false);
    r.assign(Spa(0x80_0000), 0x20_0000, ASID.0, true, true);
    for (page, expected) in digest_free {
        let before = (page.0 < r.mem.size()).then(|| (r.raw(page.page(), 4096), r.entry(page)));
        assert_eq!(update(&r, page, SnpPageType::NORMAL), expected, "{page}");
        let after = (page.0 < r.mem.size()).then(|| (r.raw(page.page(), 4096), r.entry(page)));
        assert!(before == after, "{page} changed");
    }
    // Wrong types, sizes and permissions.
    r.assign(at(4), 0x4000, ASID.0, true, false);
    for kind in [0, 7] {
        assert_eq!(update(&r, at(4), SnpPageType(kind)), Status::INVALID_PARAM);
    }
    let large = |kind| {
        status(
            r.driver
                .snp_launch_update(GCTX, Spa(0x80_0000), kind, true, NONE),
        )
    };
    for kind in [SnpPageType::VMSA, SnpPageType::SECRETS, SnpPageType::CPUID] {
        assert_eq!(large(kind), Status::INVALID_PARAM);
    }
    let perms = VmplPerms {
        vmpl1: 0x20,
        ..NONE
    };
    let got = r
        .driver
        .snp_launch_update(GCTX, at(4), SnpPageType::NORMAL, false, perms);
    assert_eq!(status(got), Status::INVALID_PARAM);
    assert_eq!(update(&r, at(4), SnpPageType::NORMAL), Status::SUCCESS);
    assert_eq!(
        update(&r, at(4), SnpPageType::NORMAL),
        Status::INVALID_PAGE_STATE,
        "twice"
    );
    // None of the refusals was measured.
    r.driver
        .snp_launch_finish(GCTX, [0; 32], None)
        .expect("LAUNCH_FINISH");
    let (ld, _) = r.fw.snp_identity(GCTX).expect("launched");
    assert_eq!(ld, extend([0; 48], 1, NONE, 0x4000, Some(&[0; 4096])));
}

fn submit(r: &Rig, step: &str) -> Status {
    let d = &r.driver;
    match step {
        "init" => status(d.snp_init()),
        "sev init" => status(d.init(None)),
        "gctx" => status(d.snp_gctx_create(GCTX)),
        "start" => status(d.snp_launch_start(GCTX, POLICY)),
        "activate" => status(d.snp_activate(GCTX, ASID)),
        "update" => update(r, GUEST, SnpPageType::NORMAL),
        "finish" => status(d.snp_launch_finish(GCTX, [0; 32], None)),
        "guest status" => status(d.snp_guest_status(GCTX)),
        "decommission" => status(d.snp_decommission(GCTX)),
        "reclaim" => status(d.snp_page_reclaim(GCTX)),
        "flush" => status(d.snp_df_flush()),
        other => panic!("{other}"),
    }
}

fn in_state(state: &str) -> Rig {
    let r = snp();
    r.assign(GCTX, 0, 0, true, false);
    r.assign(GUEST, 0x1000, ASID.0, true, false);
    let steps: &[&str] = match state {
        "uninit" => &[],
        "init" => &["init"],
        "context" => &["init", "gctx"],
        "launch" => &["init", "gctx", "start"],
        "active" => &["init", "gctx", "start", "activate"],
        "running" => &["init", "gctx", "start", "activate", "finish"],
        "gone" => &["init", "gctx", "start", "activate", "decommission"],
        other => panic!("{other}"),
    };
    for step in steps {
        assert_eq!(submit(&r, step), Status::SUCCESS, "{step} to reach {state}");
    }
    r
}

#[test]
fn orders_that_are_refused() {
    let platform = Status::INVALID_PLATFORM_STATE;
    let guest = Status::INVALID_GUEST_STATE;
    let table: &[(&str, &[(&str, Status)])] = &[
        (
            "uninit",
            &[
                ("gctx", platform),
                ("start", platform),
                ("activate", platform),
                ("update", platform),
                ("finish", platform),
                ("guest status", platform),
                ("decommission", platform),
                ("reclaim", platform),
                ("flush", platform),
            ],
        ),
        (
            "init",
            &[
                ("init", platform),
                ("start", Status::INVALID_GUEST),
                ("activate", Status::INVALID_GUEST),
                ("update", Status::INVALID_GUEST),
                ("finish", Status::INVALID_GUEST),
                ("decommission", Status::INVALID_GUEST),
            ],
        ),
        (
            "context",
            &[
                ("gctx", Status::INVALID_PAGE_STATE),
                ("activate", guest),
                ("update", guest),
                ("finish", guest),
                ("reclaim", Status::INVALID_PAGE_STATE),
            ],
        ),
        (
            "launch",
            &[
                ("start", guest),
                ("update", Status::INACTIVE),
                ("reclaim", Status::INVALID_PAGE_STATE),
            ],
        ),
        ("active", &[("start", guest), ("activate", Status::ACTIVE)]),
        (
            "running",
            &[
                ("start", guest),
                ("update", guest),
                ("finish", guest),
                ("activate", Status::ACTIVE),
            ],
        ),
        (
            "gone",
            &[
                ("start", Status::INVALID_GUEST),
                ("activate", Status::INVALID_GUEST),
                ("guest status", Status::INVALID_GUEST),
            ],
        ),
    ];
    for (state, rows) in table {
        let r = in_state(state);
        let look = |r: &Rig| {
            (
                r.driver.snp_platform_status().ok(),
                r.driver.snp_guest_status(GCTX).ok(),
                (r.entry(GCTX), r.entry(GUEST)),
                r.raw(GUEST, 4096),
            )
        };
        let before = look(&r);
        for (step, expected) in *rows {
            assert_eq!(submit(&r, step), *expected, "{step} when {state}");
            assert!(look(&r) == before, "{step} when {state} changed something");
        }
    }
}

#[test]
fn contexts_come_and_go() {
    let r = in_state("active");
    assert!(r.entry(GCTX).immutable());
    let take = RmpUpdate::default();
    let status = r.mem.rmp().rmpupdate(GCTX, &take);
    assert_ne!(
        status,
        RmpStatus::SUCCESS,
        "the context is not the hypervisor's"
    );
    assert_eq!(submit(&r, "decommission"), Status::SUCCESS);
    assert_eq!(submit(&r, "gctx"), Status::SUCCESS);
    assert_eq!(submit(&r, "start"), Status::SUCCESS);
    assert_eq!(submit(&r, "activate"), Status::DFFLUSH_REQUIRED);
    assert_eq!(submit(&r, "flush"), Status::SUCCESS);
    assert_eq!(submit(&r, "activate"), Status::SUCCESS);
    assert_eq!(submit(&r, "decommission"), Status::SUCCESS);
    assert_eq!(submit(&r, "reclaim"), Status::SUCCESS);
    assert_eq!(r.mem.rmp().rmpupdate(GCTX, &take), RmpStatus::SUCCESS);
    assert!(!r.entry(GCTX).assigned());
}

#[test]
fn policies_are_kept() {
    let start = |cipher, smt, policy: u64| {
        let r = rig_with(true, cipher, |c| c.smt = smt);
        r.driver.snp_init().expect("SNP_INIT");
        r.assign(GCTX, 0, 0, true, false);
        r.driver.snp_gctx_create(GCTX).expect("GCTX_CREATE");
        status(
            r.driver
                .snp_launch_start(GCTX, SnpPolicy::from_bits_retain(policy)),
        )
    };
    let (xts, xex) = (CipherKind::Aes256Xts, CipherKind::Aes128Xex);
    let base = POLICY.bits();
    let with = |p: SnpPolicy| base | p.bits();
    let api = Config::default().snp_api;
    let version = u64::from(api.major) << 8 | u64::from(api.minor);
    assert_eq!(start(xex, false, base), Status::SUCCESS);
    assert_eq!(start(xex, false, base | version), Status::SUCCESS);
    assert_eq!(
        start(xts, false, with(SnpPolicy::MEM_AES_256_XTS)),
        Status::SUCCESS
    );
    let no_smt = base & !SnpPolicy::SMT.bits();
    assert_eq!(start(xex, false, no_smt), Status::SUCCESS);
    for (smt, policy) in [
        (true, no_smt),
        (false, base & !SnpPolicy::RESERVED_MUST_BE_ONE.bits()),
        (false, with(SnpPolicy::MEM_AES_256_XTS)),
        (false, with(SnpPolicy::RAPL_DIS)),
        (false, with(SnpPolicy::CIPHERTEXT_HIDING_DRAM)),
        (false, base | (version + 1)),
        (false, base | 0x200),
        (false, base | 1 << 63),
    ] {
        assert_eq!(
            start(xex, smt, policy),
            Status::POLICY_FAILURE,
            "{policy:#x}"
        );
    }
}

#[test]
fn the_cpuid_page_is_corrected() {
    let r = rig_with(true, CipherKind::Aes128Xex, |c| {
        c.cpuid = Some(std::sync::Arc::new(|leaf| match leaf.leaf {
            1 => [leaf.out[0], leaf.out[1], leaf.out[2] & !1, leaf.out[3]],
            _ => leaf.out,
        }));
    });
    r.driver.snp_init().expect("SNP_INIT");
    r.assign(GCTX, 0, 0, true, false);
    r.driver.snp_gctx_create(GCTX).expect("GCTX_CREATE");
    r.driver
        .snp_launch_start(GCTX, POLICY)
        .expect("LAUNCH_START");
    r.driver.snp_activate(GCTX, ASID).expect("ACTIVATE");
    let mut page = vec![0; 4096];
    page[0] = 1;
    page[16] = 1;
    page[16 + 0x20] = 0xff;
    r.write(GUEST, &page);
    r.assign(GUEST, 0x1000, ASID.0, true, false);
    assert_eq!(update(&r, GUEST, SnpPageType::CPUID), Status::INVALID_PARAM);
    page[16 + 0x20] = 0xfe;
    assert_eq!(r.raw(GUEST, 4096), page, "corrected, still plain");
    assert_eq!(update(&r, GUEST, SnpPageType::CPUID), Status::SUCCESS);
    let too_many = GUEST.plus(0x1000);
    r.write(too_many, &65u32.to_le_bytes());
    r.assign(too_many, 0x2000, ASID.0, true, false);
    assert_eq!(
        update(&r, too_many, SnpPageType::CPUID),
        Status::INVALID_PARAM
    );
}

#[test]
fn output_does_not_go_into_guest_pages() {
    let r = launching();
    r.assign(GUEST, 0x1000, ASID.0, false, false);
    let mut c = SnpAddress { address: GUEST.0 };
    let got = status(r.driver.call(Command::SNP_PLATFORM_STATUS, &mut c));
    assert_eq!(got, Status::INVALID_PAGE_STATE);
    assert_eq!(r.raw(GUEST, 32), vec![0; 32]);
}

fn le72(be: &[u8], out: &mut [u8]) {
    for (to, from) in out.iter_mut().zip(be.iter().rev()) {
        *to = *from;
    }
}

fn put_signature(key: &SigningKey, message: &[u8], out: &mut [u8]) {
    let signature: Signature = key.sign(message);
    let bytes = signature.to_bytes();
    le72(&bytes[..48], &mut out[..72]);
    le72(&bytes[48..], &mut out[72..144]);
}

fn put_key(key: &SigningKey, out: &mut [u8; 1028]) {
    let point = key.verifying_key().to_sec1_point(false);
    out[..4].copy_from_slice(&CURVE_P384.to_le_bytes());
    le72(&point.as_bytes()[1..49], &mut out[4..76]);
    le72(&point.as_bytes()[49..97], &mut out[76..148]);
}

#[test]
fn identity_blocks_are_checked() {
    let finish = |change: &dyn Fn(&mut IdBlock, &mut IdAuth)| {
        let r = launching();
        r.write(GUEST, &pattern(1));
        r.assign(GUEST, 0x1000, ASID.0, true, false);
        assert_eq!(update(&r, GUEST, SnpPageType::NORMAL), Status::SUCCESS);
        let (id, author) = (
            SigningKey::from_slice(&[1; 48]).expect("a key"),
            SigningKey::from_slice(&[2; 48]).expect("a key"),
        );
        let mut block = IdBlock {
            ld: extend([0; 48], 1, NONE, 0x1000, Some(&pattern(1))),
            family_id: [0xf; 16],
            image_id: [0x1; 16],
            version: 1,
            guest_svn: 7,
            policy: POLICY.bits(),
        };
        let mut auth = Box::new(IdAuth::new_zeroed());
        auth.id_key_algo = 1;
        auth.auth_key_algo = 1;
        // The block is signed as `change` leaves it; the key and signatures are changed after.
        let mut unsigned = auth.clone();
        change(&mut block, &mut unsigned);
        put_signature(&id, block.as_bytes(), &mut auth.id_block_sig);
        put_key(&id, &mut auth.id_key);
        put_signature(&author, &{ auth.id_key }, &mut auth.id_key_sig);
        put_key(&author, &mut auth.auth_key);
        let mut scrap = block;
        change(&mut scrap, &mut auth);
        let got = r
            .driver
            .snp_launch_finish(GCTX, [0; 32], Some((&block, &auth, true)));
        (status(got), r)
    };
    let (got, r) = finish(&|_, _| {});
    assert_eq!(got, Status::SUCCESS);
    let (_, identity) = r.fw.snp_identity(GCTX).expect("launched");
    assert_eq!((identity.guest_svn, identity.family_id), (7, [0xf; 16]));
    assert!(identity.id_key_digest.is_some() && identity.author_key_digest.is_some());
    type Change = &'static dyn Fn(&mut IdBlock, &mut IdAuth);
    let cases: [(Status, Change); 8] = [
        (Status::BAD_MEASUREMENT, &|b, _| b.ld[0] ^= 1),
        (Status::POLICY_FAILURE, &|b, _| b.policy ^= 1),
        (Status::INVALID_PARAM, &|b, _| b.version = 2),
        (Status::INVALID_PARAM, &|_, a| a.id_key_algo = 2),
        (Status::INVALID_KEY, &|_, a| a.id_key[4] ^= 1),
        (Status::BAD_SIGNATURE, &|_, a| a.id_block_sig[0] ^= 1),
        (Status::BAD_SIGNATURE, &|_, a| a.id_key_sig[80] ^= 1),
        (Status::INVALID_KEY, &|_, a| a.auth_key[0] = 1),
    ];
    for (i, (expected, change)) in cases.into_iter().enumerate() {
        let (got, r) = finish(change);
        assert_eq!(got, expected, "case {i}");
        let (_, _, state) = r.driver.snp_guest_status(GCTX).expect("GUEST_STATUS");
        assert_eq!(state, SnpGuestState::LAUNCH, "case {i}");
    }
}
