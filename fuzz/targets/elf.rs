//! Program files: headers are parsed, the image is laid out, and what was laid out is run for a few blocks.
//! A file is refused with an error, or every page of the image lies in the memory there is.
//!
//! Input: two bytes (length of the program), the program file, then the file that its `PT_INTERP` may name
//! (`/proc/self/fd/901`; the program itself is `/proc/self/fd/900`). Other interpreters are not opened.
#![no_main]

use std::fs::File;
use std::io::{Seek, Write};
use std::os::fd::FromRawFd;
use std::sync::{Arc, Mutex, OnceLock};

use libfuzzer_sys::fuzz_target;
use sevlab_arch::{Gpa, Spa};
use sevlab_cpu::{Vcpu, VcpuConfig, interp};
use sevlab_fuzz::Input;
use sevlab_machine::kernel::{ImageConfig, elf, image};
use sevlab_memctl::{CacheMode, CipherKind, Config, Domain, MemCtl};

const PROGRAM: i32 = 900;
const INTERPRETER: i32 = 901;
const MEMORY: u64 = 16 << 20;
const BLOCKS: u64 = 64;

fuzz_target!(|data: &[u8]| {
    static FILES: OnceLock<Mutex<[File; 2]>> = OnceLock::new();
    let mut input = Input(data);
    let length = usize::from(input.u16());
    let program = input.bytes(length);
    let interpreter = input.0;
    let path = format!("/proc/self/fd/{PROGRAM}");
    for bytes in [program, interpreter] {
        if let Ok(elf) = elf::parse("fuzzed", bytes) {
            assert!(elf.start() < elf.end());
            let other = format!("/proc/self/fd/{INTERPRETER}");
            if elf.interpreter.is_some_and(|i| i != other) {
                return;
            }
        }
        // A script names what the host has.
        if bytes.starts_with(b"#!") && !bytes.starts_with(b"#!/proc/self/fd/90") {
            return;
        }
    }
    let files = FILES.get_or_init(|| Mutex::new([memory_file(PROGRAM), memory_file(INTERPRETER)]));
    let mut files = files.lock().expect("one thread");
    for (file, bytes) in files.iter_mut().zip([program, interpreter]) {
        file.set_len(0).expect("a file in memory");
        file.rewind().expect("a file in memory");
        file.write_all(bytes).expect("a file in memory");
    }
    let mut config = ImageConfig::new(path, vec![b"fuzzed".to_vec()], Gpa(0x10_0000)..Gpa(MEMORY));
    config.envp = vec![b"A=b".to_vec()];
    let image = match image::build(&config) {
        Ok(image) => image,
        Err(e) => {
            assert!(!e.to_string().is_empty());
            return;
        }
    };
    assert!(config.memory.contains(&Gpa(image.cr3 & !0xfff)));
    assert!(image.pages.is_sorted_by(|a, b| a.0 < b.0));
    let mem = MemCtl::new(Config {
        size: MEMORY,
        cipher: CipherKind::Aes128Xex,
        cache: CacheMode::Page,
        resident: None,
        tweak_seed: 0,
        hierarchy: None,
        cores: 1,
        snp: false,
    })
    .expect("memory");
    for (gpa, page) in &image.pages {
        assert!(config.memory.contains(gpa), "{gpa}");
        mem.write(Domain::Shared, Spa(gpa.0), &page[..])
            .expect("in range");
    }
    let mut vcpu = Vcpu::new(Arc::clone(&mem), VcpuConfig::default());
    vcpu.state.sys.cr3 = image.cr3;
    vcpu.state.rip = image.rip;
    vcpu.state.gpr[4] = image.rsp;
    let _ = interp::run_blocks(&mut vcpu, BLOCKS);
});

/// An empty file in memory at this descriptor.
fn memory_file(fd: i32) -> File {
    // SAFETY: plain system calls; the descriptor is new here, so nothing else owns it.
    unsafe {
        let made = libc::memfd_create(c"fuzz".as_ptr(), 0);
        assert!(made >= 0 && libc::dup2(made, fd) == fd);
        drop(File::from_raw_fd(made));
        File::from_raw_fd(fd)
    }
}
