#![allow(unsafe_code)] // the vCPU is lent between the coroutine and the hypervisor
//! The machine: builds the board, launches the guest, and runs it by world switches.
//!
//! The guest half runs in a coroutine on a stack of its own. VMRUN is [`svm::enter`], a resume of the
//! coroutine until it yields an exit, and [`svm::leave`]; then the hypervisor half answers. The vCPU is
//! the one thing both halves hold, and never at the same time: it goes along with the control flow.

use std::fs::File;
use std::hash::{BuildHasher, Hasher};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::ptr::NonNull;
use std::sync::Arc;
use std::time::{Duration, Instant};

use corosensei::stack::DefaultStack;
use corosensei::{Coroutine, CoroutineResult};
use sevlab_arch::exit::ExitCode;
use sevlab_arch::rmp::RmpUpdate;
use sevlab_arch::{Asid, Gpa};
use sevlab_cpu::svm::{self, VmExit};
use sevlab_cpu::{SevMode, Vcpu, VcpuConfig};
use sevlab_memctl::MemCtl;
use sevlab_psp::driver::{Driver, LogEntry};
use sevlab_psp::{Config as PspConfig, Entropy, Firmware, kdf};

use crate::config::{CacheMode, MachineConfig};
use crate::error::Error;
use crate::exec::Exec;
use crate::fence::{Fence, GuestExit, Regions};
use crate::host::{self, Forwarding};
use crate::hv::cpuid::{C_BIT, CpuModel};
use crate::hv::{self, Hypervisor};
use crate::kernel::image::{self, ImageConfig};
use crate::kernel::{GuestEnd, Kernel};
use crate::launch::{Launch, Launched};
use crate::layout::Layout;
use crate::report::Report;
use crate::stats::{Stats, Translated};

/// The guest half's stack: the guest kernel, the engines and their helpers run on it.
const STACK: usize = 16 << 20;
/// ASID of a guest whose state is encrypted, or that is not encrypted at all.
const ES_ASID: Asid = Asid(1);

/// A guest that is ready to run.
struct Guest {
    kernel: Box<Kernel>,
    exec: Exec,
    regions: Regions,
}

/// A board with one process guest.
pub struct Machine {
    config: MachineConfig,
    layout: Layout,
    mem: Arc<MemCtl>,
    driver: Driver,
    hv: Hypervisor,
    vcpu: Box<Vcpu>,
    asid: Asid,
    launched: Launched,
    guest: Option<Guest>,
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq)]
pub struct RunOutcome {
    /// How the guest ended.
    pub exit: GuestEnd,
    /// What was counted.
    pub stats: Stats,
}

impl Machine {
    /// Builds a machine and launches its guest; nothing of the guest runs yet.
    ///
    /// # Errors
    /// The program can't be loaded, memory can't be had, or the secure processor refuses.
    pub fn new(config: MachineConfig) -> Result<Self, Error> {
        host::raise_descriptor_limit();
        let snp = config.sev == SevMode::Snp;
        let layout = Layout::new(config.memory, config.bounce, snp);
        let mem = MemCtl::new(sevlab_memctl::Config {
            size: layout.size,
            cipher: config.cipher,
            cache: config.cache,
            resident: config.resident,
            tweak_seed: config.seed.unwrap_or_else(random_u64),
            snp,
        })?;
        let mut psp = PspConfig {
            chip_seed: bytes_of(config.seed.unwrap_or(0), "chip"),
            entropy: entropy(config.seed, "firmware"),
            ..PspConfig::default()
        };
        let cpuid = Arc::new(CpuModel::new(
            config.cpu,
            config.sev,
            psp.max_asid,
            psp.min_sev_asid,
        ));
        let policy = Arc::clone(&cpuid);
        psp.cpuid = Some(Arc::new(move |leaf| policy.leaf(leaf.leaf, leaf.subleaf)));
        let asid = match config.sev {
            SevMode::Sev => Asid(psp.min_sev_asid),
            _ => ES_ASID,
        };
        let firmware = Arc::new(Firmware::new(Arc::clone(&mem), psp));
        let driver = Driver::new(firmware, Arc::clone(&mem), layout.commands());
        let mut hv = Hypervisor::new(
            Arc::clone(&mem),
            layout.clone(),
            config.sev,
            asid,
            Arc::clone(&cpuid),
        )?;
        let mut vcpu = Vcpu::new(
            Arc::clone(&mem),
            VcpuConfig {
                asid,
                mode: config.sev,
                c_bit: C_BIT,
                ncr3: Some(hv.npt.root()),
                ..VcpuConfig::default()
            },
        );
        vcpu.profile = cpuid.profile();
        vcpu.state.sys.xcr0 = cpuid.xcr0();
        let image = image::build(&image_config(&config, &layout, &cpuid))?;
        let launched = Launch {
            config: &config,
            mem: &mem,
            driver: &driver,
            layout: &layout,
            hv: &mut hv,
            cpuid: &cpuid,
            asid,
            entropy: entropy(config.seed, "owner"),
        }
        .run(&image, &mut vcpu)?;
        let pages = image.pages.iter().map(|(gpa, _)| *gpa);
        let extra = [layout.secrets_page(), layout.cpuid_page()];
        let regions = Regions::new(&layout, pages.chain(extra));
        let guest = Guest {
            exec: Exec::new(
                &config.engine,
                config.cache == CacheMode::None && config.sev.encrypted(),
            )?,
            kernel: Box::new(image.kernel),
            regions,
        };
        Ok(Self {
            config,
            layout,
            mem,
            driver,
            hv,
            vcpu,
            asid,
            launched,
            guest: Some(guest),
        })
    }

    /// Runs the guest to its end.
    ///
    /// # Errors
    /// The machine can't go on, or has run already. What a guest does to itself is no error.
    pub fn run(&mut self) -> Result<RunOutcome, Error> {
        let Guest {
            mut kernel,
            exec,
            regions,
        } = self.guest.take().ok_or(Error::Used)?;
        let forwarding = if self.config.host_signals {
            Forwarding::install(&mut kernel, &self.vcpu.state.exit_request)
        } else {
            None
        };
        self.hv.calls.interrupted_by(kernel.notifier());
        let start = Instant::now();
        let (end, kernel, exec) = self.world(regions, move |vcpu, fence| {
            let (mut kernel, mut exec) = (kernel, exec);
            let end = fence
                .boot(vcpu)
                .and_then(|()| kernel.run(vcpu, fence, &mut |vcpu| exec.run(vcpu)));
            (end, kernel, exec)
        })?;
        let elapsed = start.elapsed();
        drop(forwarding);
        let exit = end?;
        let stats = self.stats(&kernel, &exec, elapsed);
        self.retire()?;
        Ok(RunOutcome { exit, stats })
    }

    /// Gives the guest up: what is left of its plaintext is encrypted, then its key is wiped.
    fn retire(&mut self) -> Result<(), Error> {
        if !self.config.keep_dram {
            self.mem.discard(self.asid);
        }
        self.launched.retire(&self.driver)?;
        if self.config.sev == SevMode::Snp {
            // The context page is the hypervisor's again.
            let page = self.layout.context();
            self.driver.snp_page_reclaim(page)?;
            let free = RmpUpdate::default();
            let status = self.mem.rmp().rmpupdate(page, &free);
            hv::rmp_result("RMPUPDATE", Gpa(page.0), status)?;
        }
        Ok(())
    }

    /// The loop of world switches: `guest` is what the guest half does, from its first instruction to
    /// its last.
    fn world<R: 'static>(
        &mut self,
        regions: Regions,
        guest: impl FnOnce(&mut Vcpu, &mut Fence<'_>) -> R + 'static,
    ) -> Result<R, Error> {
        self.world_by(regions, guest, &mut Hypervisor::handle)
    }

    /// [`Machine::world`] with `answer` in the hypervisor's place.
    fn world_by<R: 'static>(
        &mut self,
        regions: Regions,
        guest: impl FnOnce(&mut Vcpu, &mut Fence<'_>) -> R + 'static,
        answer: &mut dyn FnMut(&mut Hypervisor, &mut Vcpu) -> Result<(), Error>,
    ) -> Result<R, Error> {
        let vmcb = self.layout.vmcb();
        let mut vcpu = NonNull::from(&mut *self.vcpu);
        let (mode, asid, layout) = (self.config.sev, self.asid, self.layout.clone());
        let stack = DefaultStack::new(STACK).map_err(|source| Error::Host {
            what: "stack of the guest half",
            source,
        })?;
        let mut borrowed = vcpu;
        // Boxed: a coroutine has little room for what it starts with.
        let start = Box::new((guest, layout, regions));
        let mut guest = Coroutine::with_stack(stack, move |yielder, ()| -> Box<R> {
            let (guest, layout, regions) = *start;
            // SAFETY: `self.vcpu` outlives the coroutine. This half uses the reference only between a
            // resume and the next yield (which lends it on, see `GuestExit`), the other half only
            // outside of that.
            let vcpu = unsafe { borrowed.as_mut() };
            let mut fence = Fence::new(yielder, mode, asid, &layout, regions);
            Box::new(guest(vcpu, &mut fence))
        });
        loop {
            // SAFETY: the coroutine is suspended (or has not begun), and `vcpu` is the pointer that it
            // lent last.
            svm::enter(unsafe { vcpu.as_mut() }, vmcb)?;
            self.hv.entered()?;
            match guest.resume(()) {
                CoroutineResult::Yield(GuestExit { vcpu: lent, exit }) => {
                    vcpu = lent;
                    // SAFETY: as above: the coroutine is suspended in the yield that lent it.
                    let v = unsafe { vcpu.as_mut() };
                    svm::leave(v, vmcb, &exit)?;
                    answer(&mut self.hv, v)?;
                }
                CoroutineResult::Return(result) => {
                    // The guest is done for good: it halts.
                    let halt = VmExit {
                        code: ExitCode::HLT.0,
                        ..VmExit::default()
                    };
                    svm::leave(&mut self.vcpu, vmcb, &halt)?;
                    self.hv.count(ExitCode::HLT);
                    return Ok(*result);
                }
            }
        }
    }

    fn stats(&self, kernel: &Kernel, exec: &Exec, elapsed: Duration) -> Stats {
        let k = kernel.stats();
        let instructions = self.vcpu.state.retired;
        Stats {
            elapsed,
            instructions,
            translated: exec.jit_stats().map(|j| Translated {
                instructions: instructions.saturating_sub(j.interpreted),
                regions: j.regions,
                compile_time: j.compile_time,
                code_bytes: j.host_bytes,
            }),
            vcpu: self.vcpu.counters,
            memory: self.mem.stats(),
            exits: self.hv.exits.clone(),
            syscalls: k.syscalls,
            host_calls: self.hv.calls.executed,
            unknown: k.unknown.clone(),
            refused: k.refused.clone(),
            measurement: self.launched.measurement.clone(),
        }
    }

    /// The configuration.
    #[must_use]
    pub fn config(&self) -> &MachineConfig {
        &self.config
    }

    /// The memory map.
    #[must_use]
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The memory controller: what a probe on the bus can reach.
    #[must_use]
    pub fn mem(&self) -> &Arc<MemCtl> {
        &self.mem
    }

    /// What the launch left behind.
    #[must_use]
    pub fn launched(&self) -> &Launched {
        &self.launched
    }

    /// The commands that the secure processor has been given.
    #[must_use]
    pub fn launch_log(&self) -> Vec<LogEntry> {
        self.driver.log()
    }

    /// The run as data.
    #[must_use]
    pub fn report(&self, outcome: &RunOutcome) -> Report {
        let end = match outcome.exit {
            GuestEnd::Exited(status) => format!("exited with status {status}"),
            GuestEnd::Killed(signo) => format!("killed by signal {signo}"),
        };
        let log = self.launch_log();
        let stats = &outcome.stats;
        Report::new(&self.config, &self.launched, &log, stats, Some(end))
    }

    /// Writes DRAM to a file, as a probe on the bus would read it; holes stay holes.
    ///
    /// # Errors
    /// The file can't be written.
    pub fn dump_dram(&self, path: &Path) -> Result<(), Error> {
        let failed = |source| Error::Host {
            what: "dump of DRAM",
            source,
        };
        self.mem.write_back_all()?;
        let mut file = File::create(path).map_err(failed)?;
        self.mem.dump(&mut file).map_err(failed)
    }

    /// Where the guest keeps a guest-physical address, for tools that look at DRAM.
    #[must_use]
    pub fn spa(&self, gpa: Gpa) -> Option<sevlab_arch::Spa> {
        self.layout.spa(gpa)
    }
}

fn image_config(config: &MachineConfig, layout: &Layout, cpuid: &CpuModel) -> ImageConfig {
    let bytes = |list: &[std::ffi::OsString]| -> Vec<Vec<u8>> {
        list.iter().map(|s| s.as_bytes().to_vec()).collect()
    };
    let random = match config.seed {
        Some(seed) => u128::from_le_bytes(first16(&bytes_of(seed, "at-random"))),
        None => u128::from(random_u64()) << 64 | u128::from(random_u64()),
    };
    ImageConfig {
        envp: bytes(&config.envp),
        c_bit: config.sev.encrypted().then_some(C_BIT),
        random: random.to_le_bytes(),
        hwcap: cpuid.leaf(1, 0)[3],
        ..ImageConfig::new(&config.program, bytes(&config.argv), layout.kernel_memory())
    }
}

/// Bytes that a seed determines, for one purpose.
fn bytes_of(seed: u64, purpose: &str) -> [u8; 32] {
    let mut out = [0; 32];
    out.copy_from_slice(&kdf(&seed.to_le_bytes(), purpose, b"machine", 32));
    out
}

fn first16(bytes: &[u8; 32]) -> [u8; 16] {
    let mut out = [0; 16];
    out.copy_from_slice(&bytes[..16]);
    out
}

fn entropy(seed: Option<u64>, purpose: &str) -> Entropy {
    match seed {
        Some(seed) => Entropy::Seeded(bytes_of(seed, purpose)),
        None => Entropy::Os,
    }
}

/// A number that differs from run to run. Not for keys: those are the secure processor's.
fn random_u64() -> u64 {
    std::collections::hash_map::RandomState::new()
        .build_hasher()
        .finish()
}

#[cfg(test)]
mod tests;
