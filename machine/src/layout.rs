//! Where things are: system physical memory from the bottom up, and the guest physical addresses that
//! the hypervisor gives out.
//!
//! ```text
//! system physical                                  guest physical
//! 0            page 0, unused                      0            launch area: secrets and CPUID pages
//! 1000         VMCB, VMSA, context page, commands  20_0000      the guest kernel's memory, private
//! 10_0000      trusted memory region (1 MiB)       memory       shared window: GHCB, request, bounce
//! 20_0000      nested page tables                  ...          file window
//! cpus         VMCB and VMSA of the vCPUs but the first
//! guest        guest physical 0, 2 MiB aligned
//! shared       shared window, 2 MiB aligned
//! ...          RMP (placed by the memory controller, at the end)
//! size         file window: no DRAM, pages of host files
//! ```

use std::ops::Range;

use sevlab_arch::rmp::BOOKKEEPING_SIZE;
use sevlab_arch::{Gpa, PAGE_SIZE, Spa};
use sevlab_psp::driver::AREA_PAGES;

/// Bytes of a large page.
pub const LARGE_PAGE: u64 = 2 << 20;
/// Bytes of the trusted memory region.
pub const TMR_SIZE: u64 = 1 << 20;

const VMCB: u64 = 0x1000;
const VMSA: u64 = 0x2000;
const CONTEXT: u64 = 0x3000;
const COMMANDS: u64 = 0x4000;
const TMR: u64 = 0x10_0000;
const TABLES: u64 = 0x20_0000;
const _: () = assert!(COMMANDS + AREA_PAGES * PAGE_SIZE <= TMR);

/// Bytes of the file window. It bounds what is mapped at a time, not what a guest may map, and is address space only.
const FILES: u64 = 16 << 30;

/// Where the guest kernel's memory starts.
const KERNEL: u64 = LARGE_PAGE;
const SECRETS_PAGE: Gpa = Gpa(0x1000);
const CPUID_PAGE: Gpa = Gpa(0x2000);

/// Offset of the request block in the shared window; the GHCB is at 0.
const REQUEST: u64 = 0x1000;
/// Offset of the bounce area.
const BOUNCE: u64 = 0x1_0000;

/// vCPUs a machine may have: threads of a process.
pub const MAX_CPUS: usize = 512;
/// Bytes of the bounce area of a vCPU other than the first.
const OTHER_BOUNCE: u64 = 128 << 10;
/// Bytes of the shared window for a vCPU other than the first: GHCB, request block, bounce area.
const OTHER: u64 = 2 * PAGE_SIZE + OTHER_BOUNCE;

/// A machine's memory map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Bytes of private guest physical memory, launch area included.
    pub memory: u64,
    /// First byte of guest memory.
    pub guest: Spa,
    /// First byte of the shared window.
    pub shared: Spa,
    /// Bytes of the shared window.
    pub shared_len: u64,
    /// Bytes of the bounce area.
    pub bounce_len: u64,
    /// Pages for nested page tables.
    pub tables: Range<Spa>,
    /// VMCBs and VMSAs of the vCPUs but the first.
    pub cpus: Spa,
    /// Bytes of DRAM.
    pub size: u64,
    /// Bytes of the file window.
    pub files_len: u64,
}

/// A vCPU's part of the shared window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Port {
    /// The GHCB page.
    pub ghcb: Gpa,
    /// The request block of a proxied system call.
    pub request: Gpa,
    /// The bounce area.
    pub bounce: Gpa,
    /// Bytes of the bounce area.
    pub bounce_len: u64,
}

impl Layout {
    /// The map of a machine with `memory` bytes for the guest and a bounce area of `bounce` bytes.
    #[must_use]
    pub fn new(memory: u64, bounce: u64, snp: bool) -> Self {
        let memory = KERNEL + memory.max(LARGE_PAGE).next_multiple_of(LARGE_PAGE);
        let bounce_len = bounce.max(PAGE_SIZE).next_multiple_of(PAGE_SIZE);
        let others = OTHER * (MAX_CPUS as u64 - 1);
        let shared_len = (BOUNCE + bounce_len + others).next_multiple_of(LARGE_PAGE);
        // A page table for every 2 MiB if all of them are split, and the upper levels.
        let guest_regions = (memory + shared_len) / LARGE_PAGE;
        // The file window is mapped by 2 MiB and never split.
        let file_tables = FILES / LARGE_PAGE / 512 + 2;
        let table_pages = guest_regions + guest_regions.div_ceil(512) + 4 + file_tables;
        let tables_end = TABLES + table_pages * PAGE_SIZE;
        let cpus_end = tables_end + 2 * PAGE_SIZE * MAX_CPUS as u64;
        let guest = cpus_end.next_multiple_of(LARGE_PAGE);
        let shared = guest + memory;
        let end = shared + shared_len;
        // The RMP covers itself too: 16 bytes a page are 1/256, rounded generously.
        let rmp = if snp {
            BOOKKEEPING_SIZE + end / 255 + LARGE_PAGE
        } else {
            0
        };
        Self {
            memory,
            guest: Spa(guest),
            shared: Spa(shared),
            shared_len,
            bounce_len,
            tables: Spa(TABLES)..Spa(tables_end),
            cpus: Spa(tables_end),
            size: (end + rmp).next_multiple_of(LARGE_PAGE),
            files_len: FILES,
        }
    }

    /// What is large and mostly empty: all that lies below the guest kernel's memory, and the shared window.
    #[must_use]
    pub fn sparse(&self) -> [Range<Spa>; 2] {
        let window = self.shared..self.shared.plus(self.shared_len);
        [Spa(0)..self.guest.plus(KERNEL), window]
    }

    /// The first vCPU's VMCB.
    #[must_use]
    pub fn vmcb(&self) -> Spa {
        Spa(VMCB)
    }

    /// The first vCPU's encrypted save area.
    #[must_use]
    pub fn vmsa(&self) -> Spa {
        Spa(VMSA)
    }

    /// The VMCB of vCPU `cpu`.
    #[must_use]
    pub fn vmcb_of(&self, cpu: usize) -> Spa {
        if cpu == 0 {
            self.vmcb()
        } else {
            self.cpus.plus(cpu as u64 * 2 * PAGE_SIZE)
        }
    }

    /// SEV-ES: the save area of vCPU `cpu`. Under SNP the guest says where they are.
    #[must_use]
    pub fn vmsa_of(&self, cpu: usize) -> Spa {
        if cpu == 0 {
            self.vmsa()
        } else {
            self.vmcb_of(cpu).plus(PAGE_SIZE)
        }
    }

    /// The page that becomes the SNP guest's context.
    #[must_use]
    pub fn context(&self) -> Spa {
        Spa(CONTEXT)
    }

    /// The secure processor's command buffers.
    #[must_use]
    pub fn commands(&self) -> Spa {
        Spa(COMMANDS)
    }

    /// The trusted memory region of SEV-ES.
    #[must_use]
    pub fn tmr(&self) -> Spa {
        Spa(TMR)
    }

    /// All private memory as the guest sees it.
    #[must_use]
    pub fn private(&self) -> Range<Gpa> {
        Gpa(0)..Gpa(self.memory)
    }

    /// What of it the guest kernel may use.
    #[must_use]
    pub fn kernel_memory(&self) -> Range<Gpa> {
        Gpa(KERNEL)..Gpa(self.memory)
    }

    /// The secrets page of an SNP launch.
    #[must_use]
    pub fn secrets_page(&self) -> Gpa {
        SECRETS_PAGE
    }

    /// The CPUID page of an SNP launch.
    #[must_use]
    pub fn cpuid_page(&self) -> Gpa {
        CPUID_PAGE
    }

    /// The shared window as the guest sees it.
    #[must_use]
    pub fn shared_window(&self) -> Range<Gpa> {
        Gpa(self.memory)..Gpa(self.memory + self.shared_len)
    }

    /// What of the shared window belongs to vCPU `cpu`.
    #[must_use]
    pub fn port(&self, cpu: usize) -> Port {
        if cpu == 0 {
            return Port {
                ghcb: Gpa(self.memory),
                request: Gpa(self.memory + REQUEST),
                bounce: Gpa(self.memory + BOUNCE),
                bounce_len: self.bounce_len,
            };
        }
        let at = self.memory + BOUNCE + self.bounce_len + (cpu as u64 - 1) * OTHER;
        Port {
            ghcb: Gpa(at),
            request: Gpa(at + PAGE_SIZE),
            bounce: Gpa(at + 2 * PAGE_SIZE),
            bounce_len: OTHER_BOUNCE,
        }
    }

    /// The first vCPU's GHCB page.
    #[must_use]
    pub fn ghcb_gpa(&self) -> Gpa {
        self.port(0).ghcb
    }

    /// The first vCPU's request block.
    #[must_use]
    pub fn request_gpa(&self) -> Gpa {
        self.port(0).request
    }

    /// The first vCPU's bounce area.
    #[must_use]
    pub fn bounce_gpa(&self) -> Gpa {
        self.port(0).bounce
    }

    /// Where the hypervisor keeps the shared window's `gpa`, if `len` bytes from there lie inside it.
    #[must_use]
    pub fn shared_spa(&self, gpa: Gpa, len: u64) -> Option<Spa> {
        let offset = gpa.0.checked_sub(self.memory)?;
        let end = offset.checked_add(len)?;
        (end <= self.shared_len).then(|| self.shared.plus(offset))
    }

    /// The file window as the guest sees it.
    #[must_use]
    pub fn file_window(&self) -> Range<Gpa> {
        let start = self.memory + self.shared_len;
        Gpa(start)..Gpa(start + self.files_len)
    }

    /// Where the file window's `gpa` is, if `len` bytes from there lie inside it.
    #[must_use]
    pub fn file_spa(&self, gpa: Gpa, len: u64) -> Option<Spa> {
        let offset = gpa.0.checked_sub(self.file_window().start.0)?;
        let end = offset.checked_add(len)?;
        (end <= self.files_len).then(|| Spa(self.size + offset))
    }

    /// Where the hypervisor keeps a page of the guest's memory or of the shared window, if it is one.
    #[must_use]
    pub fn spa(&self, gpa: Gpa) -> Option<Spa> {
        if gpa.0 < self.memory {
            Some(self.guest.plus(gpa.0))
        } else {
            self.shared_spa(gpa, 1)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_aligned_and_disjoint() {
        for (memory, bounce) in [(1, 1), (64 << 20, 1 << 20), (4 << 30, 3 << 20)] {
            for snp in [false, true] {
                let l = Layout::new(memory, bounce, snp);
                assert!(l.memory >= memory && l.bounce_len >= bounce);
                assert_eq!(l.guest.0 % LARGE_PAGE, 0);
                assert_eq!(l.shared.0 % LARGE_PAGE, 0);
                assert!(l.tables.end <= l.guest);
                assert!(l.shared.0 + l.shared_len <= l.size);
                let rmp = BOOKKEEPING_SIZE + l.size / PAGE_SIZE * 16 + 8192;
                assert!(!snp || l.shared.0 + l.shared_len + rmp <= l.size);
                let [below, window] = l.sparse();
                assert!(below.end.0 - l.guest.0 == KERNEL && below.end < window.start);
                assert_eq!(window.end.0, l.shared.0 + l.shared_len);
            }
        }
    }

    #[test]
    fn addresses_outside_are_none() {
        let l = Layout::new(4 << 20, 4096, false);
        assert_eq!(l.spa(Gpa(0)), Some(l.guest));
        assert_eq!(l.spa(Gpa(l.memory)), Some(l.shared));
        assert_eq!(l.spa(Gpa(l.memory + l.shared_len)), None);
        assert_eq!(l.shared_spa(Gpa(l.memory), l.shared_len + 1), None);
        assert_eq!(l.shared_spa(Gpa(l.memory - 1), 1), None);
        assert_eq!(l.shared_spa(Gpa(u64::MAX), 2), None);
        let files = l.file_window();
        assert_eq!(files.start, l.shared_window().end);
        assert_eq!(l.file_spa(files.start, 1), Some(Spa(l.size)));
        assert_eq!(l.file_spa(files.start, l.files_len + 1), None);
        assert_eq!(l.file_spa(Gpa(files.start.0 - 1), 1), None);
        assert_eq!(l.file_spa(files.end, 1), None);
        assert_eq!(l.file_spa(Gpa(u64::MAX), 2), None);
        assert_eq!(l.spa(files.start), None, "no memory");
    }
}
