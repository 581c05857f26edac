//! Damaged program files are refused with the field that is wrong; none panics.

use super::*;
use crate::kernel::elf::parse;

fn xorshift(x: &mut u64) -> u64 {
    *x ^= *x << 13;
    *x ^= *x >> 7;
    *x ^= *x << 17;
    *x
}

#[test]
fn truncations() {
    let bytes = std::fs::read("/bin/true").expect("/bin/true");
    assert!(parse("/bin/true", &bytes).is_ok());
    let mut n = 0;
    while n < bytes.len() {
        let result = parse("cut", &bytes[..n]);
        if let Err(e) = &result {
            assert_eq!(e.file, "cut");
            assert!(!e.field.is_empty() && !e.what.is_empty());
        }
        assert!(n >= 64 || result.is_err());
        n += if n < 1024 { 1 } else { 997 };
    }
}

#[test]
fn mutations_never_panic() {
    let original = std::fs::read("/bin/true").expect("/bin/true");
    let file = scratch("mutant", &[]);
    let mut seed = 0x1234_5678_9abc_def1;
    let mut refused = 0;
    for round in 0..600 {
        let mut bytes = original.clone();
        for _ in 0..1 + round % 4 {
            // mostly the header and the program headers
            let limit = if round % 5 == 0 {
                bytes.len() as u64
            } else {
                64 + 13 * 56
            };
            let at = (xorshift(&mut seed) % limit) as usize;
            bytes[at] = match round % 3 {
                0 => xorshift(&mut seed) as u8,
                1 => 0xff,
                _ => bytes[at] ^ 1 << (xorshift(&mut seed) % 8),
            };
        }
        std::fs::write(file.path(), &bytes).expect("mutant");
        let memory = Gpa(0x10_0000)..Gpa(32 << 20);
        let config = ImageConfig::new(file.path(), vec![b"mutant".to_vec()], memory);
        match image::build(&config) {
            Ok(image) => assert!(!image.pages.is_empty()),
            Err(e) => {
                refused += 1;
                assert!(!e.to_string().is_empty());
            }
        }
    }
    assert!(refused > 50, "{refused} refused");
}

#[test]
fn wrong_fields_are_named() {
    let original = std::fs::read("/bin/true").expect("/bin/true");
    let with = |at: usize, value: &[u8]| {
        let mut bytes = original.clone();
        bytes[at..at + value.len()].copy_from_slice(value);
        parse("f", &bytes).map(drop).map_err(|e| e.field)
    };
    assert_eq!(with(0, b"\x7fELG"), Err("e_ident"));
    assert_eq!(with(4, &[1]), Err("e_ident"));
    assert_eq!(with(16, &[1, 0]), Err("e_type"));
    assert_eq!(with(18, &[3, 0]), Err("e_machine"));
    assert_eq!(with(24, &[0xff; 8]), Err("e_entry"));
    assert_eq!(with(32, &[0xff; 8]), Err("e_phoff"));
    assert_eq!(with(54, &[32, 0]), Err("e_phentsize"));
    assert_eq!(with(56, &[0, 0]), Err("e_phnum"));
}

#[test]
fn missing_and_empty_files() {
    let memory = Gpa(0x10_0000)..Gpa(8 << 20);
    let config = ImageConfig::new("/nonexistent/program", vec![], memory.clone());
    let e = image::build(&config).map(drop).expect_err("no such file");
    assert!(e.to_string().contains("/nonexistent/program"), "{e}");
    let empty = scratch("empty", &[]);
    let config = ImageConfig::new(empty.path(), vec![], memory);
    assert!(matches!(
        image::build(&config).map(drop),
        Err(Error::Elf(_))
    ));
}

/// Such a file may have no end, or no other end.
#[test]
fn interpreters_that_are_no_files() {
    for name in ["/dev/zero", "/proc/self/fd", "/dev"] {
        let script = scratch("endless", format!("#!{name}\n").as_bytes());
        let config = ImageConfig::new(script.path(), vec![], Gpa(0x10_0000)..Gpa(8 << 20));
        let e = image::build(&config).map(drop).expect_err(name);
        assert!(matches!(e, Error::File { .. }), "{e}");
    }
}

#[test]
fn memory_that_is_too_small() {
    let config = ImageConfig::new("/bin/true", vec![], Gpa(0x10_0000)..Gpa(0x11_0000));
    assert!(matches!(
        image::build(&config).map(drop),
        Err(Error::OutOfMemory { .. })
    ));
}
