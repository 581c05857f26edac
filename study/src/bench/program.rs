//! Whether two programs are the same for a count: what the same sources and the same compiler make is, wherever it was built.
//!
//! A folder's name is part of what orders functions in a program, so its bytes differ from one checkout to the next. What stays
//! is how large its code is, and the compilers' names (`.comment`). Such programs execute the same instructions, and their
//! cycles differ by thousandths of a percent.

use std::fs;
use std::path::{Path, PathBuf};

use sevlab_workloads::resolve::sha256;

/// `PT_LOAD`, and `PT_INTERP`.
const LOAD: u64 = 1;
const INTERP: u64 = 3;
/// `PF_X`.
const EXECUTE: u64 = 1;

/// A little-endian number of that many bytes.
fn number(bytes: &[u8], at: u64, size: usize) -> Option<u64> {
    let at = usize::try_from(at).ok()?;
    let bytes = bytes.get(at..at.checked_add(size)?)?;
    Some(bytes.iter().rev().fold(0, |n, b| n << 8 | u64::from(*b)))
}

fn part(bytes: &[u8], at: u64, size: u64) -> Option<&[u8]> {
    let at = usize::try_from(at).ok()?;
    bytes.get(at..at.checked_add(usize::try_from(size).ok()?)?)
}

/// Of each program header: type, flags, offset, size in the file and in memory.
fn segments(elf: &[u8]) -> Option<Vec<[u64; 5]>> {
    if !elf.starts_with(b"\x7fELF\x02\x01") {
        return None;
    }
    let (table, each, count) = (
        number(elf, 32, 8)?,
        number(elf, 54, 2)?,
        number(elf, 56, 2)?,
    );
    (0..count)
        .map(|n| {
            let at = table.checked_add(n * each)?;
            Some([
                number(elf, at, 4)?,
                number(elf, at + 4, 4)?,
                number(elf, at + 8, 8)?,
                number(elf, at + 32, 8)?,
                number(elf, at + 40, 8)?,
            ])
        })
        .collect()
}

/// A section by its name.
fn section<'a>(elf: &'a [u8], wanted: &[u8]) -> Option<&'a [u8]> {
    let (table, each) = (number(elf, 40, 8)?, number(elf, 58, 2)?);
    let (count, names) = (number(elf, 60, 2)?, number(elf, 62, 2)?);
    let header = |n: u64| table.checked_add(n * each);
    let names = number(elf, header(names)? + 24, 8)?;
    (0..count).find_map(|n| {
        let at = header(n)?;
        let name = part(
            elf,
            names.checked_add(number(elf, at, 4)?)?,
            wanted.len() as u64 + 1,
        )?;
        let found = name.strip_suffix(b"\0") == Some(wanted);
        found.then(|| part(elf, number(elf, at + 24, 8)?, number(elf, at + 32, 8)?))?
    })
}

/// The compilers and the linker, as they have signed the program; empty: it does not say.
pub fn compilers(program: &[u8]) -> String {
    let text = section(program, b".comment").unwrap_or_default();
    let text = String::from_utf8_lossy(text);
    let mut names: Vec<&str> = text.split('\0').filter(|t| !t.is_empty()).collect();
    names.sort_unstable();
    names.join("; ")
}

/// The same for programs that count alike. Of what is no ELF file it is the digest.
pub fn identity(program: &[u8]) -> String {
    let Some(segments) = segments(program) else {
        return sha256(program);
    };
    let mut text = compilers(program);
    for [kind, flags, _, file, memory] in segments {
        if kind == LOAD && flags & EXECUTE != 0 {
            text.push_str(&format!(" {flags} {file} {memory}"));
        }
    }
    sha256(text.as_bytes())
}

/// A digest of the C library that the program finds here: of its interpreter and of what lies beside that. The rest of what it
/// links (Rust's programs: nothing) is not looked at.
pub fn library(program: &[u8]) -> String {
    const BESIDE: [&str; 3] = ["libc.so.6", "libm.so.6", "libgcc_s.so.1"];
    let Some(interpreter) = interpreter(program) else {
        return String::new();
    };
    let mut files = vec![interpreter.clone()];
    // A link may lead to another folder (/lib64), where the library is.
    let real = fs::canonicalize(&interpreter).unwrap_or(interpreter);
    let folder = real.parent().unwrap_or(Path::new("/"));
    files.extend(BESIDE.map(|name| folder.join(name)));
    let digests: Vec<String> = files
        .iter()
        .filter_map(|f| fs::read(f).ok())
        .map(|bytes| sha256(&bytes))
        .collect();
    sha256(digests.join(" ").as_bytes())
}

fn interpreter(program: &[u8]) -> Option<PathBuf> {
    let segments = segments(program)?;
    let [_, _, at, size, _] = *segments.iter().find(|s| s[0] == INTERP)?;
    let path = part(program, at, size)?;
    let path = std::str::from_utf8(path).ok()?.trim_end_matches('\0');
    Some(PathBuf::from(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// This test's own program.
    fn own() -> Vec<u8> {
        fs::read("/proc/self/exe").expect("this program")
    }

    #[test]
    fn the_compiler_and_the_library_are_found() {
        let program = own();
        assert!(
            compilers(&program).contains("rustc version"),
            "{}",
            compilers(&program)
        );
        let interpreter = interpreter(&program).expect("dynamically linked");
        assert!(interpreter.is_file(), "{interpreter:?}");
        assert_eq!(library(&program).len(), 64);
    }

    #[test]
    fn code_elsewhere_is_the_same_and_more_code_is_not() {
        let program = own();
        let mut swapped = program.clone();
        let middle = swapped.len() / 2;
        swapped[middle] ^= 1;
        assert_eq!(identity(&program), identity(&swapped));
        // The code is a byte longer.
        let mut longer = program.clone();
        let table = number(&program, 32, 8).expect("a table") as usize;
        let first = segments(&program).expect("an ELF file");
        let first = first
            .iter()
            .position(|s| s[0] == LOAD && s[1] & EXECUTE != 0)
            .expect("code");
        longer[table + first * 56 + 40] ^= 1;
        assert_ne!(identity(&program), identity(&longer));
    }

    #[test]
    fn nonsense_is_a_program_of_its_own() {
        assert_eq!(identity(b"#!/bin/sh\n"), sha256(b"#!/bin/sh\n"));
        let program = own();
        for cut in [0, 1, 16, 63, 64, 100, 600] {
            let _ = (identity(&program[..cut]), library(&program[..cut]));
        }
        let mut wild = program;
        wild[32..40].fill(0xff);
        wild[40..48].fill(0xff);
        assert_eq!(identity(&wild), sha256(&wild));
        assert_eq!(compilers(&wild), "");
    }
}
