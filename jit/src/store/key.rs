//! What a translation depends on besides the guest's bytes and their address.

use crate::JitOptions;
use sevlab_cpu::profile::Profile;
use std::ffi::OsStr;
use std::fmt::{self, Write};
use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::OnceLock;
use xxhash_rust::xxh3::Xxh3;

/// Grows whenever the format of files changes, or what they mean.
const VERSION: u32 = 3;

/// A hash of all that must be equal where a file is used to what it was where the file was made:
///
/// | | because |
/// |---|---|
/// | [`VERSION`] | the file's format |
/// | the sevlab build | it lowers, lays out the CPU state and numbers helpers in its own way |
/// | the code generator's settings and the host's instruction sets that it uses | code made for another host may not run here |
/// | [`JitOptions`], as far as they change code: costs of a machine model, too | |
/// | whether guest memory is in a view | code without probes needs one |
/// | the CPU model's [`Profile`] | instructions that it hides raise #UD |
/// | the guest program's file name, and its build id or what tells its content | no dependence: so that a file stays small, and is what one program needs |
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Key(pub [u8; 16]);

/// Writes text into a hash.
struct Text<'a>(&'a mut Xxh3);

impl Write for Text<'_> {
    fn write_str(&mut self, s: &str) -> fmt::Result {
        self.0.update(s.as_bytes());
        Ok(())
    }
}

/// The options with a fixed value in place of each that does not change the code of a region.
fn code_options(options: &JitOptions) -> JitOptions {
    let any = JitOptions::default();
    JitOptions {
        threshold: any.threshold,
        warm: any.warm,
        background: any.background,
        dump_dir: None,
        count_host: any.count_host,
        code_bytes: any.code_bytes,
        cache: None,
        ..options.clone()
    }
}

impl Key {
    /// The key of `program`'s translations. `isa` is the code generator's settings. None if this build can't be told from others.
    pub(crate) fn new(
        isa: &str,
        options: &JitOptions,
        profile: &Profile,
        view: bool,
        program: &Path,
    ) -> Option<Self> {
        let mut hash = Xxh3::new();
        hash.update(&VERSION.to_le_bytes());
        let build = build()?;
        let name = program.file_name().unwrap_or_default().as_bytes();
        let content = content(program).unwrap_or_default();
        // Each part says where it ends.
        for part in [build, isa.as_bytes(), name, &content] {
            hash.update(&(part.len() as u64).to_le_bytes());
            hash.update(part);
        }
        let options = code_options(options);
        // Writing into a hash can't fail.
        let _ = write!(Text(&mut hash), "{options:?}{view}{profile:?}");
        Some(Self(hash.digest128().to_le_bytes()))
    }

    /// The name of the file with this key: the program's, for whoever looks into the folder, and the key.
    pub(crate) fn file_name(&self, program: &Path) -> String {
        let name = program.file_name().unwrap_or(OsStr::new("program"));
        let name: String = name
            .to_string_lossy()
            .chars()
            .map(|c| {
                if c.is_ascii_alphanumeric() || "-_+.".contains(c) {
                    c
                } else {
                    '_'
                }
            })
            .take(64)
            .collect();
        format!("{name}-{:032x}.code", u128::from_be_bytes(self.0))
    }
}

/// What tells this build of sevlab from any other: the build id that the linker has left in the executable, or a hash of all of it.
fn build() -> Option<&'static [u8]> {
    static BUILD: OnceLock<Option<Vec<u8>>> = OnceLock::new();
    let build = BUILD.get_or_init(|| {
        let file = File::open("/proc/self/exe").ok()?;
        match build_id(&file) {
            Ok(Some(id)) => Some(id),
            _ => hash_of(&file).ok(),
        }
    });
    build.as_deref()
}

fn hash_of(file: &File) -> io::Result<Vec<u8>> {
    let mut hash = Xxh3::new();
    let (mut at, mut buffer) = (0, vec![0; 64 << 10]);
    loop {
        let n = file.read_at(&mut buffer, at)?;
        if n == 0 {
            return Ok(hash.digest128().to_le_bytes().into());
        }
        hash.update(&buffer[..n]);
        at += n as u64;
    }
}

/// What tells a program from others of its name, roughly: its build id, or its size and a hash of its beginning. A study runs copies in
/// folders of ever new names, so the path tells nothing.
fn content(program: &Path) -> io::Result<Vec<u8>> {
    let file = File::open(program)?;
    if let Ok(Some(id)) = build_id(&file) {
        return Ok(id);
    }
    let mut hash = Xxh3::new();
    hash.update(&file.metadata()?.len().to_le_bytes());
    let mut buffer = vec![0; 64 << 10];
    let n = file.read_at(&mut buffer, 0)?;
    hash.update(&buffer[..n]);
    Ok(hash.digest128().to_le_bytes().into())
}

/// The build id of a 64-bit little-endian ELF file, if it has one.
fn build_id(file: &File) -> io::Result<Option<Vec<u8>>> {
    const PT_NOTE: u32 = 4;
    const NT_GNU_BUILD_ID: u32 = 3;
    let mut head = [0; 64];
    file.read_exact_at(&mut head, 0)?;
    if !head.starts_with(b"\x7fELF\x02\x01") {
        return Ok(None);
    }
    let (phoff, phnum) = (u64_at(&head, 32), u16_at(&head, 56));
    let mut table = vec![0; usize::from(phnum) * 56];
    file.read_exact_at(&mut table, phoff)?;
    for segment in table.chunks_exact(56) {
        if u32_at(segment, 0) != PT_NOTE {
            continue;
        }
        let (at, bytes) = (u64_at(segment, 8), u64_at(segment, 32).min(4096));
        let mut notes = vec![0; bytes as usize];
        file.read_exact_at(&mut notes, at)?;
        let mut rest = notes.as_slice();
        while rest.len() >= 12 {
            let padded = |n: u32| (n as usize).next_multiple_of(4);
            let (name, desc) = (padded(u32_at(rest, 0)), u32_at(rest, 4));
            let Some(body) = rest.get(12..).filter(|b| b.len() >= name + padded(desc)) else {
                break;
            };
            if u32_at(rest, 8) == NT_GNU_BUILD_ID && body.starts_with(b"GNU\0") && desc >= 16 {
                return Ok(Some(body[name..name + desc as usize].to_vec()));
            }
            rest = &body[name + padded(desc)..];
        }
    }
    Ok(None)
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from(u16_at(bytes, at)) | u32::from(u16_at(bytes, at + 2)) << 16
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

#[cfg(test)]
mod tests {
    use super::*;
    use sevlab_cpu::profile::CpuidFeature;

    fn key(options: &JitOptions, profile: &Profile, isa: &str, program: &str) -> Key {
        Key::new(isa, options, profile, true, Path::new(program)).expect("this build is known")
    }

    #[test]
    fn what_changes_code_changes_the_key() {
        let base = JitOptions::default();
        let all = Profile::ALL;
        let same = key(&base, &all, "isa", "/bin/true");
        let mut without = Profile::ALL;
        without.hide(CpuidFeature::AVX2);
        let path = Path::new("/bin/true");
        let others = [
            Key::new("isa", &base, &all, false, path).expect("this build is known"),
            key(&base, &all, "isa", "/bin/false"),
            key(&base, &all, "other", "/bin/true"),
            key(&base, &without, "isa", "/bin/true"),
            key(
                &JitOptions {
                    groups: false,
                    ..base.clone()
                },
                &all,
                "isa",
                "/bin/true",
            ),
            key(
                &JitOptions {
                    lines: true,
                    ..base.clone()
                },
                &all,
                "isa",
                "/bin/true",
            ),
            key(
                &JitOptions {
                    max_insns: 7,
                    ..base.clone()
                },
                &all,
                "isa",
                "/bin/true",
            ),
        ];
        for (n, other) in others.iter().enumerate() {
            assert_ne!(*other, same, "{n}");
        }
        let quick = JitOptions {
            threshold: 1,
            background: false,
            ..base
        };
        assert_eq!(key(&quick, &all, "isa", "/bin/true"), same);
    }

    #[test]
    fn a_build_has_an_id_or_a_hash() {
        let file = File::open("/proc/self/exe").expect("this program");
        let hash = hash_of(&file).expect("readable");
        assert_eq!(hash.len(), 16);
        let id = build_id(&file).expect("an ELF file");
        assert_eq!(build().map(<[u8]>::to_vec), id.or(Some(hash)));
    }

    #[test]
    fn a_file_is_named_after_its_program() {
        let name = Key([0xab; 16]).file_name(Path::new("/usr/bin/py thon3\u{e9}/../x y"));
        assert!(
            name.starts_with("x_y-abab") && name.ends_with("ab.code"),
            "{name}"
        );
    }
}
