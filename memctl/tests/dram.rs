//! What is in DRAM, and who sees what of it.

mod common;

use std::sync::Arc;

use common::{ONE, PAGE, TWO, bus, config, everywhere, key, machine, pattern, read};
use sevlab_arch::{Asid, Spa};
use sevlab_memctl::{CacheMode, CipherKind, Config, Domain, Error, MemCtl};

#[test]
fn private_pages_are_ciphertext_on_the_bus() {
    everywhere(|cipher, cache| {
        let m = machine(config(cipher, cache));
        let text = pattern(3);
        m.write(ONE, Spa(0x5000), &text).expect("write");
        assert_eq!(read::<PAGE>(&m, ONE, 0x5000), text, "{cipher} {cache:?}");
        let raw = bus::<PAGE>(&m, 0x5000);
        for (r, t) in raw.chunks(16).zip(text.chunks(16)) {
            assert_ne!(r, t, "{cipher} {cache:?}: plaintext on the bus");
        }
        assert_eq!(read::<PAGE>(&m, Domain::Shared, 0x5000), raw);
        assert_eq!(read::<PAGE>(&m, ONE, 0x5000), text);
        assert_eq!(bus::<PAGE>(&m, 0x5000), raw, "encryption is deterministic");
    });
}

#[test]
fn equal_text_differs_by_address_and_by_key() {
    everywhere(|cipher, cache| {
        let m = machine(config(cipher, cache));
        m.write(ONE, Spa(0x1000), &[0x41; 64]).expect("write");
        m.write(ONE, Spa(0x2000), &[0x41; 64]).expect("write");
        m.write(TWO, Spa(0x3000), &[0x41; 64]).expect("write");
        let first = bus::<64>(&m, 0x1000);
        assert_ne!(
            first,
            bus::<64>(&m, 0x2000),
            "{cipher}: same text at two addresses"
        );
        assert_ne!(
            first[..16],
            first[16..32],
            "{cipher}: same text in two blocks of a line"
        );
        m.write(TWO, Spa(0x1000), &[0x41; 64]).expect("write");
        assert_ne!(
            first,
            bus::<64>(&m, 0x1000),
            "{cipher}: same text under two keys"
        );
    });
}

#[test]
fn shared_pages_are_plaintext_for_everybody() {
    everywhere(|cipher, cache| {
        let m = machine(config(cipher, cache));
        m.write(Domain::Shared, Spa(0xff8), b"0123456789abcdef")
            .expect("write");
        assert_eq!(&bus::<16>(&m, 0xff8), b"0123456789abcdef");
        assert_ne!(&read::<16>(&m, ONE, 0xff8), b"0123456789abcdef");
    });
}

#[test]
fn fresh_private_memory_is_old_dram_decrypted() {
    everywhere(|cipher, cache| {
        let m = machine(config(cipher, cache));
        let fresh = read::<64>(&m, ONE, 0x7000);
        assert_ne!(fresh, [0; 64], "{cipher}: nobody zeroes memory for a guest");
        assert_eq!(bus::<64>(&m, 0x7000), [0; 64], "reading changes nothing");
        let mut out = [0; 64];
        m.decrypt_for_firmware(Asid(1), Spa(0x7000), &mut out)
            .expect("decrypt");
        assert_eq!(out, fresh);
        // Another guest's text is garbage to this one, and left alone by looking.
        m.write(TWO, Spa(0x8000), &pattern(9)).expect("write");
        let raw = bus::<PAGE>(&m, 0x8000);
        assert_ne!(read::<PAGE>(&m, ONE, 0x8000), pattern(9));
        assert_eq!(bus::<PAGE>(&m, 0x8000), raw);
        assert_eq!(read::<PAGE>(&m, TWO, 0x8000), pattern(9));
    });
}

#[test]
fn a_shared_write_under_a_resident_page_is_seen_through_the_key() {
    everywhere(|cipher, cache| {
        let m = machine(config(cipher, cache));
        m.write(ONE, Spa(0x4000), &pattern(1)).expect("write");
        let raw = bus::<PAGE>(&m, 0x4000);
        m.zero_page(ONE, Spa(0x4000)).expect("zero");
        assert_eq!(read::<PAGE>(&m, ONE, 0x4000), [0; PAGE]);
        // Replay: the bus can bring an old state back, and nothing notices.
        m.write(Domain::Shared, Spa(0x4000), &raw).expect("write");
        assert_eq!(
            read::<PAGE>(&m, ONE, 0x4000),
            pattern(1),
            "{cipher} {cache:?}"
        );
        m.zero_page(Domain::Shared, Spa(0x4000)).expect("zero");
        assert_eq!(bus::<PAGE>(&m, 0x4000), [0; PAGE]);
        assert_ne!(read::<PAGE>(&m, ONE, 0x4000), pattern(1));
    });
}

#[test]
fn a_flip_on_the_bus_garbles_its_block_only() {
    everywhere(|cipher, cache| {
        let m = machine(config(cipher, cache));
        let text = pattern(5);
        m.write(ONE, Spa(0x6000), &text).expect("write");
        for at in [0usize, 17, 1000, 4095] {
            let raw = bus::<1>(&m, 0x6000 + at as u64);
            m.bus_write(Spa(0x6000 + at as u64), &[raw[0] ^ 0x10]);
            let seen = read::<PAGE>(&m, ONE, 0x6000);
            for (i, (s, t)) in seen.chunks(16).zip(text.chunks(16)).enumerate() {
                assert_eq!(
                    s == t,
                    i != at / 16,
                    "{cipher} {cache:?}: flip at {at}, block {i}"
                );
            }
            let wrong = seen.iter().zip(&text).filter(|(s, t)| s != t).count();
            assert!(
                wrong >= 8,
                "{cipher}: a block cipher garbles, not flips: {wrong} bytes"
            );
            m.bus_write(Spa(0x6000 + at as u64), &raw);
            assert_eq!(read::<PAGE>(&m, ONE, 0x6000), text);
        }
    });
}

#[test]
fn launch_and_firmware_paths_agree_with_the_guest() {
    everywhere(|cipher, cache| {
        let m = machine(config(cipher, cache));
        m.write(Domain::Shared, Spa(0x9000), &pattern(2))
            .expect("write");
        m.encrypt_in_place(Asid(1), Spa(0x9000)).expect("launch");
        assert_ne!(bus::<PAGE>(&m, 0x9000), pattern(2));
        assert_eq!(
            read::<PAGE>(&m, ONE, 0x9000),
            pattern(2),
            "{cipher} {cache:?}"
        );
        // Odd pieces, across a page, with the guest's own dirty text in between.
        m.write(ONE, Spa(0x9ff0), b"guest").expect("write");
        for (at, len) in [
            (0x9003u64, 5usize),
            (0x9fff, 2),
            (0x9ff1, 300),
            (0x9000, 4096),
        ] {
            let want: Vec<u8> = (0..len).map(|i| i as u8 ^ 0xa5).collect();
            m.encrypt_for_firmware(Asid(1), Spa(at), &want)
                .expect("encrypt");
            let mut got = vec![0; len];
            m.read(ONE, Spa(at), &mut got).expect("read");
            assert_eq!(got, want, "{cipher} {cache:?} {at:#x}+{len}");
            got.fill(0);
            m.decrypt_for_firmware(Asid(1), Spa(at), &mut got)
                .expect("decrypt");
            assert_eq!(got, want);
        }
    });
}

#[test]
fn numbers_cross_blocks_and_pages() {
    everywhere(|cipher, cache| {
        let m = machine(config(cipher, cache));
        for d in [ONE, Domain::Shared] {
            for a in [0x1_0000u64, 0x1_0008, 0x1_0009, 0x1_000c, 0x1_0ffc] {
                m.write_u64(d, Spa(a), 0x1122_3344_5566_7788)
                    .expect("write");
                assert_eq!(
                    m.read_u64(d, Spa(a)),
                    Ok(0x1122_3344_5566_7788),
                    "{cipher} {a:#x}"
                );
                assert_eq!(read::<8>(&m, d, a), 0x1122_3344_5566_7788u64.to_le_bytes());
            }
        }
    });
}

#[test]
fn keys_come_and_go() {
    everywhere(|cipher, cache| {
        let m = machine(config(cipher, cache));
        m.write(ONE, Spa(0x3000), &pattern(8)).expect("write");
        m.remove_key(Asid(1));
        let gone = Error::NoKey {
            asid: Asid(1),
            spa: Spa(0x3000),
        };
        assert_eq!(m.read(ONE, Spa(0x3000), &mut [0]), Err(gone.clone()));
        assert_eq!(m.write(ONE, Spa(0x3000), &[0]), Err(gone.clone()));
        assert_eq!(m.encrypt_in_place(Asid(1), Spa(0x3000)), Err(gone.clone()));
        assert_eq!(
            gone.to_string(),
            "ASID 1 has no memory key (access to SPA 0x3000)"
        );
        let raw = bus::<PAGE>(&m, 0x3000);
        assert_ne!(raw, pattern(8));
        m.install_key(Asid(1), key(cipher, 1)).expect("key");
        assert_eq!(
            read::<PAGE>(&m, ONE, 0x3000),
            pattern(8),
            "the same key again"
        );
        m.write(ONE, Spa(0x3000), &pattern(9)).expect("write");
        m.install_key(Asid(1), key(cipher, 77)).expect("key");
        assert_ne!(read::<PAGE>(&m, ONE, 0x3000), pattern(9), "another key");
        m.install_key(Asid(1), key(cipher, 1)).expect("key");
        assert_eq!(
            read::<PAGE>(&m, ONE, 0x3000),
            pattern(9),
            "written back under the key it had"
        );
    });
    let m = machine(config(CipherKind::Aes128Xe, CacheMode::Page));
    assert_eq!(
        m.install_key(Asid(3), key(CipherKind::Aes256Xts, 1)),
        Err(Error::CipherMismatch {
            key: CipherKind::Aes256Xts,
            machine: CipherKind::Aes128Xe
        })
    );
    let far = m.install_key(Asid(1024), key(CipherKind::Aes128Xe, 1));
    assert_eq!(
        far,
        Err(Error::AsidRange {
            asid: Asid(1024),
            max: 1023
        })
    );
    assert!(
        m.read(Domain::Private(Asid(u32::MAX)), Spa(0), &mut [0])
            .is_err()
    );
    m.remove_key(Asid(u32::MAX));
}

#[test]
fn the_end_of_dram_is_an_error_or_a_floating_bus() {
    everywhere(|cipher, cache| {
        let m = machine(config(cipher, cache));
        let end = m.size();
        for d in [Domain::Shared, ONE] {
            for (a, len) in [(end, 1), (end - 1, 2), (u64::MAX, 1), (u64::MAX - 3, 8)] {
                let e = Error::OutOfRange {
                    spa: Spa(a),
                    len,
                    size: end,
                };
                let mut out = vec![0; len as usize];
                assert_eq!(m.read(d, Spa(a), &mut out), Err(e.clone()));
                assert_eq!(m.write(d, Spa(a), &out), Err(e));
            }
            assert!(m.read_u64(d, Spa(end)).is_err() && m.write_u64(d, Spa(end), 0).is_err());
            assert!(m.read_u64(d, Spa(u64::MAX - 7)).is_err());
            assert!(m.host_page(d, Spa(end), false).is_err() && m.zero_page(d, Spa(end)).is_err());
            assert_eq!(
                m.host_page(d, Spa(8), false),
                Err(Error::Unaligned { spa: Spa(8) })
            );
            assert_eq!(m.read(d, Spa(end), &mut []), Ok(()));
        }
        assert_eq!(bus::<4>(&m, end - 2), [0, 0, 0xff, 0xff]);
        assert_eq!(bus::<4>(&m, u64::MAX - 1), [0xff; 4]);
        m.bus_write(Spa(end - 1), &[1, 2]);
        m.bus_write(Spa(u64::MAX - 1), &[9; 4]);
        assert_eq!((bus::<1>(&m, end - 1), bus::<2>(&m, 0)), ([1], [0, 0]));
    });
}

#[test]
fn configurations_that_can_not_be() {
    let good = config(CipherKind::Aes128Xex, CacheMode::Page);
    let with = |f: &dyn Fn(&mut Config)| {
        let mut c = good.clone();
        f(&mut c);
        MemCtl::new(c).map(drop)
    };
    assert_eq!(with(&|_| ()), Ok(()));
    assert!(matches!(with(&|c| c.size = 0), Err(Error::Size { .. })));
    assert!(matches!(with(&|c| c.size = 4097), Err(Error::Size { .. })));
    assert!(matches!(
        with(&|c| c.size = 1 << 60),
        Err(Error::Size { .. })
    ));
    assert!(matches!(
        with(&|c| (c.size, c.snp) = (8192, true)),
        Err(Error::Size { .. })
    ));
    assert_eq!(
        with(&|c| c.resident = Some(63)),
        Err(Error::ResidentLimit { limit: 63, min: 64 })
    );
    assert_eq!(with(&|c| c.resident = Some(64)), Ok(()));
    // Far more than the host has: nothing is taken until it is touched.
    assert_eq!(with(&|c| c.size = 64 << 30), Ok(()));
}

#[test]
fn dumps_hold_ciphertext_and_holes() {
    everywhere(|cipher, cache| {
        let m = machine(config(cipher, cache));
        m.write(ONE, Spa(0x5123), b"a secret that must not leak")
            .expect("write");
        m.write(Domain::Shared, Spa(0x20_0000), b"public")
            .expect("write");
        let mut dump = Vec::new();
        m.dump(&mut dump).expect("dump");
        assert_eq!(dump.len() as u64, m.size());
        assert!(
            !dump.windows(8).any(|w| b"a secret".starts_with(w)),
            "{cipher} {cache:?}"
        );
        assert_eq!(&dump[0x20_0000..0x20_0006], b"public");
        assert_eq!(dump[0x5000..0x6000], bus::<PAGE>(&m, 0x5000));
        let path =
            std::env::temp_dir().join(format!("memctl-{}-{cipher}-{cache:?}", std::process::id()));
        let mut f = std::fs::File::create(&path).expect("file");
        m.dump_to_file(&mut f).expect("dump");
        let from_file = std::fs::read(&path);
        let meta = std::fs::metadata(&path).expect("metadata");
        std::fs::remove_file(&path).expect("remove");
        assert!(from_file.expect("read") == dump);
        assert!(
            std::os::unix::fs::MetadataExt::blocks(&meta) * 512 < 1 << 20,
            "holes"
        );
        assert_eq!(read::<27>(&m, ONE, 0x5123), *b"a secret that must not leak");
    });
}

#[test]
fn threads_in_different_domains_keep_their_own() {
    for resident in [None, Some(64)] {
        let mut cfg = config(CipherKind::Aes128Xex, CacheMode::Page);
        cfg.resident = resident;
        let m = machine(cfg);
        let workers: Vec<_> = [ONE, TWO, Domain::Shared]
            .into_iter()
            .enumerate()
            .map(|(w, d)| {
                let m = Arc::clone(&m);
                std::thread::spawn(move || {
                    for round in 0..40u64 {
                        // Interleaved pages: neighbours of other domains, never the same page.
                        for page in (w as u64..200).step_by(3) {
                            let a = Spa(page * 4096 + 8 * (round % 512));
                            m.write_u64(d, a, round << 32 | page).expect("write");
                        }
                        for page in (w as u64..200).step_by(3) {
                            let a = Spa(page * 4096 + 8 * (round % 512));
                            assert_eq!(m.read_u64(d, a), Ok(round << 32 | page));
                        }
                    }
                })
            })
            .collect();
        for w in workers {
            w.join().expect("worker");
        }
    }
}
