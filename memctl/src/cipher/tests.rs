#![allow(unsafe_code)] // the raw-pointer entry points are what is tested
//! Every path against published vectors, against the definition of each mode, and against the `aes` crate's path.

use aes::cipher::{BlockCipherEncrypt, KeyInit};

use super::engine::Kernel;
use super::*;
use crate::key::MemoryKey;

fn hex(s: &str) -> Vec<u8> {
    let digits: Vec<u8> = s
        .chars()
        .filter_map(|c| c.to_digit(16))
        .map(|d| d as u8)
        .collect();
    digits.chunks(2).map(|d| d[0] << 4 | d[1]).collect()
}

struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        // xorshift64*
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
    fn below(&mut self, n: usize) -> usize {
        (self.next() >> 16) as usize % n
    }
    fn bytes(&mut self, n: usize) -> Vec<u8> {
        (0..n).map(|_| (self.next() >> 40) as u8).collect()
    }
}

fn engine(kind: CipherKind, key: &[u8], path: Path) -> Engine {
    let key = MemoryKey::new(kind, key).expect("a key of the right length");
    Engine::new(&key, &TweakTable::for_cipher(kind, 42), path)
}

fn kernel(kind: CipherKind, key: &[u8], path: Path) -> Box<dyn Kernel> {
    let key = MemoryKey::new(kind, key).expect("a key of the right length");
    let tweaks = TweakTable::for_cipher(kind, 42);
    match path {
        Path::Portable => portable::kernel(&key, &tweaks),
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the tests only name available paths.
        p => unsafe { x86::kernel(&key, &tweaks, p) },
        #[cfg(not(target_arch = "x86_64"))]
        _ => portable::kernel(&key, &tweaks),
    }
}

#[test]
fn names_round_trip_and_wrong_ones_are_refused() {
    for k in CipherKind::ALL {
        assert_eq!(k.to_string().parse(), Ok(k));
    }
    for p in Path::ALL {
        assert_eq!(p.to_string().parse(), Ok(p));
    }
    assert_eq!(CipherKind::ALL.map(CipherKind::key_len), [16, 16, 64]);
    for wrong in ["", "aes128", "AES128-XE", "aes128-xe ", "aes256-xex"] {
        let e = wrong.parse::<CipherKind>().expect_err("not a cipher");
        assert_eq!((e.what, e.name.as_str()), ("cipher", wrong));
        assert!(e.to_string().contains("aes128-xex"));
        assert!(wrong.parse::<Path>().is_err());
    }
}

#[test]
fn paths_are_consistent() {
    let all = Path::available();
    assert_eq!(all.first(), Some(&Path::Portable));
    assert_eq!(all.last(), Some(&Path::detect()));
    for p in Path::ALL {
        let e = engine(CipherKind::Aes128Xe, &[1; 16], p);
        assert_eq!(e.path(), if p.is_available() { p } else { Path::detect() });
    }
}

/// FIPS 197, C.1: XE at address 0 is AES-128 itself.
#[test]
fn fips_197_aes_128() {
    let key: Vec<u8> = (0..16).collect();
    let plain = hex("00112233445566778899aabbccddeeff");
    let cipher = hex("69c4e0d86a7b0430d8cdb78070b4c55a");
    for path in Path::available() {
        for kind in [CipherKind::Aes128Xe, CipherKind::Aes128Xex] {
            let e = engine(kind, &key, path);
            let mut data = plain.clone();
            e.encrypt_slice(0, &mut data);
            assert_eq!(data, cipher, "{path} {kind}");
            e.decrypt_slice(0, &mut data);
            assert_eq!(data, plain, "{path} {kind}");
        }
    }
}

/// FIPS 197, C.3, through the second key of XTS.
#[test]
fn fips_197_aes_256() {
    let mut key = vec![9; 32];
    key.extend(0..32);
    let plain: [u8; 16] = hex("00112233445566778899aabbccddeeff")
        .try_into()
        .expect("16 bytes");
    for path in Path::available() {
        let k = kernel(CipherKind::Aes256Xts, &key, path);
        // SAFETY: the path is available.
        let t = unsafe { k.unit_tweak(u128::from_le_bytes(plain)) };
        assert_eq!(
            t.to_le_bytes().to_vec(),
            hex("8ea2b7ca516745bfeafc49904b496089"),
            "{path}"
        );
    }
}

struct Vector {
    name: &'static str,
    key: &'static str,
    unit: &'static str,
    plain: Vec<u8>,
    cipher: &'static str,
}

const PI_E: &str = "2718281828459045235360287471352662497757247093699959574966967627
    3141592653589793238462643383279502884197169399375105820974944592";

/// IEEE 1619-2007 annex B (vectors 10 and 14), and NIST CAVS 11.0 XTSGenAES256.rsp (format "128 hex str").
fn xts_vectors() -> Vec<Vector> {
    let counting: Vec<u8> = (0..512).map(|i| i as u8).collect();
    vec![
        Vector {
            name: "IEEE 1619 vector 10",
            key: PI_E,
            unit: "ff000000000000000000000000000000",
            plain: counting.clone(),
            cipher: "1c3b3a102f770386e4836c99e370cf9bea00803f5e482357a4ae12d414a3e63b5d31e276f8fe4a8d66b317f9ac683f44
                680a86ac35adfc3345befecb4bb188fd5776926c49a3095eb108fd1098baec70aaa66999a72a82f27d848b21d4a741b0
                c5cd4d5fff9dac89aeba122961d03a757123e9870f8acf1000020887891429ca2a3e7a7d7df7b10355165c8b9a6d0a7d
                e8b062c4500dc4cd120c0f7418dae3d0b5781c34803fa75421c790dfe1de1834f280d7667b327f6c8cd7557e12ac3a0f
                93ec05c52e0493ef31a12d3d9260f79a289d6a379bc70c50841473d1a8cc81ec583e9645e07b8d9670655ba5bbcfecc6
                dc3966380ad8fecb17b6ba02469a020a84e18e8f84252070c13e9f1f289be54fbc481457778f616015e1327a02b140f1
                505eb309326d68378f8374595c849d84f4c333ec4423885143cb47bd71c5edae9be69a2ffeceb1bec9de244fbe15992b
                11b77c040f12bd8f6a975a44a0f90c29a9abc3d4d893927284c58754cce294529f8614dcd2aba991925fedc4ae74ffac
                6e333b93eb4aff0479da9a410e4450e0dd7ae4c6e2910900575da401fc07059f645e8b7e9bfdef33943054ff84011493
                c27b3429eaedb4ed5376441a77ed43851ad77f16f541dfd269d50d6a5f14fb0aab1cbb4c1550be97f7ab4066193c4caa
                773dad38014bd2092fa755c824bb5e54c4f36ffda9fcea70b9c6e693e148c151",
        },
        Vector {
            name: "IEEE 1619 vector 14",
            key: PI_E,
            unit: "ffffffffff0000000000000000000000",
            plain: counting,
            cipher: "64497e5a831e4a932c09be3e5393376daa599548b816031d224bbf50a818ed2350eae7e96087c8a0db51ad290bd00c1a
                c1620857635bf246c176ab463be30b808da548081ac847b158e1264be25bb0910bbc92647108089415d45fab1b3d2604
                e8a8eff1ae4020cfa39936b66827b23f371b92200be90251e6d73c5f86de5fd4a950781933d79a28272b782a2ec313ef
                dfcc0628f43d744c2dc2ff3dcb66999b50c7ca895b0c64791eeaa5f29499fb1c026f84ce5b5c72ba1083cddb5ce45434
                631665c333b60b11593fb253c5179a2c8db813782a004856a1653011e93fb6d876c18366dd8683f53412c0c180f9c848
                592d593f8609ca736317d356e13e2bff3a9f59cd9aeb19cd482593d8c46128bb32423b37a9adfb482b99453fbe25a41b
                f6feb4aa0bef5ed24bf73c762978025482c13115e4015aac992e5613a3b5c2f685b84795cb6e9b2656d8c88157e52c42
                f978d8634c43d06fea928f2822e465aa6576e9bf419384506cc3ce3c54ac1a6f67dc66f3b30191e698380bc999b05abc
                e19dc0c6dcc2dd001ec535ba18deb2df1a101023108318c75dc98611a09dc48a0acdec676fabdf222f07e026f059b672
                b56e5cbc8e1d21bbd867dd927212054681d70ea737134cdfce93b6f82ae22423274e58a0821cc5502e2d0ab4585e94de
                6975be5e0b4efce51cd3e70c25a1fbbbd609d273ad5b0d59631c531f6a0a57b9",
        },
        Vector {
            name: "CAVS XTSGenAES256 count 1",
            key: "1ea661c58d943a0e4801e42f4b0947149e7f9f8e3e68d0c7505210bd311a0e7c
                d6e13ffdf2418d8d1911c004cda58da3d619b7e2b9141e58318eea392cf41b08",
            unit: "adf8d92627464ad2f0428e84a9f87564",
            plain: hex("2eedea52cd8215e1acc647e810bbc3642e87287f8d2e57e36c0a24fbc12a202e"),
            cipher: "cbaad0e2f6cea3f50b37f934d46a9b130b9d54f07e34f36af793e86f73c6d7db",
        },
        Vector {
            name: "CAVS XTSGenAES256 count 101",
            key: "266c336b3b01489f3267f52835fd92f674374b88b4e1ebd2d36a5f457581d9d0
                42c3eef7b0b7e5137b086496b4d9e6ac658d7196a23f23f036172fdb8faee527",
            unit: "06b209a7a22f486ecbfadb0f3137ba42",
            plain: hex("ca7d65ef8d3dfad345b61ccddca1ad81de830b9e86c7b426d76cb7db766852d9
                81c6b21409399d78f42cc0b33a7bbb06"),
            cipher: "c73256870cc2f4dd57acc74b5456dbd776912a128bc1f77d72cdebbf270044b7
                a43ceed29025e1e8be211fa3c3ed002d",
        },
    ]
}

#[test]
fn xts_vectors_on_every_path() {
    for v in xts_vectors() {
        for path in Path::available() {
            let e = engine(CipherKind::Aes256Xts, &hex(v.key), path);
            let unit: [u8; 16] = hex(v.unit).try_into().expect("16 bytes");
            let mut data = v.plain.clone();
            e.encrypt_unit(unit, &mut data).expect("XTS");
            assert_eq!(data, hex(v.cipher), "{} {path}", v.name);
            e.decrypt_unit(unit, &mut data).expect("XTS");
            assert_eq!(data, v.plain, "{} {path}", v.name);
        }
    }
}

/// Memory under XTS is one data unit a line, numbered by its address; units of many pages agree between the paths.
#[test]
fn xts_lines_are_data_units() {
    let mut rng = Rng(5);
    let key = rng.bytes(64);
    let long = rng.bytes(3 * PAGE + 5 * BLOCK);
    let mut want = long.clone();
    engine(CipherKind::Aes256Xts, &key, Path::Portable)
        .encrypt_unit([7; 16], &mut want)
        .expect("XTS");
    for path in Path::available() {
        let e = engine(CipherKind::Aes256Xts, &key, path);
        let spa = 0x000f_edcb_a987_6540;
        let mut memory = rng.bytes(LINE);
        let mut unit = memory.clone();
        e.encrypt_slice(spa, &mut memory);
        e.encrypt_unit(u128::from(spa / 64).to_le_bytes(), &mut unit)
            .expect("XTS");
        assert_eq!(memory, unit, "{path}");

        let mut data = long.clone();
        e.encrypt_unit([7; 16], &mut data).expect("XTS");
        assert_eq!(data, want, "{path}");
        e.decrypt_unit([7; 16], &mut data).expect("XTS");
        assert_eq!(data, long, "{path}");
    }
    let e = engine(CipherKind::Aes128Xex, &[1; 16], Path::detect());
    assert_eq!(
        e.encrypt_unit([0; 16], &mut [0; 16]),
        Err(NotXts {
            kind: CipherKind::Aes128Xex
        })
    );
}

/// XE and XEX from the formula, the constants and the `aes` crate alone.
#[test]
fn xe_and_xex_are_their_formulas() {
    let mut rng = Rng(11);
    let key: [u8; 16] = rng.bytes(16).try_into().expect("16 bytes");
    let aes = aes::Aes128::new(&key.into());
    for kind in [CipherKind::Aes128Xe, CipherKind::Aes128Xex] {
        let tweaks = TweakTable::for_cipher(kind, 42);
        for round in 0..64 {
            // Every address bit gets its turn alone, then many together.
            let spa = if round < 48 {
                16 << round
            } else {
                (rng.next() >> 12) & !15
            };
            let mut t = [0_u8; 16];
            for bit in 4..52 {
                if spa >> bit & 1 == 1 {
                    t.iter_mut()
                        .zip(tweaks.constant(bit))
                        .for_each(|(t, c)| *t ^= c);
                }
            }
            let plain = rng.bytes(16);
            let mut want: [u8; 16] = std::array::from_fn(|i| plain[i] ^ t[i]);
            let mut block = want.into();
            aes.encrypt_block(&mut block);
            want = block.into();
            if kind == CipherKind::Aes128Xex {
                want.iter_mut().zip(t).for_each(|(w, t)| *w ^= t);
            }
            for path in Path::available() {
                let e = engine(kind, &key, path);
                let mut got = plain.clone();
                e.encrypt_slice(spa, &mut got);
                assert_eq!(got, want, "{kind} {path} {spa:#x}");
                e.decrypt_slice(spa, &mut got);
                assert_eq!(got, plain, "{kind} {path} {spa:#x}");
            }
        }
    }
}

/// Random addresses, lengths and alignments of the buffers, in place and out of place.
#[test]
fn every_path_agrees_with_the_portable_one() {
    let mut rng = Rng(1);
    for kind in CipherKind::ALL {
        let key = rng.bytes(kind.key_len());
        let reference = engine(kind, &key, Path::Portable);
        let engines: Vec<_> = Path::available()
            .into_iter()
            .map(|p| engine(kind, &key, p))
            .collect();
        for round in 0..300 {
            let len = BLOCK
                * if round % 2 == 0 {
                    rng.below(40)
                } else {
                    rng.below(3 * PAGE / BLOCK)
                };
            let spa = (rng.next() >> (12 + rng.below(40))) & !15;
            let plain = rng.bytes(len);
            let mut want = plain.clone();
            reference.encrypt_slice(spa, &mut want);
            for e in &engines {
                let path = e.path();
                let mut data = plain.clone();
                e.encrypt_slice(spa, &mut data);
                assert!(data == want, "{kind} {path} encrypt {spa:#x} {len}");
                e.decrypt_slice(spa, &mut data);
                assert!(data == plain, "{kind} {path} decrypt {spa:#x} {len}");

                // Out of place, off any alignment, with a guard on either side.
                let (at, to) = (rng.below(64), 1 + rng.below(64));
                let mut src = vec![0; at];
                src.extend(&plain);
                let mut dst = vec![0xa5; to + len + 64];
                // SAFETY: `len` bytes from `at` in one buffer and from `to` in the other.
                unsafe { e.encrypt(spa, src.as_ptr().add(at), dst.as_mut_ptr().add(to), len) };
                assert!(
                    dst[to..to + len] == want,
                    "{kind} {path} encrypt to another place"
                );
                assert!(src[at..] == plain);
                // SAFETY: as above, the other way.
                unsafe { e.decrypt(spa, dst.as_ptr().add(to), src.as_mut_ptr().add(at), len) };
                assert!(src[at..] == plain, "{kind} {path} decrypt to another place");
                assert!(
                    dst[..to].iter().chain(&dst[to + len..]).all(|&b| b == 0xa5),
                    "{kind} {path} outside"
                );
            }
        }
    }
}

#[test]
fn line_and_page_entry_points_are_the_general_one() {
    let mut rng = Rng(17);
    for kind in CipherKind::ALL {
        let key = rng.bytes(kind.key_len());
        for path in Path::available() {
            let e = engine(kind, &key, path);
            let page_spa = (rng.next() >> 12) & !0xfff;
            let plain = rng.bytes(PAGE);
            let mut want = plain.clone();
            e.encrypt_slice(page_spa, &mut want);
            let (mut page, mut lines, mut blocks) = (vec![0; PAGE], vec![0; PAGE], plain.clone());
            // SAFETY: a page in each buffer.
            unsafe {
                e.encrypt_page(page_spa, plain.as_ptr(), page.as_mut_ptr());
                for i in (0..PAGE).step_by(LINE) {
                    e.encrypt_line(
                        page_spa + i as u64,
                        plain.as_ptr().add(i),
                        lines.as_mut_ptr().add(i),
                    );
                }
            }
            for (i, b) in blocks.chunks_mut(BLOCK).enumerate() {
                e.encrypt_slice(page_spa + (i * BLOCK) as u64, b);
            }
            assert!(
                page == want && lines == want && blocks == want,
                "{kind} {path}"
            );
            let mut back = vec![0; PAGE];
            // SAFETY: as above.
            unsafe {
                e.decrypt_page(page_spa, page.as_ptr(), back.as_mut_ptr());
                assert!(back == plain, "{kind} {path}");
                for i in (0..PAGE).step_by(LINE) {
                    let p = lines.as_mut_ptr().add(i);
                    e.decrypt_line(page_spa + i as u64, p, p);
                }
            }
            assert!(lines == plain, "{kind} {path}");
        }
    }
}

#[test]
fn tweaks_tell_addresses_keys_and_boots_apart() {
    for kind in CipherKind::ALL {
        let mut rng = Rng(23);
        let key = rng.bytes(kind.key_len());
        let e = engine(kind, &key, Path::detect());
        let mut seen: Vec<Vec<u8>> = Vec::new();
        // 1024 blocks of equal plaintext: no two ciphertexts are equal.
        let mut same = vec![0x33; 4 * PAGE];
        e.encrypt_slice(0x1234_0000, &mut same);
        seen.extend(same.chunks(BLOCK).map(<[u8]>::to_vec));
        // Bits far apart count, too.
        for bit in 12..52 {
            let mut b = vec![0x33; BLOCK];
            e.encrypt_slice(1 << bit, &mut b);
            seen.push(b);
        }
        let n = seen.len();
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen.len(), n, "{kind}");

        let mut other = same.clone();
        engine(kind, &rng.bytes(kind.key_len()), Path::detect())
            .decrypt_slice(0x1234_0000, &mut other);
        assert!(
            other.chunks(BLOCK).all(|b| b != [0x33; BLOCK]),
            "{kind}: another key"
        );
    }
    let key = MemoryKey::new(CipherKind::Aes128Xex, &[1; 16]).expect("a key");
    let [a, b] = [1, 2].map(|seed| {
        let mut data = [0; BLOCK];
        Engine::new(&key, &TweakTable::random(seed), Path::detect())
            .encrypt_slice(0x1000, &mut data);
        data
    });
    assert_ne!(a, b, "another boot");
}

/// A ciphertext block moved elsewhere decrypts to `D(c ^ T(q)) ^ T(q)` under XEX, but to `m ^ T(p) ^ T(q)` under XE:
/// who knows the constants can move XE blocks and know what they become.
#[test]
fn moving_an_xe_block_only_xors_the_plaintext() {
    let key = [3; 16];
    let (p, q) = (0x5000, 0x91230);
    for path in Path::available() {
        let e = engine(CipherKind::Aes128Xe, &key, path);
        let t = TweakTable::for_cipher(CipherKind::Aes128Xe, 42);
        let mut data = *b"sixteen byte msg";
        e.encrypt_slice(p, &mut data);
        e.decrypt_slice(q, &mut data);
        let want: [u8; 16] =
            std::array::from_fn(|i| b"sixteen byte msg"[i] ^ t.tweak(p)[i] ^ t.tweak(q)[i]);
        assert_eq!(data, want, "{path}");

        let e = engine(CipherKind::Aes128Xex, &key, path);
        let t = TweakTable::for_cipher(CipherKind::Aes128Xex, 42);
        let mut data = *b"sixteen byte msg";
        e.encrypt_slice(p, &mut data);
        e.decrypt_slice(q, &mut data);
        let xe: [u8; 16] =
            std::array::from_fn(|i| b"sixteen byte msg"[i] ^ t.tweak(p)[i] ^ t.tweak(q)[i]);
        assert_ne!(data, xe, "{path}");
    }
}
