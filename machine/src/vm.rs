//! The machine: builds the board, launches the guest, and runs it.

use std::fs::File;
use std::hash::{BuildHasher, Hasher};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use sevlab_arch::rmp::RmpUpdate;
use sevlab_arch::{Asid, Gpa};
use sevlab_cpu::{SevMode, Vcpu, VcpuConfig};
use sevlab_memctl::{HostOptions, MemCtl};
use sevlab_psp::driver::{Driver, LogEntry};
use sevlab_psp::{Config as PspConfig, Entropy, Firmware, kdf};

use crate::config::MachineConfig;
use crate::cpus::{Cpus, Totals};
use crate::error::Error;
use crate::exec::Exec;
#[cfg(test)]
use crate::fence::Fence;
use crate::fence::Regions;
use crate::host::{self, Forwarding, catch_kicks};
use crate::hv::cpuid::{C_BIT, CpuModel};
use crate::hv::{self, Hypervisor};
use crate::kernel::image::{self, ImageConfig};
use crate::kernel::simulated::purpose;
use crate::kernel::syscall::marshal::KERNEL_FDS_END;
use crate::kernel::{GuestEnd, Kernel, Process};
use crate::launch::{Launch, Launched};
use crate::layout::{Layout, MAX_CPUS};
use crate::pids::Pids;
use crate::report::Report;
use crate::simtime::{Random, SimTime};
use crate::simulation::Simulation;
use crate::stats::Stats;
#[cfg(test)]
use crate::world::Half;

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
    /// What has run it: goes with the machine, as whoever leaves that to the process's end has no use for the time it takes.
    ended: Option<Exec>,
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
        let config = config.completed();
        host::raise_descriptor_limit();
        let snp = config.sev == SevMode::Snp;
        let layout = Layout::new(config.memory, config.bounce, snp);
        let dram = sevlab_memctl::Config {
            size: layout.size,
            cipher: config.cipher,
            cache: config.cache,
            resident: config.resident,
            tweak_seed: config.seed.unwrap_or_else(random_u64),
            hierarchy: config.model.clone(),
            cores: MAX_CPUS,
            snp,
        };
        let mut host = HostOptions::default();
        // For translated code, and only if that uses it.
        host.view =
            config.view && matches!(&config.engine, crate::config::Engine::Jit(o) if o.view);
        host.own_fds = KERNEL_FDS_END;
        let mem = MemCtl::with_window(dram, &host, layout.files_len)?;
        for range in layout.sparse() {
            mem.sparse(range);
        }
        let mut psp = PspConfig {
            chip_seed: bytes_of(config.seed.unwrap_or(0), "chip"),
            entropy: entropy(config.seed, "firmware"),
            ..PspConfig::default()
        };
        let mut cpuid = CpuModel::new(config.cpu, config.sev, psp.max_asid, psp.min_sev_asid);
        if let Some(model) = &config.model {
            cpuid.set_tsc_mhz(model.core.clock_mhz);
        }
        let cpuid = Arc::new(cpuid);
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
                ncr3: Some(hv.memory().npt.root()),
                ..VcpuConfig::default()
            },
        );
        if config.in_turns() {
            vcpu.cluster().run_in_turns();
        }
        if let Some(model) = &config.model {
            vcpu.set_model(0, Arc::clone(model))?;
            if let Some(watch) = &config.watch {
                mem.watch_flushes();
                vcpu.set_trace(Some(watch.trace(&mem)));
            }
            let seed = config.seed.unwrap_or(MachineConfig::SEED);
            vcpu.random = Some(Random::new(seed, purpose::VCPU).number());
        }
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
            exec: Exec::new(&config)?,
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
            ended: None,
        })
    }

    /// Runs the guest to its end. In a clone of the host process (a guest's fork) this does not return: the
    /// process ends as the guest does.
    ///
    /// # Errors
    /// The machine can't go on, or has run already. What a guest does to itself is no error.
    pub fn run(&mut self) -> Result<RunOutcome, Error> {
        let Guest {
            mut kernel,
            exec,
            regions,
        } = self.guest.take().ok_or(Error::Used)?;
        kernel.in_turns = self.config.in_turns();
        if let Some(model) = &self.config.model {
            let seed = self.config.seed.unwrap_or(MachineConfig::SEED);
            let pids = Pids::new(seed).map(Arc::new);
            let time = SimTime::new(model, seed).limited(self.config.instructions);
            kernel.simulate(Arc::new(time), pids);
            self.hv.memory().take_updates(); // the launch's
        }
        if kernel.in_turns {
            self.vcpu.state.budget = sevlab_cpu::smp::TURN;
        }
        let process = Arc::new(Process::new(*kernel));
        let regions = Arc::new(Mutex::new(regions));
        let board = Arc::new(Cpus::new(
            self.config.clone(),
            Arc::clone(&self.mem),
            self.asid,
            self.hv.shared_memory(),
            Arc::clone(&self.hv.cpuid),
            Arc::clone(&process),
            Arc::clone(&regions),
        ));
        let forwarding = if self.config.host_signals {
            Forwarding::install(&process)
        } else {
            None
        };
        catch_kicks();
        self.hv.board = Some(Arc::<Cpus>::clone(&board));
        let start = Instant::now();
        let result = board.run(0, &mut self.vcpu, &mut self.hv, exec, None);
        // The others go on without this one, or end because of it.
        let result = board.join(0, result);
        let elapsed = start.elapsed();
        self.hv.board = None;
        drop(forwarding);
        let exit = result?;
        let mut stats = self.stats(&process.kernel(), &board.totals(), elapsed);
        stats.children = board.children();
        self.ended = board.ended();
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

    /// [`Machine::world_by`] with the hypervisor itself.
    #[cfg(test)]
    fn world<R: 'static>(
        &mut self,
        regions: Regions,
        guest: impl FnOnce(&mut Vcpu, &mut Fence<'_>) -> R + 'static,
    ) -> Result<R, Error> {
        self.world_by(regions, guest, &mut Hypervisor::handle)
    }

    /// The loop of world switches of the first vCPU, with a guest half of the caller's and `answer` in the
    /// hypervisor's place: for tests of what both halves must withstand.
    #[cfg(test)]
    fn world_by<R: 'static>(
        &mut self,
        regions: Regions,
        guest: impl FnOnce(&mut Vcpu, &mut Fence<'_>) -> R + 'static,
        answer: &mut dyn FnMut(&mut Hypervisor, &mut Vcpu) -> Result<(), Error>,
    ) -> Result<R, Error> {
        let half = Half {
            mode: self.config.sev,
            asid: self.asid,
            port: self.layout.port(0),
            regions: Arc::new(Mutex::new(regions)),
        };
        crate::world::world(half, &mut self.vcpu, &mut self.hv, guest, answer)
    }

    fn stats(&self, kernel: &Kernel, totals: &Totals, elapsed: Duration) -> Stats {
        let k = kernel.stats();
        Stats {
            elapsed,
            instructions: totals.instructions,
            translated: totals.translated,
            vcpu: totals.vcpu,
            memory: self.mem.stats(),
            exits: totals.exits.clone(),
            syscalls: k.syscalls,
            host_calls: totals.host_calls,
            children: crate::family::Children::default(),
            simulation: self.simulation(totals),
            unknown: k.unknown.clone(),
            refused: k.refused.clone(),
            measurement: self.launched.measurement.clone(),
        }
    }

    fn simulation(&self, totals: &Totals) -> Option<Simulation> {
        let model = self.config.model.as_ref()?;
        let launch_pages = if self.config.sev.encrypted() {
            self.launched.pages
        } else {
            0
        };
        Some(Simulation {
            model: Arc::clone(model),
            cycles: totals.cycles,
            instructions: totals.instructions,
            threads: totals.threads,
            core: totals.core.clone(),
            memory: self.mem.hier_totals(),
            launch_pages,
        })
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
        window: layout.file_window(),
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
