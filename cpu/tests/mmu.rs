//! The MMU against hand-made page tables: every fault kind and its error code, the C-bit, A and D bits,
//! nested tables, the RMP, and decoded-code tracking.

use std::sync::Arc;

use sevlab_arch::paging::pte::{A, D, G, NX, P, PS, U, W};
use sevlab_arch::paging::{C_MASK, Cr0, Cr4};
use sevlab_arch::rmp::{RmpStatus, RmpUpdate, VmplPerms};
use sevlab_arch::{Asid, Gpa, Spa, Va};
use sevlab_cpu::mmu::npf;
use sevlab_cpu::{Access, Exception, SevMode, Stop, Vcpu, VcpuConfig};
use sevlab_memctl::{
    CacheMode, CipherKind, Config, Domain, MemCtl, MemoryKey, PageSize, RmpAdjust,
};

const ASID: Asid = Asid(5);
const ADDR: u64 = 0x0007_ffff_ffff_f000;
/// Guest physical `g` lies at system physical `g + MOVED`, where nested tables are used.
const MOVED: u64 = 0x0200_0000;
const NCR3: u64 = 0x10_0000;

/// A guest whose tables are made by hand. Guest tables from 0x1000 up, nested ones from [`NCR3`] up.
struct Guest {
    vcpu: Box<Vcpu>,
    next_table: u64,
    next_nested: u64,
    c: u64,
}

fn memory(cache: CacheMode, resident: Option<usize>, snp: bool) -> Arc<MemCtl> {
    let cipher = CipherKind::Aes128Xex;
    let mem = MemCtl::new(Config {
        size: 128 << 20,
        cipher,
        cache,
        resident,
        tweak_seed: 1,
        hierarchy: None,
        cores: 1,
        snp,
    })
    .unwrap();
    let key = MemoryKey::new(cipher, &[7; 16]).unwrap();
    mem.install_key(ASID, key).unwrap();
    mem
}

impl Guest {
    fn with(mode: SevMode, nested: bool, cache: CacheMode, resident: Option<usize>) -> Self {
        let mem = memory(cache, resident, mode == SevMode::Snp);
        let mut vcpu = Vcpu::new(
            mem,
            VcpuConfig {
                asid: ASID,
                mode,
                ncr3: nested.then_some(Spa(NCR3)),
                ..VcpuConfig::default()
            },
        );
        let c = if mode.encrypted() { C_MASK } else { 0 };
        vcpu.state.sys.cr3 = 0x1000 | c;
        Self {
            vcpu,
            next_table: 0x2000,
            next_nested: NCR3 + 0x1000,
            c,
        }
    }

    fn flat(mode: SevMode) -> Self {
        let mut g = Self::with(mode, false, CacheMode::Page, None);
        g.clear_root();
        g
    }

    /// Nested tables that map the first 16 MiB of guest memory with 4 KiB pages.
    fn nested(mode: SevMode) -> Self {
        let mut g = Self::with(mode, true, CacheMode::Page, None);
        for page in 0..0x1000u64 {
            g.npt(page << 12, (page << 12) + MOVED, P | W | U, 1);
        }
        g.clear_root();
        g
    }

    /// As [`Guest::nested`], with every page assigned and validated.
    fn snp() -> Self {
        let mut g = Self::with(SevMode::Snp, true, CacheMode::Page, None);
        for page in 0..0x1000u64 {
            g.npt(page << 12, (page << 12) + MOVED, P | W | U, 1);
            g.assign(page << 12, true);
        }
        g.clear_root();
        g
    }

    fn clear_root(&mut self) {
        let spa = self.spa(0x1000);
        self.mem().zero_page(self.table_domain(), spa).unwrap();
    }

    fn mem(&self) -> Arc<MemCtl> {
        Arc::clone(&self.vcpu.mem)
    }

    fn table_domain(&self) -> Domain {
        self.vcpu.domain(true)
    }

    fn spa(&self, gpa: u64) -> Spa {
        Spa(if self.vcpu.ncr3.is_some() {
            gpa + MOVED
        } else {
            gpa
        })
    }

    fn assign(&self, gpa: u64, validate: bool) {
        let spa = self.spa(gpa);
        let mem = self.mem();
        let update = RmpUpdate {
            gpa,
            assigned: 1,
            page_size: 0,
            immutable: 0,
            reserved: 0,
            asid: ASID.0,
        };
        assert_eq!(mem.rmp().rmpupdate(spa, &update), RmpStatus::SUCCESS);
        if validate {
            mem.rmp()
                .pvalidate(ASID, Gpa(gpa), spa, PageSize::Size4K, true)
                .unwrap();
        }
    }

    fn unassign(&self, gpa: u64) {
        let status = self
            .mem()
            .rmp()
            .rmpupdate(self.spa(gpa), &RmpUpdate::default());
        assert_eq!(status, RmpStatus::SUCCESS);
    }

    /// Writes the nested entry of `gpa` at `level`, making the tables above.
    fn npt(&mut self, gpa: u64, spa: u64, flags: u64, level: u32) {
        let mem = self.mem();
        let mut table = NCR3;
        for l in (level + 1..=4).rev() {
            let at = Spa(table + (gpa >> (12 + 9 * (l - 1)) & 0x1ff) * 8);
            let e = mem.read_u64(Domain::Shared, at).unwrap();
            table = if e & P == 0 {
                let new = self.next_nested;
                self.next_nested += 0x1000;
                mem.write_u64(Domain::Shared, at, new | P | W | U).unwrap();
                new
            } else {
                e & ADDR
            };
        }
        let at = Spa(table + (gpa >> (12 + 9 * (level - 1)) & 0x1ff) * 8);
        let ps = if level > 1 { PS } else { 0 };
        mem.write_u64(Domain::Shared, at, spa | flags | ps).unwrap();
    }

    fn npt_entry(&self, gpa: u64) -> u64 {
        let mem = self.mem();
        let mut table = NCR3;
        for l in (1..=4).rev() {
            let at = Spa(table + (gpa >> (12 + 9 * (l - 1)) & 0x1ff) * 8);
            let e = mem.read_u64(Domain::Shared, at).unwrap();
            if l == 1 {
                return e;
            }
            table = e & ADDR;
        }
        unreachable!()
    }

    /// Address of the guest entry of `va` at `level`, making the tables above with all rights.
    fn slot(&mut self, va: u64, level: u32) -> Spa {
        let mem = self.mem();
        let d = self.table_domain();
        let mut table = 0x1000;
        for l in (level + 1..=4).rev() {
            let at = self.spa(table + (va >> (12 + 9 * (l - 1)) & 0x1ff) * 8);
            let e = mem.read_u64(d, at).unwrap();
            table = if e & P == 0 {
                let new = self.next_table;
                self.next_table += 0x1000;
                mem.zero_page(d, self.spa(new)).unwrap();
                mem.write_u64(d, at, new | P | W | U | self.c).unwrap();
                new
            } else {
                e & ADDR
            };
        }
        self.spa(table + (va >> (12 + 9 * (level - 1)) & 0x1ff) * 8)
    }

    /// Maps a 4 KiB page; `flags` as they are (the C-bit too).
    fn map(&mut self, va: u64, gpa: u64, flags: u64) {
        self.set(va, 1, gpa | flags);
    }

    fn set(&mut self, va: u64, level: u32, entry: u64) {
        let at = self.slot(va, level);
        self.mem()
            .write_u64(self.table_domain(), at, entry)
            .unwrap();
    }

    fn entry(&mut self, va: u64, level: u32) -> u64 {
        let at = self.slot(va, level);
        self.mem().read_u64(self.table_domain(), at).unwrap()
    }

    fn fault(&mut self, va: u64, access: Access) -> u32 {
        match self.vcpu.translate(Va(va), access) {
            Err(Stop::Exception(Exception {
                vector: 14,
                error: Some(e),
                cr2: Some(at),
            })) => {
                assert_eq!(at.0, va);
                e
            }
            other => panic!("no page fault: {other:?}"),
        }
    }

    fn npf(&mut self, va: u64, access: Access) -> (u64, u64) {
        match self.vcpu.translate(Va(va), access) {
            Err(Stop::NestedFault { gpa, error }) => (gpa.0, error),
            other => panic!("no nested fault: {other:?}"),
        }
    }
}

const VA: u64 = 0x40_0000_0000;
const PAGE: u64 = 0x50_0000;
const RW: u64 = P | W | U;
use Access::{Exec, Read, Write};

#[test]
fn page_fault_error_codes_at_cpl_3() {
    let mut g = Guest::flat(SevMode::Off);
    // Not present at the last and at the first level.
    g.map(VA, 0, 0);
    for va in [VA, 0x7000_0000_0000] {
        assert_eq!(g.fault(va, Read), 4);
        assert_eq!(g.fault(va, Write), 6);
        assert_eq!(g.fault(va, Exec), 0x14);
    }
    // Read-only, supervisor-only, no-execute.
    g.map(VA, PAGE, P | U);
    assert_eq!(g.fault(VA, Write), 7);
    g.map(VA, PAGE, P | W);
    assert_eq!(g.fault(VA, Read), 5);
    assert_eq!(g.fault(VA, Write), 7);
    assert_eq!(g.fault(VA, Exec), 0x15);
    g.map(VA, PAGE, RW | NX);
    assert_eq!(g.fault(VA, Exec), 0x15);
    g.vcpu.translate(Va(VA), Write).unwrap();
    // The same from an upper level.
    for (drop, access, error) in [(W, Write, 7), (U, Read, 5), (0, Exec, 0x15)] {
        let mut g = Guest::flat(SevMode::Off);
        g.map(VA, PAGE, RW);
        let upper = g.entry(VA, 3);
        let nx = if drop == 0 { NX } else { 0 };
        g.set(VA, 3, upper & !drop | nx);
        assert_eq!(g.fault(VA, access), error);
    }
}

#[test]
fn reserved_bits() {
    let mut g = Guest::flat(SevMode::Off);
    g.map(VA, PAGE, RW | 1 << 49);
    assert_eq!(g.fault(VA, Read), 0xd);
    assert_eq!(g.fault(VA, Write), 0xf);
    // A large page with address bits below its size; a PML4 entry with PS.
    g.set(VA + (1 << 30), 2, 0x20_0000 | 0x2000 | RW | PS);
    assert_eq!(g.fault(VA + (1 << 30), Read), 0xd);
    g.set(VA + (1 << 30), 2, 0x20_0000 | 0x1000 | RW | PS | G);
    g.vcpu.translate(Va(VA + (1 << 30)), Read).unwrap();
    g.set(VA + (2 << 30), 3, 0x20_0000 | RW | PS);
    assert_eq!(g.fault(VA + (2 << 30), Read), 0xd);
    g.set(0x7000_0000_0000, 4, 0x2000 | RW | PS);
    assert_eq!(g.fault(0x7000_0000_0000, Read), 0xd);
    // NX is reserved without EFER.NXE, and without SMEP too I is then not reported.
    g.vcpu.state.sys.cr4 &= !Cr4::SMEP.bits();
    g.map(VA, PAGE, RW | NX);
    g.vcpu.state.sys.efer &= !(1 << 11);
    assert_eq!(g.fault(VA, Read), 0xd);
    g.map(VA, 0, 0);
    assert_eq!(g.fault(VA, Exec), 4);
}

#[test]
fn supervisor_rules() {
    let mut g = Guest::flat(SevMode::Off);
    g.vcpu.set_cpl(0);
    let user = VA + 0x1000;
    g.map(VA, PAGE, P);
    g.map(user, PAGE + 0x1000, RW);
    assert_eq!(g.fault(VA, Write), 3);
    g.vcpu.state.sys.cr0 &= !Cr0::WP.bits();
    g.vcpu.translate(Va(VA), Write).unwrap();
    g.vcpu.state.sys.cr4 &= !(Cr4::SMEP | Cr4::SMAP).bits();
    g.vcpu.translate(Va(user), Exec).unwrap();
    g.vcpu.translate(Va(user), Write).unwrap();
    g.vcpu.state.sys.cr4 |= (Cr4::SMEP | Cr4::SMAP).bits();
    assert_eq!(g.fault(user, Exec), 0x11);
    assert_eq!(g.fault(user, Read), 1);
    assert_eq!(g.fault(user, Write), 3);
    g.vcpu.state.rflags |= 1 << 18;
    g.vcpu.write_u32(user, 5).unwrap();
    // That right is not cached: it ends with AC.
    g.vcpu.state.rflags &= !(1 << 18);
    assert!(g.vcpu.read_u32(user).is_err());
    // And a supervisor's page is not a user's.
    g.vcpu.read_u32(VA).unwrap();
    g.vcpu.set_cpl(3);
    assert!(g.vcpu.read_u32(VA).is_err());
}

#[test]
fn non_canonical_addresses() {
    let mut g = Guest::flat(SevMode::Off);
    for va in [0x8000_0000_0000, 0xffff_7fff_ffff_ffff, 1 << 63] {
        let stop = g.vcpu.read_u8(va).unwrap_err();
        assert_eq!(stop, Stop::Exception(Exception::GENERAL_PROTECTION));
        let Stop::Exception(e) = Vcpu::as_stack_access(stop) else {
            panic!()
        };
        assert_eq!((e.vector, e.error), (12, Some(0)));
    }
    assert_eq!(g.fault(0xffff_8000_0000_0000, Read), 4);
    assert_eq!(g.fault(0x7fff_ffff_ffff, Read), 4);
    // A read that runs out of the canonical range.
    g.map(0x7fff_ffff_f000, PAGE, RW);
    g.vcpu.read_u8(0x7fff_ffff_ffff).unwrap();
    assert_eq!(
        g.vcpu.read_u16(0x7fff_ffff_ffff),
        Err(Stop::Exception(Exception::GENERAL_PROTECTION))
    );
}

#[test]
fn accessed_and_dirty_bits() {
    for mode in [SevMode::Off, SevMode::Sev] {
        let mut g = Guest::flat(mode);
        let c = g.c;
        g.map(VA, PAGE, RW | c);
        assert_eq!(g.vcpu.peek(Va(VA), Write).unwrap().gpa, Gpa(PAGE));
        for level in 1..=4 {
            assert_eq!(g.entry(VA, level) & (A | D), 0, "peek sets nothing");
        }
        g.vcpu.read_u64(VA).unwrap();
        for level in 1..=4 {
            assert_eq!(g.entry(VA, level) & (A | D), A);
        }
        // The first write is noticed although the page is in the fast TLB.
        g.vcpu.write_u64(VA, 1).unwrap();
        assert_eq!(g.entry(VA, 1) & (A | D), A | D);
        assert_eq!(g.entry(VA, 2) & (A | D), A, "only leaves are dirty");
        // A denied access sets nothing.
        g.map(VA, PAGE, P | U | c);
        g.vcpu.invlpg(Va(VA));
        assert_eq!(g.fault(VA, Write), 7);
        assert_eq!(g.entry(VA, 1) & (A | D), 0);
        // probe_write does what a write does.
        g.map(VA, PAGE, RW | c);
        g.vcpu.invlpg(Va(VA));
        g.vcpu.probe_write(VA + 8, 16).unwrap();
        assert_eq!(g.entry(VA, 1) & (A | D), A | D);
    }
}

#[test]
fn large_pages() {
    let mut g = Guest::flat(SevMode::Sev);
    g.set(VA, 2, 0x60_0000 | RW | PS | C_MASK);
    g.set(VA + (1 << 30), 3, RW | PS | C_MASK);
    let t = g.vcpu.translate(Va(VA + 0x12_3456), Read).unwrap();
    assert_eq!((t.gpa.0, t.private), (0x72_3456, true));
    let t = g.vcpu.translate(Va(VA + (1 << 30) + 0x72_3456), Write);
    assert_eq!(t.unwrap().spa, Spa(0x72_3456));
    g.vcpu.write_u64(VA + 0x12_3450, 77).unwrap();
    assert_eq!(g.vcpu.read_u64(VA + (1 << 30) + 0x72_3450).unwrap(), 77);
    assert_eq!(g.entry(VA, 2) & D, D);
}

#[test]
fn accesses_across_pages_are_whole() {
    for cache in [CacheMode::Page, CacheMode::None] {
        let mut g = Guest::with(SevMode::Sev, false, cache, None);
        g.clear_root();
        g.map(VA, PAGE, RW | C_MASK);
        g.map(VA + 0x1000, PAGE + 0x7000, RW | C_MASK);
        g.map(VA + 0x2000, PAGE + 0x3000, P | U | C_MASK);
        let at = VA + 0xffd;
        g.vcpu.write_u64(at, 0x1122_3344_5566_7788).unwrap();
        assert_eq!(g.vcpu.read_u64(at).unwrap(), 0x1122_3344_5566_7788);
        assert_eq!(g.vcpu.read_u8(VA + 0x1000).unwrap(), 0x55);
        g.vcpu.write(VA + 0x1fe0, &[0xaa; 0x20]).unwrap();
        let stop = g.vcpu.write(VA + 0x1ff0, &[0xbb; 0x20]).unwrap_err();
        let fault = Exception::page_fault(Va(VA + 0x2000), 7);
        assert_eq!(stop, Stop::Exception(fault));
        let mut tail = [0; 0x20];
        g.vcpu.read(VA + 0x1fe0, &mut tail).unwrap();
        assert_eq!(tail, [0xaa; 0x20], "nothing was written");
        let data: Vec<u8> = (0..0x1800u32).map(|i| i as u8).collect();
        g.vcpu.write(VA + 0x400, &data).unwrap();
        let mut back = vec![0; data.len()];
        g.vcpu.read(VA + 0x400, &mut back).unwrap();
        assert_eq!(back, data);
    }
}

#[test]
fn the_c_bit_selects_the_key() {
    let mut g = Guest::flat(SevMode::Sev);
    let shared = VA + 0x1000;
    g.map(VA, PAGE, RW | C_MASK);
    g.map(shared, PAGE, RW);
    g.vcpu.write_u64(VA, 0x1234).unwrap();
    assert_eq!(g.vcpu.read_u64(VA).unwrap(), 0x1234);
    let cipher = g.vcpu.read_u64(shared).unwrap();
    assert_ne!(cipher, 0x1234, "without the C-bit: ciphertext");
    let mut bus = [0; 8];
    g.mem().bus_read(Spa(PAGE), &mut bus);
    assert_eq!(u64::from_le_bytes(bus), cipher);
    // And back: the other side's tags are gone, neither view is stale.
    assert_eq!(g.vcpu.read_u64(VA).unwrap(), 0x1234);
    g.vcpu.write_u64(shared, 0x1234).unwrap();
    assert_ne!(g.vcpu.read_u64(VA).unwrap(), 0x1234);
    assert!(!g.vcpu.translate(Va(shared), Read).unwrap().private);
}

#[test]
fn walks_and_fetches_are_private_regardless() {
    let mut g = Guest::flat(SevMode::Sev);
    g.map(VA, PAGE, RW | C_MASK);
    g.map(VA + 0x1000, PAGE, RW);
    g.vcpu.write(VA, b"\x90\x90\xc3\x01").unwrap();
    // A root and a table reached without the C-bit are still read through the key.
    g.vcpu.set_cr3(0x1000);
    let upper = g.entry(VA, 4);
    g.set(VA, 4, upper & !C_MASK);
    let mut code = [0; 4];
    g.vcpu.fetch(VA, &mut code).unwrap();
    assert_eq!(&code, b"\x90\x90\xc3\x01");
    // So is code on a page mapped shared, while data there is not; in both orders.
    for _ in 0..2 {
        g.vcpu.fetch(VA + 0x1000, &mut code).unwrap();
        assert_eq!(&code, b"\x90\x90\xc3\x01");
        let mut data = [0; 4];
        g.vcpu.read(VA + 0x1000, &mut data).unwrap();
        assert_ne!(&data, b"\x90\x90\xc3\x01");
    }
}

#[test]
fn the_c_bit_is_ignored_without_sev() {
    let mut g = Guest::flat(SevMode::Off);
    g.map(VA, PAGE, RW | C_MASK);
    g.vcpu.write_u64(VA, 0x77).unwrap();
    let t = g.vcpu.translate(Va(VA), Read).unwrap();
    assert_eq!((t.gpa, t.private), (Gpa(PAGE), false));
    assert_eq!(g.mem().read_u64(Domain::Shared, Spa(PAGE)).unwrap(), 0x77);
}

#[test]
fn nested_faults() {
    let mut g = Guest::nested(SevMode::Sev);
    let page = PAGE + 0x345;
    g.map(VA, PAGE, RW | C_MASK);
    let base = npf::USER | npf::FINAL;
    // Present, writable and dirty bits in order.
    assert_eq!(
        g.vcpu.translate(Va(VA), Read).unwrap().spa,
        Spa(PAGE + MOVED)
    );
    assert_eq!(g.npt_entry(PAGE) & (A | D), A);
    g.vcpu.translate(Va(VA), Write).unwrap();
    assert_eq!(g.npt_entry(PAGE) & (A | D), A | D);
    let mut check = |entry: u64, access, error| {
        g.npt(PAGE, PAGE + MOVED, entry, 1);
        g.vcpu.flush_nested();
        assert_eq!(g.npf(VA + 0x345, access), (page, error));
    };
    check(0, Read, base);
    check(0, Write, base | npf::WRITE);
    check(0, Exec, base | npf::FETCH);
    check(P | U, Write, base | npf::WRITE | npf::PRESENT);
    check(P | W, Read, base | npf::PRESENT);
    check(RW | NX, Exec, base | npf::FETCH | npf::PRESENT);
    check(RW | 1 << 49, Read, base | npf::RESERVED | npf::PRESENT);
    // Guest tables: walked as user writes.
    g.npt(PAGE, PAGE + MOVED, RW, 1);
    let table = g.entry(VA, 2) & ADDR;
    g.npt(table, table + MOVED, P | U, 1);
    g.vcpu.flush_nested();
    let bits = npf::USER | npf::TABLE | npf::WRITE | npf::PRESENT;
    assert_eq!(g.npf(VA, Read), (table, bits));
    // A guest physical address beyond what is mapped at all.
    g.npt(table, table + MOVED, RW, 1);
    g.map(VA, 0x7fff_0000_0000, RW | C_MASK);
    g.vcpu.flush_nested();
    assert_eq!(g.npf(VA, Read), (0x7fff_0000_0000, base));
}

#[test]
fn nested_large_pages_and_their_cache() {
    let mut g = Guest::nested(SevMode::Sev);
    g.npt(0x4000_0000, 0x240_0000, RW, 2);
    g.npt(0x8000_0000, 0, RW, 3);
    g.map(VA, 0x4012_3000, RW | C_MASK);
    g.map(VA + 0x1000, 0x8252_3000, RW | C_MASK);
    g.map(VA + 0x2000, 0x4012_4000, RW | C_MASK);
    g.vcpu.write_u64(VA, 9).unwrap();
    assert_eq!(g.vcpu.read_u64(VA + 0x1000).unwrap(), 9);
    let walks = g.vcpu.counters.nested_walks;
    g.vcpu.write_u64(VA + 0x2000, 10).unwrap();
    assert_eq!(
        g.vcpu.counters.nested_walks, walks,
        "the 2 MiB region is known"
    );
    // A change needs flush_nested, and with it is seen.
    g.npt(0x4000_0000, 0x240_0000, P | U, 2);
    g.vcpu.flush_nested();
    g.vcpu.read_u64(VA).unwrap();
    assert!(matches!(
        g.vcpu.write_u64(VA, 1),
        Err(Stop::NestedFault { .. })
    ));
}

#[test]
fn rmp_violations() {
    let mut g = Guest::snp();
    let shared = VA + 0x1000;
    g.map(VA, PAGE, RW | C_MASK);
    g.map(shared, PAGE + 0x1000, RW);
    g.vcpu.write_u64(VA, 1).unwrap();
    let base = npf::USER | npf::FINAL | npf::PRESENT;
    // A shared write to a page that a guest owns; reads pass.
    g.vcpu.read_u64(shared).unwrap();
    let want = base | npf::WRITE | npf::RMP;
    assert_eq!(g.npf(shared, Write), (PAGE + 0x1000, want));
    g.unassign(PAGE + 0x1000);
    g.vcpu.write_u64(shared, 1).unwrap();
    // A private access to a page that is not assigned: the tag is gone at once.
    g.unassign(PAGE);
    assert!(g.vcpu.read_u64(VA).is_err());
    let want = base | npf::RMP | npf::ENC;
    assert_eq!(g.npf(VA, Read), (PAGE, want));
    // Assigned but not validated: #VC, not the hypervisor's.
    g.assign(PAGE, false);
    let (_, error) = g.npf(VA, Read);
    assert_eq!(error, base | npf::ENC | npf::NOT_VALIDATED);
    assert_eq!(error & npf::RMP, 0);
    // Remapped: another guest physical address leads to the frame.
    g.assign(PAGE, true);
    g.map(VA + 0x2000, PAGE + 0x2000, RW | C_MASK);
    g.npt(PAGE + 0x2000, PAGE + MOVED, RW, 1);
    g.vcpu.flush_nested();
    assert_eq!(g.npf(VA + 0x2000, Read), (PAGE + 0x2000, want));
    // Unvalidated page tables are caught too.
    let table = g.entry(VA, 2) & ADDR;
    let spa = g.spa(table);
    g.mem()
        .rmp()
        .pvalidate(ASID, Gpa(table), spa, PageSize::Size4K, false)
        .unwrap();
    g.vcpu.invlpg(Va(VA));
    let (at, error) = g.npf(VA, Read);
    assert_eq!(at & !0xfff, table);
    assert_eq!(
        error & (npf::TABLE | npf::NOT_VALIDATED),
        npf::TABLE | npf::NOT_VALIDATED
    );
}

#[test]
fn vmpl_permissions() {
    let mut g = Guest::snp();
    g.map(VA, PAGE, RW | C_MASK);
    g.vcpu.vmpl = 1;
    let mem = g.mem();
    let grant = |perms| {
        for page in 0..0x1000u64 {
            let perms = if page << 12 == PAGE {
                perms
            } else {
                VmplPerms::FULL
            };
            let adjust = RmpAdjust {
                target_vmpl: 1,
                perms,
                vmsa: false,
            };
            let gpa = Gpa(page << 12);
            let spa = Spa((page << 12) + MOVED);
            let status = mem
                .rmp()
                .rmpadjust(ASID, gpa, spa, PageSize::Size4K, 0, adjust);
            assert_eq!(status.unwrap(), RmpStatus::SUCCESS);
        }
    };
    grant(VmplPerms::READ);
    g.vcpu.read_u64(VA).unwrap();
    let denied = npf::RMP | npf::VMPL | npf::ENC;
    for access in [Write, Exec] {
        assert_eq!(g.npf(VA, access).1 & denied, denied);
    }
    grant(VmplPerms::READ | VmplPerms::EXEC_USER);
    g.vcpu.translate(Va(VA), Exec).unwrap();
    assert!(g.vcpu.write_u8(VA, 1).is_err());
    grant(VmplPerms::FULL);
    g.vcpu.write_u8(VA, 1).unwrap();
}

#[test]
fn stale_upper_levels_are_confirmed_before_a_fault() {
    let mut g = Guest::flat(SevMode::Sev);
    g.map(VA, PAGE, RW | C_MASK);
    g.vcpu.read_u64(VA).unwrap();
    // Another page table behind the same upper entry, without INVLPG: no fault may come of the old.
    let fresh = 0x9_0000;
    let mem = g.mem();
    let d = g.table_domain();
    mem.zero_page(d, Spa(fresh)).unwrap();
    let entry = (VA + 0x3000) >> 12 & 0x1ff;
    mem.write_u64(d, Spa(fresh + entry * 8), PAGE | RW | C_MASK)
        .unwrap();
    g.set(VA, 2, fresh | RW | C_MASK);
    g.vcpu.read_u64(VA + 0x3000).unwrap();
    assert!(g.vcpu.counters.short_walks == 0);
    g.vcpu.write_u64(VA + 0x3000, 1).unwrap();
    assert!(g.vcpu.counters.short_walks > 0);
}

#[test]
fn invlpg_and_flush() {
    let mut g = Guest::flat(SevMode::Sev);
    g.map(VA, PAGE, RW | C_MASK);
    g.vcpu.write_u64(VA, 1).unwrap();
    g.map(VA, PAGE + 0x1000, RW | C_MASK);
    assert_eq!(g.vcpu.read_u64(VA).unwrap(), 1, "cached");
    g.vcpu.write_u64(VA, 1).unwrap();
    g.vcpu.invlpg(Va(VA));
    assert_ne!(g.vcpu.read_u64(VA).unwrap(), 1);
    g.map(VA, PAGE, RW | C_MASK);
    g.vcpu.flush_tlb();
    assert_eq!(g.vcpu.read_u64(VA).unwrap(), 1);
}

#[test]
fn every_fill_works_under_a_residency_limit() {
    let mut g = Guest::with(SevMode::Sev, false, CacheMode::Page, Some(64));
    g.clear_root();
    for i in 0..400 {
        g.map(VA + i * 0x1000, PAGE + i * 0x1000, RW | C_MASK);
    }
    for round in 0..3u64 {
        for i in 0..400 {
            let va = VA + i * 0x1000 + 8 * i;
            if round > 0 {
                assert_eq!(g.vcpu.read_u64(va).unwrap(), i + round - 1);
            }
            g.vcpu.write_u64(va, i + round).unwrap();
        }
    }
    assert!(g.mem().stats().evictions > 0);
}

#[test]
fn cache_mode_none_has_no_host_pointer() {
    let mut g = Guest::with(SevMode::Sev, false, CacheMode::None, None);
    g.clear_root();
    g.map(VA, PAGE, RW | C_MASK);
    g.map(VA + 0x1000, PAGE + 0x1000, RW);
    assert_eq!(g.vcpu.fill(Va(VA), Write).unwrap(), None);
    assert!(g.vcpu.fill(Va(VA + 0x1000), Write).unwrap().is_some());
    g.vcpu.write_u128(VA + 3, 5 << 64 | 6).unwrap();
    assert_eq!(g.vcpu.read_u128(VA + 3).unwrap(), 5 << 64 | 6);
    assert!(g.vcpu.probe_read(VA, 8).is_none());
    assert!(g.vcpu.counters.uncached > 0);
    g.vcpu.fetch(VA, &mut [0; 15]).unwrap();
}

#[test]
fn fetch_stops_at_a_page_that_faults() {
    let mut g = Guest::flat(SevMode::Sev);
    g.map(VA, PAGE, RW | C_MASK);
    let mut bytes = [0; 15];
    assert_eq!(g.vcpu.fetch(VA + 0xff8, &mut bytes).unwrap(), 8);
    assert!(g.vcpu.fetch(VA + 0x1000, &mut bytes).is_err());
    g.map(VA + 0x1000, PAGE + 0x1000, RW | NX | C_MASK);
    assert_eq!(g.vcpu.fetch(VA + 0xff8, &mut bytes).unwrap(), 8);
    assert_eq!(g.fault(VA + 0x1000, Exec), 0x15);
    g.map(VA + 0x1000, PAGE + 0x1000, RW | C_MASK);
    g.vcpu.invlpg(Va(VA + 0x1000));
    assert_eq!(g.vcpu.fetch(VA + 0xff8, &mut bytes).unwrap(), 15);
}

#[test]
fn writes_to_code_drop_it() {
    for (mode, nested) in [(SevMode::Off, false), (SevMode::Sev, true)] {
        let mut g = if nested {
            Guest::nested(mode)
        } else {
            Guest::flat(mode)
        };
        let alias = VA + 0x5000;
        let c = g.c;
        g.map(VA, PAGE, RW | c);
        g.map(alias, PAGE, RW | c);
        g.vcpu.write_u64(VA, 1).unwrap();
        g.vcpu.write_u64(alias, 2).unwrap();
        let spa = g.vcpu.note_code(Va(VA + 0x10)).unwrap();
        g.vcpu.note_code(Va(alias)).unwrap();
        assert!(g.vcpu.frame_has_code(spa) && g.vcpu.has_code(Va(VA)));
        let epoch = g.vcpu.code_epoch;
        // Reads keep the page in the fast TLB; write tags are gone from both mappings.
        assert_eq!(g.vcpu.read_u64(VA).unwrap(), 2);
        assert!(g.vcpu.probe_write_tag(VA, 8).is_none());
        assert!(g.vcpu.probe_write_tag(alias, 8).is_none());
        assert!(g.vcpu.would_hit_code(alias + 4, 4));
        assert!(g.vcpu.would_hit_code(VA - 2, 4), "the second page counts");
        assert!(!g.vcpu.would_hit_code(VA + 0x8000, 4), "not mapped");
        g.vcpu.probe_write(VA, 8).unwrap();
        assert_eq!(g.vcpu.code_epoch, epoch);
        // A read fill and a fetch of the page do not bring the write tag back.
        g.vcpu.fill(Va(VA), Read).unwrap();
        g.vcpu.fill(Va(VA), Exec).unwrap();
        assert!(g.vcpu.probe_write_tag(VA, 8).is_none());
        g.vcpu.write_u8(alias + 7, 1).unwrap();
        assert!(g.vcpu.code_epoch > epoch);
        for list in [&mut g.vcpu.dropped_code, &mut g.vcpu.dropped_blocks] {
            list.sort_unstable();
            assert_eq!(*list, [VA, alias]);
            list.clear();
        }
        assert!(!g.vcpu.frame_has_code(spa));
        assert!(!g.vcpu.would_hit_code(VA, 4));
        assert!(g.vcpu.probe_write_tag(alias, 8).is_some(), "ordinary again");
    }
}

#[test]
fn other_ways_to_change_code() {
    let mut g = Guest::flat(SevMode::Sev);
    for i in 0..4 {
        g.map(VA + i * 0x1000, PAGE + i * 0x1000, RW | C_MASK);
        g.vcpu.note_code(Va(VA + i * 0x1000)).unwrap();
    }
    let drained = |g: &mut Guest| std::mem::take(&mut g.vcpu.dropped_code);
    // munmap, in part.
    g.vcpu.drop_code_range(Va(VA + 0x1000), Va(VA + 0x2000));
    assert_eq!(drained(&mut g), [VA + 0x1000]);
    // A write by physical address.
    g.vcpu.write_gpa(Gpa(PAGE), true, &[1]).unwrap();
    assert_eq!(drained(&mut g), [VA]);
    // INVLPG after a remap; then the page is another frame.
    g.map(VA + 0x2000, PAGE + 0x9000, RW | C_MASK);
    g.vcpu.invlpg(Va(VA + 0x2000));
    assert_eq!(drained(&mut g), [VA + 0x2000]);
    assert_eq!(g.vcpu.note_code(Va(VA + 0x2000)), Ok(Spa(PAGE + 0x9000)));
    // Another address space.
    let cr3 = g.vcpu.state.sys.cr3;
    g.vcpu.set_cr3(cr3);
    assert_eq!(drained(&mut g), [VA + 0x2000, VA + 0x3000]);
    // A fetch fault is reported, not recorded.
    g.map(VA, PAGE, RW | NX | C_MASK);
    assert!(g.vcpu.note_code(Va(VA)).is_err());
    assert!(!g.vcpu.has_code(Va(VA)));
}
