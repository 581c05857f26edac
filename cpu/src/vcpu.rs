//! One virtual CPU: its state, the memory it is attached to, and guest linear memory access.
//!
//! The fast paths here do what translated code does inline: probe the fast TLB, then touch host
//! memory. Everything else (walks, faults, residency, code tracking) is in [`crate::mmu`] and
//! [`crate::code`]. What drives a vCPU (interpreter, translator, world switch) is elsewhere.
#![allow(unsafe_code)] // raw host accesses through addends that the memory controller made

use core::ptr::NonNull;
use core::sync::atomic::Ordering;
use std::sync::Arc;

use sevlab_arch::vmcb::EventInjection;
use sevlab_arch::{Asid, PAGE_SIZE, Spa, Va};
use sevlab_memctl::{FastTlb, MemCtl, TlbEntry};

use crate::code::CodeMap;
use crate::mmu::{Access, Paging};
use crate::model::Decoded;
use crate::smp::{Cluster, Seat};
use crate::state::CpuState;
use crate::stop::{Exception, Stop};
use crate::svm::World;

/// Which SEV technology protects the guest.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub enum SevMode {
    /// None: all memory is shared, the C-bit position is ignored.
    #[default]
    Off,
    /// SEV: encrypted memory.
    Sev,
    /// SEV-ES: encrypted memory and register state.
    Es,
    /// SEV-SNP: as ES, and the RMP is enforced.
    Snp,
}

impl SevMode {
    /// Whether guest memory is encrypted.
    #[must_use]
    pub const fn encrypted(self) -> bool {
        !matches!(self, SevMode::Off)
    }
    /// Whether register state is encrypted across exits.
    #[must_use]
    pub const fn encrypted_state(self) -> bool {
        matches!(self, SevMode::Es | SevMode::Snp)
    }
}

/// What a vCPU is made with. A world switch ([`crate::svm::enter`]) may change all but `c_bit` and
/// `phys_bits`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct VcpuConfig {
    /// The guest's ASID.
    pub asid: Asid,
    /// Its protection.
    pub mode: SevMode,
    /// Position of the C-bit in page-table entries and CR3.
    pub c_bit: u32,
    /// Guest physical address width in bits (at most 48); higher bits are reserved.
    pub phys_bits: u32,
    /// The VMPL the vCPU runs at (SNP).
    pub vmpl: u8,
    /// Root of the nested page tables; `None`: guest physical addresses are system physical.
    pub ncr3: Option<Spa>,
}

impl Default for VcpuConfig {
    fn default() -> Self {
        Self {
            asid: Asid(1),
            mode: SevMode::Off,
            c_bit: 51,
            phys_bits: 48,
            vmpl: 0,
            ncr3: None,
        }
    }
}

/// What a vCPU counts beside retired instructions.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counters {
    /// Fast-TLB fills (a miss that a translation resolved).
    pub tlb_fills: u64,
    /// Guest page walks that began at CR3.
    pub full_walks: u64,
    /// Guest page walks that began at a cached upper level.
    pub short_walks: u64,
    /// Nested page walks that began at nCR3.
    pub nested_walks: u64,
    /// Accesses that memory without a host pointer served (cache mode `none`).
    pub uncached: u64,
    /// Fast-TLB flushes.
    pub tlb_flushes: u64,
    /// VA pages whose decoded code was dropped.
    pub code_drops: u64,
    /// World switches into the guest.
    pub entries: u64,
}

impl Counters {
    /// Adds another vCPU's.
    pub fn add(&mut self, o: &Self) {
        self.tlb_fills += o.tlb_fills;
        self.full_walks += o.full_walks;
        self.short_walks += o.short_walks;
        self.nested_walks += o.nested_walks;
        self.uncached += o.uncached;
        self.tlb_flushes += o.tlb_flushes;
        self.code_drops += o.code_drops;
        self.entries += o.entries;
    }
}

/// One virtual CPU. `state` is the first field, so a pointer to it is a pointer to the vCPU.
#[repr(C)]
pub struct Vcpu {
    /// Architectural state; translated code addresses it through the pinned register.
    pub state: CpuState,
    /// The fast TLB that `state.tlb` points into.
    pub tlb: Arc<FastTlb>,
    /// The memory controller.
    pub mem: Arc<MemCtl>,
    /// The guest's ASID.
    pub asid: Asid,
    /// Its protection.
    pub mode: SevMode,
    /// The VMPL it runs at.
    pub vmpl: u8,
    /// The instructions that its processor has. To be set before anything is decoded.
    pub profile: crate::profile::Profile,
    /// Where RDRAND and RDSEED get their numbers: a seed that every number changes. `None`: from the host.
    pub random: Option<u64>,
    /// Root of the nested page tables, if nested paging is on.
    pub ncr3: Option<Spa>,
    /// Event counts.
    pub counters: Counters,
    /// VA pages whose translations are void. The translator drains it.
    pub dropped_code: Vec<u64>,
    /// VA pages whose decoded blocks are void. The interpreter drains it.
    pub dropped_blocks: Vec<u64>,
    /// Grows whenever either list above grows: what a running block compares after a store.
    pub code_epoch: u64,
    /// The event that the hypervisor injected with this entry, for the guest half to deliver.
    pub pending_event: EventInjection,
    /// The interpreter's decoded blocks and thunks.
    pub interp: crate::interp::Cache,
    /// The core of a simulated machine that this is.
    pub model: Option<Box<crate::model::CoreModel>>,
    /// The guest's own code is running: its accesses go through the model. Whoever runs it sets and clears this.
    pub modelled: bool,
    /// Accesses may take the short way ([`crate::model::short`]), where there is one.
    pub short_ways: bool,
    /// How far the state's words are behind, while a helper of translated code runs.
    pub lag: crate::model::At,
    pub(crate) trace: Option<crate::model::trace::Trace>,
    pub(crate) paging: Paging,
    pub(crate) code: CodeMap,
    pub(crate) cluster: Arc<Cluster>,
    pub(crate) seat: Arc<Seat>,
    /// Pages written, while that is recorded.
    pub(crate) writes: Option<Vec<u64>>,
    pub(crate) world: Option<Box<World>>,
    /// The guest's context is an SNP one: what [`VcpuConfig::mode`] said.
    pub(crate) config_snp: bool,
}

// SAFETY: the fields that are not `Send` are `state.tlb`, `state.lines` and `state.fetches`, which point into the fast TLB and
// the filters that this structure keeps alive; that memory is atomics and may be used from any thread.
unsafe impl Send for Vcpu {}

impl Vcpu {
    /// The first vCPU of a machine, in [`CpuState::process`] state, attached to `mem`.
    #[must_use]
    pub fn new(mem: Arc<MemCtl>, config: VcpuConfig) -> Box<Self> {
        let cluster = Cluster::new(mem.span() / PAGE_SIZE);
        Self::in_cluster(mem, cluster, config)
    }

    /// One more vCPU of the machine that `cluster` belongs to.
    #[must_use]
    pub fn in_cluster(mem: Arc<MemCtl>, cluster: Arc<Cluster>, config: VcpuConfig) -> Box<Self> {
        let tlb = Arc::new(FastTlb::new());
        mem.attach_tlb(Arc::clone(&tlb));
        let mut state = *CpuState::process();
        state.tlb = tlb.base_ptr();
        let seat = cluster.join();
        let vcpu = Box::new(Self {
            state,
            tlb,
            mem,
            asid: config.asid,
            mode: config.mode,
            vmpl: config.vmpl,
            profile: crate::profile::Profile::ALL,
            random: None,
            ncr3: config.ncr3,
            counters: Counters::default(),
            dropped_code: Vec::new(),
            dropped_blocks: Vec::new(),
            code_epoch: 0,
            interp: crate::interp::Cache::default(),
            model: None,
            modelled: false,
            lag: crate::model::At::default(),
            trace: None,
            paging: Paging::new(config.c_bit, config.phys_bits),
            code: CodeMap::default(),
            cluster,
            seat,
            writes: None,
            short_ways: true,
            world: None,
            config_snp: config.mode == SevMode::Snp,
            pending_event: EventInjection::default(),
        });
        vcpu.sit_down();
        vcpu
    }

    /// The mask of the C-bit in page-table entries.
    #[must_use]
    pub fn c_bit_mask(&self) -> u64 {
        self.paging.c_mask
    }

    #[inline(always)]
    fn entry(&self, va: u64) -> &TlbEntry {
        let index = (va >> 12) as usize & (FastTlb::ENTRIES - 1);
        // SAFETY: `state.tlb` is the base of `ENTRIES` entries that `self.tlb` keeps alive, and the
        // index is masked to that number.
        unsafe { &*self.state.tlb.add(index) }
    }

    /// Host address of `[va, va + size)` if the fast TLB has it for reading. `size` is 1 to 4096.
    #[inline(always)]
    #[must_use]
    pub fn probe_read(&self, va: u64, size: u64) -> Option<NonNull<u8>> {
        let e = self.entry(va);
        let tag = va.wrapping_add(size - 1) & !0xfff;
        if e.read.load(Ordering::Relaxed) == tag {
            NonNull::new(va.wrapping_add(e.addend.load(Ordering::Relaxed)) as *mut u8)
        } else {
            None
        }
    }

    /// As [`Vcpu::probe_read`], for writing: the frame holds no decoded code.
    #[inline(always)]
    #[must_use]
    pub fn probe_write_tag(&self, va: u64, size: u64) -> Option<NonNull<u8>> {
        let e = self.entry(va);
        let tag = va.wrapping_add(size - 1) & !0xfff;
        if e.write.load(Ordering::Relaxed) == tag {
            NonNull::new(va.wrapping_add(e.addend.load(Ordering::Relaxed)) as *mut u8)
        } else {
            None
        }
    }

    /// As [`Vcpu::probe_read`], for instruction fetch.
    #[inline(always)]
    #[must_use]
    pub fn probe_exec(&self, va: u64, size: u64) -> Option<NonNull<u8>> {
        let e = self.entry(va);
        let tag = va.wrapping_add(size - 1) & !0xfff;
        if e.exec.load(Ordering::Relaxed) == tag {
            NonNull::new(va.wrapping_add(e.addend.load(Ordering::Relaxed)) as *mut u8)
        } else {
            None
        }
    }

    /// Reads guest linear memory, any length, crossing pages. After an error `out` is unspecified.
    #[inline]
    pub fn read(&mut self, va: u64, out: &mut [u8]) -> Result<(), Stop> {
        if self.modelled {
            if let Some(host) = self.line_hit(va, out.len() as u64, Access::Read) {
                // SAFETY: the filter has the line for reading, and all bytes are of it.
                unsafe {
                    core::ptr::copy_nonoverlapping(host.as_ptr(), out.as_mut_ptr(), out.len())
                };
                return Ok(());
            }
            return self.read_slow(va, out);
        }
        if (1..=PAGE_SIZE as usize).contains(&out.len())
            && let Some(host) = self.probe_read(va, out.len() as u64)
        {
            // SAFETY: the tag matched for the whole range, so `out.len()` bytes at `host` are mapped
            // guest memory; `out` is a Rust slice and does not overlap it.
            unsafe { core::ptr::copy_nonoverlapping(host.as_ptr(), out.as_mut_ptr(), out.len()) };
            return Ok(());
        }
        self.read_slow(va, out)
    }

    #[cold]
    #[inline(never)]
    fn read_slow(&mut self, va: u64, out: &mut [u8]) -> Result<(), Stop> {
        if self.modelled {
            return self.read_lines(va, out);
        }
        self.read_as(va, out, Access::Read)
    }

    /// #GP(0) for a range that begins in the lower half of the address space and ends outside it, which is known before
    /// any page of it is looked at. What begins outside is found by its translation.
    pub(crate) fn check_end(va: u64, len: u64) -> Result<(), Stop> {
        const END: u64 = 1 << 47;
        if va < END && len > END - va {
            return Err(Exception::GENERAL_PROTECTION.into());
        }
        Ok(())
    }

    fn read_as(&mut self, va: u64, out: &mut [u8], access: Access) -> Result<(), Stop> {
        if access != Access::Exec {
            Self::check_end(va, out.len() as u64)?;
        }
        let mut done = 0;
        while done < out.len() {
            let at = va.wrapping_add(done as u64);
            let n = (PAGE_SIZE - (at & (PAGE_SIZE - 1))).min((out.len() - done) as u64) as usize;
            let part = &mut out[done..done + n];
            match self.resolve(Va(at), access)? {
                // SAFETY: `host` is the host address of `at`, and `n` stays in its page.
                (_, Some(host)) => unsafe {
                    core::ptr::copy_nonoverlapping(host.as_ptr(), part.as_mut_ptr(), n);
                },
                (t, None) => {
                    self.counters.uncached += 1;
                    self.mem.read(t.domain, t.spa, part).map_err(Stop::Host)?;
                }
            }
            done += n;
        }
        Ok(())
    }

    /// Writes guest linear memory, any length. Up to 4096 bytes either all are written or none; a
    /// longer write that faults has written the pages before the faulting one. Decoded code in the
    /// written frames is dropped first.
    #[inline]
    pub fn write(&mut self, va: u64, data: &[u8]) -> Result<(), Stop> {
        if self.modelled {
            if let Some(host) = self.line_hit(va, data.len() as u64, Access::Write) {
                // SAFETY: the filter has the line for writing, and all bytes are of it; no Rust reference covers guest memory.
                unsafe { core::ptr::copy_nonoverlapping(data.as_ptr(), host.as_ptr(), data.len()) };
                return Ok(());
            }
            return self.write_slow(va, data);
        }
        if (1..=PAGE_SIZE as usize).contains(&data.len())
            && let Some(host) = self.probe_write_tag(va, data.len() as u64)
        {
            // SAFETY: the tag matched for the whole range, so `data.len()` bytes at `host` are
            // mapped writable guest memory that no Rust reference covers.
            unsafe { core::ptr::copy_nonoverlapping(data.as_ptr(), host.as_ptr(), data.len()) };
            return Ok(());
        }
        self.write_slow(va, data)
    }

    #[cold]
    #[inline(never)]
    fn write_slow(&mut self, va: u64, data: &[u8]) -> Result<(), Stop> {
        if self.modelled {
            return self.write_lines(va, data);
        }
        Self::check_end(va, data.len() as u64)?;
        let first = PAGE_SIZE - (va & (PAGE_SIZE - 1));
        if data.len() as u64 > first && data.len() as u64 <= PAGE_SIZE {
            self.translate(Va(va), Access::Write)?;
            self.translate(Va(va.wrapping_add(first)), Access::Write)?;
        }
        let mut done = 0;
        while done < data.len() {
            let at = va.wrapping_add(done as u64);
            let n = (PAGE_SIZE - (at & (PAGE_SIZE - 1))).min((data.len() - done) as u64) as usize;
            let part = &data[done..done + n];
            match self.resolve(Va(at), Access::Write)? {
                // SAFETY: `host` is the writable host address of `at`, and `n` stays in its page;
                // no Rust reference covers guest memory.
                (_, Some(host)) => unsafe {
                    core::ptr::copy_nonoverlapping(part.as_ptr(), host.as_ptr(), n);
                },
                (t, None) => {
                    self.counters.uncached += 1;
                    self.mem.write(t.domain, t.spa, part).map_err(Stop::Host)?;
                }
            }
            done += n;
        }
        Ok(())
    }

    /// Checks that `[va, va + len)` can be written, with all side effects of a write's translation
    /// (A and D bits) but without writing, and without dropping code.
    #[inline]
    pub fn probe_write(&mut self, va: u64, len: u64) -> Result<(), Stop> {
        if len == 0 || (len <= PAGE_SIZE && self.probe_write_tag(va, len).is_some()) {
            return Ok(());
        }
        if self.modelled {
            return self.probe_lines(va, len, Access::Write);
        }
        Self::check_end(va, len)?;
        let last = va.wrapping_add(len - 1) & !(PAGE_SIZE - 1);
        let mut at = va;
        loop {
            self.translate(Va(at), Access::Write)?;
            if at & !(PAGE_SIZE - 1) == last {
                return Ok(());
            }
            at = (at & !(PAGE_SIZE - 1)).wrapping_add(PAGE_SIZE);
        }
    }

    /// As [`Vcpu::probe_write`], for reading.
    pub fn probe_read_range(&mut self, va: u64, len: u64) -> Result<(), Stop> {
        if len == 0 || (len <= PAGE_SIZE && self.probe_read(va, len).is_some()) {
            return Ok(());
        }
        if self.modelled {
            return self.probe_lines(va, len, Access::Read);
        }
        Self::check_end(va, len)?;
        let last = va.wrapping_add(len - 1) & !(PAGE_SIZE - 1);
        let mut at = va;
        loop {
            self.translate(Va(at), Access::Read)?;
            if at & !(PAGE_SIZE - 1) == last {
                return Ok(());
            }
            at = (at & !(PAGE_SIZE - 1)).wrapping_add(PAGE_SIZE);
        }
    }

    /// Writable host address of `[va, va + size)` for an atomic operation; decoded code in the frame
    /// is dropped. `None`: the range crosses a page or has no host address, use `read` and `write`.
    #[inline]
    pub fn host_for_write(&mut self, va: u64, size: u64) -> Result<Option<NonNull<u8>>, Stop> {
        if let Some(host) = self.probe_write_tag(va, size) {
            return Ok(Some(host));
        }
        if self.modelled {
            if va & 63 > 64 - size {
                self.probe_lines(va, size, Access::Write)?;
                return Ok(None);
            }
            return self
                .line_host(va, size, Access::Write, Decoded::Goes)
                .map(Some);
        }
        if va & (PAGE_SIZE - 1) > PAGE_SIZE - size {
            self.probe_write(va, size)?;
            return Ok(None);
        }
        self.fill(Va(va), Access::Write)
    }

    /// Fetches instruction bytes at `va`. Returns how many of `out`'s bytes are there: all, or those
    /// up to a page boundary behind which fetching faults. A fault on `va`'s own page is an error.
    pub fn fetch(&mut self, va: u64, out: &mut [u8]) -> Result<usize, Stop> {
        if (1..=PAGE_SIZE as usize).contains(&out.len())
            && let Some(host) = self.probe_exec(va, out.len() as u64)
        {
            // SAFETY: the tag matched for the whole range: these are mapped guest bytes.
            unsafe { core::ptr::copy_nonoverlapping(host.as_ptr(), out.as_mut_ptr(), out.len()) };
            return Ok(out.len());
        }
        let first = (PAGE_SIZE - (va & (PAGE_SIZE - 1))).min(out.len() as u64) as usize;
        let (head, tail) = out.split_at_mut(first);
        self.read_as(va, head, Access::Exec)?;
        if tail.is_empty() {
            return Ok(first);
        }
        match self.read_as(va.wrapping_add(first as u64), tail, Access::Exec) {
            Ok(()) => Ok(out.len()),
            Err(Stop::Host(e)) => Err(Stop::Host(e)),
            Err(_) => Ok(first),
        }
    }

    /// Sets the privilege level. The fast TLB's tags hold for one side of the user/supervisor line
    /// only, so crossing it flushes.
    pub fn set_cpl(&mut self, cpl: u8) {
        if (self.state.cpl == 3) != (cpl == 3) {
            self.mem.close_view(Va(0), Va(u64::MAX));
            self.tlb.flush();
            self.counters.tlb_flushes += 1;
            if let Some(m) = &self.model {
                m.distrust_filters();
            }
        }
        self.state.cpl = cpl;
    }

    /// Turns the #GP(0) of a non-canonical address into the #SS(0) that a stack access raises.
    #[must_use]
    pub fn as_stack_access(stop: Stop) -> Stop {
        match stop {
            Stop::Exception(e) if e == Exception::GENERAL_PROTECTION => {
                Stop::Exception(Exception { vector: 12, ..e })
            }
            other => other,
        }
    }
}

macro_rules! accessors {
    ($($ty:ty: $read:ident $write:ident),*) => {
        impl Vcpu {
            $(
                #[doc = concat!("Reads a `", stringify!($ty), "` at linear address `va`.")]
                #[inline(always)]
                pub fn $read(&mut self, va: u64) -> Result<$ty, Stop> {
                    const N: usize = size_of::<$ty>();
                    if let Some(host) = self.probe_read(va, N as u64) {
                        // SAFETY: the tag matched for all `N` bytes: mapped guest memory.
                        return Ok(unsafe { host.cast::<$ty>().read_unaligned() });
                    }
                    let mut bytes = [0; N];
                    self.read_slow(va, &mut bytes)?;
                    Ok(<$ty>::from_le_bytes(bytes))
                }
                #[doc = concat!("Writes a `", stringify!($ty), "` at linear address `va`, whole or not at all.")]
                #[inline(always)]
                pub fn $write(&mut self, va: u64, value: $ty) -> Result<(), Stop> {
                    const N: usize = size_of::<$ty>();
                    if let Some(host) = self.probe_write_tag(va, N as u64) {
                        // SAFETY: the tag matched for all `N` bytes: mapped writable guest memory.
                        unsafe { host.cast::<$ty>().write_unaligned(value) };
                        return Ok(());
                    }
                    self.write_slow(va, &value.to_le_bytes())
                }
            )*
        }
    };
}
accessors!(
    u8: read_u8 write_u8,
    u16: read_u16 write_u16,
    u32: read_u32 write_u32,
    u64: read_u64 write_u64,
    u128: read_u128 write_u128
);

impl Drop for Vcpu {
    fn drop(&mut self) {
        self.leave_core();
        self.mem.detach_tlb(&self.tlb);
    }
}
