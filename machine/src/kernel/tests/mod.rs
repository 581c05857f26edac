//! The kernel on a real vCPU: whole programs, run by the interpreter, with an outside that goes
//! straight to the host. And what hostile files and calls must not do.
#![allow(unsafe_code)] // the test's outside executes checked system calls on the host

mod calls;
mod elf;
mod marshal;
mod mm;
mod programs;

use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;

use sevlab_arch::{Gpa, Spa};
use sevlab_cpu::{Vcpu, VcpuConfig};
use sevlab_memctl::{CacheMode, CipherKind, Config, Domain, MemCtl};

use super::error::{Errno, Error};
use super::outside::{HostCall, INTERRUPTIBLE, Outside, pager_part};
use super::syscall::marshal::check;
use super::{GuestEnd, Image, ImageConfig, Kernel, Process, TaskEnd, image};
use crate::config::Engine;
use crate::exec::Exec;

/// An outside without a fence: checks calls as a hypervisor does, then executes them.
struct Direct {
    bounce: Vec<u8>,
    stdout: Vec<u8>,
    calls: Vec<HostCall>,
}

impl Direct {
    fn new(len: usize) -> Self {
        Self {
            bounce: vec![0; len],
            stdout: Vec::new(),
            calls: Vec::new(),
        }
    }
}

impl Outside for Direct {
    fn bounce_len(&self) -> usize {
        self.bounce.len() - self.pager_len()
    }
    fn pager_len(&self) -> usize {
        pager_part(self.bounce.len())
    }
    fn bounce_write(&mut self, _: &mut Vcpu, off: usize, data: &[u8]) -> Result<(), Error> {
        self.bounce[off..off + data.len()].copy_from_slice(data);
        Ok(())
    }
    fn bounce_read(&mut self, _: &mut Vcpu, off: usize, out: &mut [u8]) -> Result<(), Error> {
        out.copy_from_slice(&self.bounce[off..off + out.len()]);
        Ok(())
    }
    fn host_call(&mut self, _: &mut Vcpu, call: &HostCall) -> Result<i64, Error> {
        let call = &HostCall {
            nr: call.nr & !INTERRUPTIBLE,
            ..*call
        };
        self.calls.push(*call);
        let host = match check(call, &mut self.bounce) {
            Ok(host) => host,
            Err(e) => return Ok(e.ret()),
        };
        if call.nr == 1 && call.args[0] == 1 {
            let (from, n) = (call.args[1] as usize, call.args[2] as usize);
            self.stdout.extend_from_slice(&self.bounce[from..from + n]);
            return Ok(n as i64);
        }
        // The host would move data to the test's own standard output, where that is a file: sendfile, splice,
        // copy_file_range. Refused as they are for most descriptors, the program writes instead.
        let target = match call.nr {
            libc::SYS_sendfile => Some(call.args[0]),
            libc::SYS_splice | libc::SYS_copy_file_range => Some(call.args[2]),
            _ => None,
        };
        if target == Some(1) {
            return Ok(-i64::from(libc::EINVAL));
        }
        if call.nr == 3 && call.args[0] <= 2 {
            return Ok(0); // the test's own
        }
        let a = host.args;
        // SAFETY: `check` made sure that every pointer among the arguments covers memory of the
        // bounce area, which outlives the call.
        let ret = unsafe { libc::syscall(call.nr, a[0], a[1], a[2], a[3], a[4], a[5]) };
        let ret = if ret < 0 {
            -i64::from(std::io::Error::last_os_error().raw_os_error().unwrap_or(5))
        } else {
            ret
        };
        host.complete(&mut self.bounce);
        Ok(ret)
    }
    fn cpuid(&mut self, _: &mut Vcpu, leaf: u32, _: u32) -> Result<[u32; 4], Error> {
        Ok(match leaf {
            0 => [7, 0x6874_7541, 0x444d_4163, 0x6974_6e65],
            1 => [0x0080_0f12, 0x0001_0800, 0x0098_2203, 0x178b_fbff], // up to SSE4.2, POPCNT
            0x8000_0000 => [0x8000_0008, 0, 0, 0],
            0x8000_0001 => [0x0080_0f12, 0, 0x21, 0x2c10_0800],
            _ => [0; 4],
        })
    }
    fn rdtsc(&mut self, vcpu: &mut Vcpu, _: bool) -> Result<(u64, u32), Error> {
        Ok((vcpu.state.retired, 0))
    }
    fn accept(&mut self, _: &mut Vcpu, _: Gpa, _: u64) -> Result<(), Error> {
        Ok(())
    }
    fn share(&mut self, _: &mut Vcpu, _: Gpa, _: u64, _: bool) -> Result<(), Error> {
        Ok(())
    }
    fn create_vcpu(&mut self, _: &mut Vcpu, _: usize, _: Gpa, _: &[u8]) -> Result<(), Error> {
        Ok(())
    }
    fn nested_fault(&mut self, _: &mut Vcpu, gpa: Gpa, error: u64) -> Result<(), Error> {
        Err(Error::NotMapped { gpa, error })
    }
}

/// What a finished program left.
struct Run {
    end: GuestEnd,
    stdout: String,
    kernel: Kernel,
}

fn interpreted() -> crate::MachineConfig {
    let mut config = crate::MachineConfig::new("/bin/true");
    config.engine = Engine::Interpreter;
    config
}

fn machine(image: &Image, size: u64) -> Box<Vcpu> {
    let mem = MemCtl::new(Config {
        size,
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
        mem.write(Domain::Shared, Spa(gpa.0), &page[..])
            .expect("image page");
    }
    let mut vcpu = Vcpu::new(Arc::clone(&mem), VcpuConfig::default());
    vcpu.state.sys.cr3 = image.cr3;
    vcpu.state.rip = image.rip;
    vcpu.state.gpr[4] = image.rsp;
    vcpu
}

fn run_with(argv: &[&str], envp: &[&str], size: u64, bounce: usize) -> Run {
    let args = argv.iter().map(|a| a.as_bytes().to_vec()).collect();
    let mut config = ImageConfig::new(Path::new(argv[0]), args, Gpa(0x10_0000)..Gpa(size));
    config.envp = envp.iter().map(|e| e.as_bytes().to_vec()).collect();
    let image = image::build(&config).expect("image");
    let mut vcpu = machine(&image, size);
    let process = Process::new(image.kernel);
    let mut out = Direct::new(bounce);
    let mut engine = Exec::new(&interpreted()).expect("engine");
    let end = process
        .run(0, &mut vcpu, &mut out, &mut engine)
        .expect("the machine goes on");
    let TaskEnd::Process(end) = end else {
        panic!("the only thread has left its process");
    };
    Run {
        end,
        stdout: String::from_utf8_lossy(&out.stdout).into_owned(),
        kernel: process.into_kernel(),
    }
}

fn run(argv: &[&str]) -> Run {
    run_with(
        argv,
        &["PATH=/usr/bin:/bin", "LC_ALL=C"],
        256 << 20,
        64 << 10,
    )
}

/// The path of a scratch file that goes away with the returned guard.
fn scratch(name: &str, contents: &[u8]) -> Scratch {
    let path = std::env::temp_dir().join(format!("sevlab-kernel-{}-{name}", std::process::id()));
    std::fs::write(&path, contents).expect("scratch file");
    Scratch(path)
}

struct Scratch(std::path::PathBuf);
impl Scratch {
    fn path(&self) -> &str {
        std::str::from_utf8(self.0.as_os_str().as_bytes()).expect("UTF-8 path")
    }
}
impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}
