//! SEV and SEV-ES launches: measurements against plain code, secrets, orders that are refused.

mod common;

use aes::Aes128;
use aes::cipher::BlockCipherEncrypt;
use common::*;
use hmac::{Hmac, KeyInit, Mac};
use p384::SecretKey;
use p384::elliptic_curve::sec1::ToSec1Point;
use sha2::{Digest, Sha256};
use zerocopy::{FromBytes, IntoBytes};

const XEX: CipherKind = CipherKind::Aes128Xex;
const POLICY: SevPolicy = SevPolicy::NODBG.union(SevPolicy::NOKS);

fn mac(key: &[u8], data: &[u8]) -> [u8; 32] {
    let mut m = Hmac::<Sha256>::new_from_slice(key).expect("any length");
    m.update(data);
    m.finalize().into_bytes().into()
}

/// SP 800-108, counter mode, for outputs of at most one block.
fn kdf(key: &[u8], label: &str, context: &[u8], bytes: usize) -> Vec<u8> {
    let mut data = vec![1, 0, 0, 0];
    data.extend_from_slice(label.as_bytes());
    data.push(0);
    data.extend_from_slice(context);
    data.extend_from_slice(&((bytes * 8) as u32).to_le_bytes());
    mac(key, &data)[..bytes].to_vec()
}

fn ctr(key: &[u8], iv: u128, data: &[u8]) -> Vec<u8> {
    let key: [u8; 16] = key.try_into().expect("16 bytes");
    let cipher = Aes128::new(&key.into());
    let mut out = Vec::new();
    for (i, chunk) in data.chunks(16).enumerate() {
        let mut pad = (iv + i as u128).to_be_bytes().into();
        cipher.encrypt_block(&mut pad);
        out.extend(chunk.iter().zip(pad.iter()).map(|(a, b)| a ^ b));
    }
    out
}

fn reversed72(be: &[u8]) -> [u8; 72] {
    let mut out = [0; 72];
    for (to, from) in out.iter_mut().zip(be.iter().rev()) {
        *to = *from;
    }
    out
}

/// An owner's session, made by hand.
struct Owner {
    tek: [u8; 16],
    tik: [u8; 16],
    cert: Certificate,
    session: Session,
}

fn owner(pdh: &Certificate, policy: SevPolicy) -> Owner {
    let secret = SecretKey::from_slice(&[3; 48]).expect("below the order");
    let mut sec1 = vec![4];
    sec1.extend(pdh.key[4..52].iter().rev());
    sec1.extend(pdh.key[76..124].iter().rev());
    let platform = p384::PublicKey::from_sec1_bytes(&sec1).expect("on the curve");
    let z = p384::ecdh::diffie_hellman(secret.to_nonzero_scalar(), platform.as_affine());
    let nonce = [0x11; 16];
    let m = kdf(z.raw_secret_bytes(), "sev-master-secret", &nonce, 16);
    let kek = kdf(&m, "sev-kek", &[], 16);
    let kik = kdf(&m, "sev-kik", &[], 32);
    let (tek, tik) = ([0xa1; 16], [0xb2; 16]);
    let iv = 0x0102_0304_0506_0708_090a_0b0c_0d0e_0f10u128;
    let wrapped = ctr(&kek, iv, &[tek, tik].concat());
    let session = Session {
        nonce,
        wrap_tk: wrapped.clone().try_into().expect("32 bytes"),
        wrap_iv: iv.to_be_bytes(),
        wrap_mac: mac(&kik, &wrapped),
        policy_mac: mac(&tik, &policy.bits().to_le_bytes()),
    };
    let point = secret.public_key().to_sec1_point(false);
    let mut cert = Certificate {
        version: 1,
        key_usage: KeyUsage::PDH.0,
        key_algo: KeyAlgo::ECDH_SHA256.0,
        ..Certificate::default()
    };
    cert.key[..4].copy_from_slice(&CURVE_P384.to_le_bytes());
    cert.key[4..76].copy_from_slice(&reversed72(&point.as_bytes()[1..49]));
    cert.key[76..148].copy_from_slice(&reversed72(&point.as_bytes()[49..97]));
    Owner {
        tek,
        tik,
        cert,
        session,
    }
}

fn started(es: bool) -> (Rig, u32, Owner) {
    let r = rig(false, XEX);
    let policy = if es { POLICY | SevPolicy::ES } else { POLICY };
    r.driver.init(es.then_some((TMR, 1 << 20))).expect("INIT");
    let [pdh, ..] = r.driver.pdh_cert_export().expect("PDH");
    let o = owner(&pdh, policy);
    let handle = r
        .driver
        .launch_start(policy, Some((&o.cert, &o.session)))
        .expect("LAUNCH_START");
    let asid = if es { ES_ASID } else { SEV_ASID };
    r.driver.activate(handle, asid).expect("ACTIVATE");
    (r, handle, o)
}

#[test]
fn measurement_is_what_the_specification_says() {
    for es in [false, true] {
        let (r, handle, o) = started(es);
        let (data, vmsa) = ([pattern(1), pattern(2)].concat(), pattern(3));
        r.write(GUEST, &data);
        r.driver
            .launch_update_data(handle, GUEST, 8192)
            .expect("UPDATE_DATA");
        // A region that starts and ends inside pages.
        let odd = &pattern(4)[..48];
        r.write(GUEST.plus(0x5ff0), odd);
        r.driver
            .launch_update_data(handle, GUEST.plus(0x5ff0), 48)
            .expect("UPDATE_DATA");
        let mut contents = [data.clone(), odd.to_vec()].concat();
        if es {
            r.write(GUEST.plus(0x8000), &vmsa);
            r.driver
                .launch_update_vmsa(handle, GUEST.plus(0x8000))
                .expect("UPDATE_VMSA");
            contents.extend_from_slice(&vmsa);
        }
        let m = r.driver.launch_measure(handle).expect("MEASURE");
        let p = r.driver.platform_status().expect("STATUS");
        let policy = if es { POLICY | SevPolicy::ES } else { POLICY };
        let mut input = vec![4, p.api_major, p.api_minor, p.build];
        input.extend_from_slice(&policy.bits().to_le_bytes());
        input.extend_from_slice(&Sha256::digest(&contents));
        input.extend_from_slice(&m.mnonce);
        assert_eq!(m.measure, mac(&o.tik, &input));

        let asid = if es { ES_ASID } else { SEV_ASID };
        assert_ne!(r.raw(GUEST, 8192), data, "DRAM holds ciphertext");
        assert_eq!(r.private(asid, GUEST, 8192), data);
        assert_eq!(r.private(asid, GUEST.plus(0x5ff0), 48), odd);
    }
}

#[test]
fn a_secret_reaches_the_guest_only_if_it_is_the_owners() {
    let (r, handle, o) = started(false);
    r.write(GUEST, &pattern(1));
    r.driver
        .launch_update_data(handle, GUEST, 4096)
        .expect("UPDATE_DATA");
    let m = r.driver.launch_measure(handle).expect("MEASURE");
    let secret = b"sixteen bytes ..and sixteen more";
    let iv = 77u128;
    let data = ctr(&o.tek, iv, secret);
    let len = (data.len() as u32).to_le_bytes();
    let mut input = vec![1, 0, 0, 0, 0];
    input.extend_from_slice(&iv.to_be_bytes());
    input.extend_from_slice(&len);
    input.extend_from_slice(&len);
    input.extend_from_slice(&data);
    input.extend_from_slice(&m.measure);
    let header = PacketHeader {
        flags: 0,
        iv: iv.to_be_bytes(),
        mac: mac(&o.tik, &input),
    };
    let at = GUEST.plus(0x3000);
    let before = r.raw(at, 32);
    let mut forged = header;
    forged.mac[0] ^= 1;
    let refused = r.driver.launch_secret(handle, &forged, &data, at);
    assert_eq!(status(refused), Status::BAD_MEASUREMENT);
    assert_eq!(r.raw(at, 32), before);
    r.driver
        .launch_secret(handle, &header, &data, at)
        .expect("SECRET");
    assert_eq!(r.private(SEV_ASID, at, 32), secret);
    assert_ne!(r.raw(at, 32), secret);
    r.driver.launch_finish(handle).expect("FINISH");
    let again = r.driver.launch_secret(handle, &header, &data, at);
    assert_eq!(status(again), Status::INVALID_GUEST_STATE);
}

#[test]
fn the_crates_own_owner_agrees_with_the_firmware() {
    use sevlab_psp::owner::{ExpectedDigest, GuestOwner};
    let r = rig(false, XEX);
    r.driver.init(None).expect("INIT");
    let [pdh, ..] = r.driver.pdh_cert_export().expect("PDH");
    let mut o = GuestOwner::new(Entropy::Os).expect("random");
    let (cert, session) = o.session(&pdh, POLICY).expect("a P-384 key");
    let handle = r
        .driver
        .launch_start(POLICY, Some((&cert, &session)))
        .expect("LAUNCH_START");
    r.driver.activate(handle, SEV_ASID).expect("ACTIVATE");
    r.write(GUEST, &pattern(1));
    r.driver
        .launch_update_data(handle, GUEST, 4096)
        .expect("UPDATE_DATA");
    let m = r.driver.launch_measure(handle).expect("MEASURE");
    let mut digest = ExpectedDigest::default();
    digest.update(&pattern(1));
    let digest = digest.finish();
    let api = Config::default().api;
    assert!(o.accepts(&m, api, POLICY, &digest));
    assert!(!o.accepts(&m, api, POLICY | SevPolicy::ES, &digest));
    let (header, packet) = o.pack_secret(b"short", &m).expect("random");
    r.driver
        .launch_secret(handle, &header, &packet, GUEST.plus(0x2000))
        .expect("SECRET");
    assert_eq!(r.private(SEV_ASID, GUEST.plus(0x2000), 5), b"short");
}

#[test]
fn tampered_sessions_are_refused() {
    let r = rig(false, XEX);
    r.driver.init(None).expect("INIT");
    let [pdh, ..] = r.driver.pdh_cert_export().expect("PDH");
    let o = owner(&pdh, POLICY);
    let try_start = |cert: &Certificate, session: &Session, policy| {
        status(r.driver.launch_start(policy, Some((cert, session))))
    };
    for at in [0x00, 0x10, 0x40, 0x60] {
        let mut session = o.session;
        session.as_mut_bytes()[at] ^= 1;
        let got = try_start(&o.cert, &session, POLICY);
        assert_eq!(got, Status::BAD_MEASUREMENT, "byte {at:#x}");
    }
    let other = POLICY | SevPolicy::NOSEND;
    assert_eq!(
        try_start(&o.cert, &o.session, other),
        Status::BAD_MEASUREMENT
    );
    for at in [0x00, 0x08, 0x0c, 0x10, 0x14, 0x40] {
        let mut cert = o.cert;
        cert.as_mut_bytes()[at] ^= 0x80;
        let got = try_start(&cert, &o.session, POLICY);
        assert_eq!(got, Status::INVALID_CERTIFICATE, "byte {at:#x}");
    }
    assert_eq!(
        { r.driver.platform_status().expect("STATUS").guest_count },
        0
    );
    assert_eq!(try_start(&o.cert, &o.session, POLICY), Status::SUCCESS);
}

#[test]
fn policies_are_kept() {
    let start = |es_platform: bool, policy: u32| {
        let r = rig(false, XEX);
        r.driver
            .init(es_platform.then_some((TMR, 1 << 20)))
            .expect("INIT");
        let policy = SevPolicy::from_bits_retain(policy);
        status(r.driver.launch_start(policy, None))
    };
    let api = Config::default().api;
    let version = |major: u8, minor: u8| u32::from(major) << 16 | u32::from(minor) << 24;
    assert_eq!(start(false, 0), Status::SUCCESS);
    assert_eq!(start(false, SevPolicy::ES.bits()), Status::POLICY_FAILURE);
    assert_eq!(start(true, SevPolicy::ES.bits()), Status::SUCCESS);
    assert_eq!(start(false, 1 << 6), Status::POLICY_FAILURE);
    assert_eq!(start(false, version(api.major, api.minor)), Status::SUCCESS);
    assert_eq!(
        start(false, version(api.major, api.minor + 1)),
        Status::POLICY_FAILURE
    );
    assert_eq!(
        start(false, version(api.major + 1, 0)),
        Status::POLICY_FAILURE
    );
}

#[test]
fn debugging_needs_the_policy() {
    for (policy, expected) in [
        (SevPolicy::empty(), Status::SUCCESS),
        (SevPolicy::NODBG, Status::POLICY_FAILURE),
    ] {
        let r = rig(false, XEX);
        r.driver.init(None).expect("INIT");
        let handle = r.driver.launch_start(policy, None).expect("LAUNCH_START");
        r.driver.activate(handle, SEV_ASID).expect("ACTIVATE");
        r.write(GUEST, &pattern(5));
        r.driver
            .launch_update_data(handle, GUEST, 4096)
            .expect("UPDATE_DATA");
        let mut c = Dbg {
            handle,
            src_address: GUEST.0,
            dst_address: GUEST.0 + 0x4000,
            len: 64,
            ..Dbg::default()
        };
        let got = status(r.driver.call(Command::DBG_DECRYPT, &mut c));
        assert_eq!(got, expected);
        let plain = r.raw(GUEST.plus(0x4000), 64) == pattern(5)[..64];
        assert_eq!(plain, expected == Status::SUCCESS);
    }
}

/// What the platform and a guest look like from outside.
fn snapshot(r: &Rig, handle: u32) -> (PlatformStatus, Option<GuestStatus>, Vec<u8>) {
    (
        r.driver.platform_status().expect("STATUS"),
        r.driver.guest_status(handle).ok(),
        r.raw(GUEST, 0x6000),
    )
}

/// A guest brought to one of its states; the handle is 1.
fn in_state(state: &str) -> Rig {
    let r = rig(false, XEX);
    r.write(GUEST, &pattern(9));
    let steps: &[&str] = match state {
        "uninit" => &[],
        "init" => &["init"],
        "started" => &["init", "start"],
        "active" => &["init", "start", "activate"],
        "measured" => &["init", "start", "activate", "measure"],
        "running" => &["init", "start", "activate", "measure", "finish"],
        "stopped" => &["init", "start", "activate", "deactivate"],
        other => panic!("{other}"),
    };
    for step in steps {
        assert_eq!(submit(&r, step), Status::SUCCESS, "{step} to reach {state}");
    }
    r
}

fn submit(r: &Rig, step: &str) -> Status {
    let d = &r.driver;
    match step {
        "init" => status(d.init(Some((TMR, 1 << 20)))),
        "start" => status(d.launch_start(SevPolicy::empty(), None)),
        "activate" => status(d.activate(1, SEV_ASID)),
        "data" => status(d.launch_update_data(1, GUEST, 4096)),
        "vmsa" => status(d.launch_update_vmsa(1, GUEST)),
        "measure" => status(d.launch_measure(1)),
        "secret" => status(d.launch_secret(1, &PacketHeader::default(), &[0; 16], GUEST)),
        "finish" => status(d.launch_finish(1)),
        "deactivate" => status(d.deactivate(1)),
        "decommission" => status(d.decommission(1)),
        "guest status" => status(d.guest_status(1)),
        "df flush" => status(d.df_flush()),
        "gctx" => status(d.snp_gctx_create(GCTX)),
        "snp init" => status(d.snp_init()),
        other => panic!("{other}"),
    }
}

/// Wrong order: what each state refuses, and that a refusal changes nothing.
#[test]
fn orders_that_are_refused() {
    let platform = Status::INVALID_PLATFORM_STATE;
    let guest = Status::INVALID_GUEST_STATE;
    let table: &[(&str, &[(&str, Status)])] = &[
        (
            "uninit",
            &[
                ("start", platform),
                ("activate", platform),
                ("data", platform),
                ("measure", platform),
                ("secret", platform),
                ("finish", platform),
                ("deactivate", platform),
                ("decommission", platform),
                ("guest status", platform),
                ("df flush", platform),
                ("gctx", platform),
                ("snp init", Status::INVALID_CONFIG),
            ],
        ),
        (
            "init",
            &[
                ("init", platform),
                ("activate", platform),
                ("data", platform),
                ("finish", platform),
                ("snp init", platform),
            ],
        ),
        (
            "started",
            &[
                ("init", platform),
                ("data", Status::INACTIVE),
                ("secret", guest),
                ("finish", guest),
                ("deactivate", Status::INACTIVE),
                ("vmsa", Status::POLICY_FAILURE),
            ],
        ),
        (
            "active",
            &[
                ("activate", Status::ACTIVE),
                ("decommission", Status::ACTIVE),
                ("secret", guest),
                ("finish", guest),
                ("vmsa", Status::POLICY_FAILURE),
            ],
        ),
        (
            "measured",
            &[
                ("data", guest),
                ("measure", guest),
                ("secret", Status::BAD_MEASUREMENT),
                ("activate", Status::ACTIVE),
            ],
        ),
        (
            "running",
            &[
                ("data", guest),
                ("measure", guest),
                ("secret", guest),
                ("finish", guest),
                ("decommission", Status::ACTIVE),
            ],
        ),
        (
            "stopped",
            &[
                ("activate", Status::DFFLUSH_REQUIRED),
                ("data", Status::INACTIVE),
                ("deactivate", Status::INACTIVE),
            ],
        ),
    ];
    for (state, rows) in table {
        let r = in_state(state);
        let before = snapshot(&r, 1);
        for (step, expected) in *rows {
            assert_eq!(submit(&r, step), *expected, "{step} when {state}");
            assert_eq!(
                snapshot(&r, 1),
                before,
                "{step} when {state} changed something"
            );
        }
    }
}

#[test]
fn asids_have_owners_and_ranges() {
    let r = rig(false, XEX);
    r.driver.init(Some((TMR, 1 << 20))).expect("INIT");
    let plain = r.driver.launch_start(POLICY, None).expect("LAUNCH_START");
    let es = r
        .driver
        .launch_start(POLICY | SevPolicy::ES, None)
        .expect("LAUNCH_START");
    let activate = |handle, asid| status(r.driver.activate(handle, Asid(asid)));
    for asid in [0, 1, 99, 510, u32::MAX] {
        assert_eq!(activate(plain, asid), Status::INVALID_ASID, "{asid}");
    }
    for asid in [0, 100, 509, u32::MAX] {
        assert_eq!(activate(es, asid), Status::INVALID_ASID, "{asid}");
    }
    assert_eq!(activate(plain, 100), Status::SUCCESS);
    let other = r.driver.launch_start(POLICY, None).expect("LAUNCH_START");
    assert_eq!(activate(other, 100), Status::ASID_OWNED);
    assert_eq!(activate(77, 101), Status::INVALID_GUEST);
    r.driver.deactivate(plain).expect("DEACTIVATE");
    assert_eq!(activate(other, 100), Status::DFFLUSH_REQUIRED);
    r.driver.df_flush().expect("DF_FLUSH");
    assert_eq!(activate(other, 100), Status::SUCCESS);
}

#[test]
fn keys_differ_between_guests_and_go_with_them() {
    let r = rig(false, XEX);
    r.driver.init(None).expect("INIT");
    let mut ciphertexts = Vec::new();
    for _ in 0..2 {
        let handle = r.driver.launch_start(POLICY, None).expect("LAUNCH_START");
        let mut out = [0; 16];
        assert!(
            r.mem
                .decrypt_for_firmware(SEV_ASID, GUEST, &mut out)
                .is_err(),
            "no key before ACTIVATE"
        );
        r.driver.activate(handle, SEV_ASID).expect("ACTIVATE");
        r.write(GUEST, &pattern(1));
        r.driver
            .launch_update_data(handle, GUEST, 4096)
            .expect("UPDATE_DATA");
        ciphertexts.push(r.raw(GUEST, 4096));
        r.driver.deactivate(handle).expect("DEACTIVATE");
        r.driver.decommission(handle).expect("DECOMMISSION");
        r.driver.df_flush().expect("DF_FLUSH");
    }
    assert_ne!(ciphertexts[0], ciphertexts[1]);
    assert_eq!(
        r.driver.platform_status().expect("STATUS").state,
        PlatformState::INIT.0
    );
    r.driver.shutdown().expect("SHUTDOWN");
    assert_eq!(
        r.driver.platform_status().expect("STATUS").state,
        PlatformState::UNINIT.0
    );
}

#[test]
fn bad_regions_are_refused() {
    let r = in_state("active");
    let size = r.mem.size();
    let try_data = |at: u64, len| status(r.driver.launch_update_data(1, Spa(at), len));
    let before = snapshot(&r, 1);
    assert_eq!(try_data(GUEST.0 + 8, 16), Status::INVALID_ADDRESS);
    assert_eq!(try_data(GUEST.0, 0), Status::INVALID_LENGTH);
    assert_eq!(try_data(GUEST.0, 17), Status::INVALID_LENGTH);
    assert_eq!(try_data(size - 16, 32), Status::INVALID_ADDRESS);
    assert_eq!(try_data(!15, 16), Status::INVALID_ADDRESS);
    assert_eq!(snapshot(&r, 1), before);
}

#[test]
fn short_buffers_are_told_the_length() {
    let r = in_state("active");
    let mut c = LaunchMeasure {
        handle: 1,
        address: AREA.0 + 0x1000,
        len: 8,
        ..LaunchMeasure::default()
    };
    let got = status(r.driver.call(Command::LAUNCH_MEASURE, &mut c));
    assert_eq!(got, Status::INVALID_LENGTH);
    assert_eq!({ c.len }, 48);
    assert_eq!(submit(&r, "measure"), Status::SUCCESS);
    let mut c = PdhCertExport::default();
    let got = status(r.driver.call(Command::PDH_CERT_EXPORT, &mut c));
    assert_eq!(got, Status::INVALID_LENGTH);
    assert_eq!({ c.pdh_cert_len }, 0x824);
    assert_eq!({ c.cert_chain_len }, 3 * 0x824);
}

#[test]
fn the_certificate_chain_verifies() {
    use p384::ecdsa::signature::hazmat::PrehashVerifier;
    use p384::ecdsa::{Signature, VerifyingKey};
    let r = rig(false, XEX);
    r.driver.init(None).expect("INIT");
    let [pdh, pek, oca, cek] = r.driver.pdh_cert_export().expect("PDH");
    let check = |cert: &Certificate, sig: &[u8], signer: &Certificate| {
        let mut sec1 = vec![4];
        sec1.extend(signer.key[4..52].iter().rev());
        sec1.extend(signer.key[76..124].iter().rev());
        let key = VerifyingKey::from_sec1_bytes(&sec1).expect("a key");
        let mut bytes: Vec<u8> = sig[..48].iter().rev().copied().collect();
        bytes.extend(sig[72..120].iter().rev());
        let sig = Signature::from_slice(&bytes).expect("a signature");
        key.verify_prehash(&Sha256::digest(&cert.as_bytes()[..0x414]), &sig)
            .is_ok()
    };
    assert!(check(&pdh, &pdh.sig1, &pek));
    assert!(check(&pek, &pek.sig1, &oca));
    assert!(check(&pek, &pek.sig2, &cek));
    assert!(check(&oca, &oca.sig1, &oca));
    assert!(!check(&pdh, &pdh.sig1, &oca));
    assert!(Certificate::read_from_bytes(pdh.as_bytes()).is_ok());
}
