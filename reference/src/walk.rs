//! The two-dimensional page walk: which table entries are read and written, and what comes out.
//!
//! It reads the tables themselves, so it depends on nothing that the processor under test found out.

use sevlab_memctl::Domain;

use crate::counts::Kind;
use crate::tlb::{CoreTlbs, NestedPage, Page, Table, Want};

const PRESENT: u64 = 1;
const WRITABLE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;
const LARGE: u64 = 1 << 7;
const NO_EXECUTE: u64 = 1 << 63;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// What the reference may ask about the guest at the moment of an event.
pub trait Guest {
    /// CR3.
    fn cr3(&self) -> u64;
    /// The mask of the C-bit.
    fn c_mask(&self) -> u64;
    /// Root of the nested tables; `None`: guest physical is system physical.
    fn ncr3(&self) -> Option<u64>;
    /// The domain of the guest's private memory; shared for a guest without SEV.
    fn private(&self) -> Domain;
    /// CPL 3.
    fn user(&self) -> bool;
    /// CR0.WP.
    fn write_protect(&self) -> bool;
    /// Eight bytes of memory, changing nothing.
    fn read(&self, domain: Domain, spa: u64) -> u64;
    /// SNP: where the RMP entry of the page at `spa` is.
    fn rmp_entry(&self, spa: u64) -> Option<u64>;
    /// SNP: whether the RMP allows the access. True without SNP.
    fn rmp_allows(&self, gpa: u64, spa: u64, shift: u32, private: bool, want: Want) -> bool;
}

/// An access that a walk makes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Step {
    /// `Walk`, `WalkWrite` or `Rmp`.
    pub kind: Kind,
    /// Where.
    pub spa: u64,
    /// Through which domain.
    pub domain: Domain,
}

struct Walker<'a> {
    guest: &'a dyn Guest,
    steps: Vec<Step>,
}

/// Walks for an access to `va`. `None`: it faults, and then nothing of what it did counts: the caller puts `tlbs` back.
pub fn walk(
    guest: &dyn Guest,
    tlbs: &mut CoreTlbs,
    va: u64,
    want: Want,
) -> Option<(Page, Vec<Step>)> {
    let mut w = Walker {
        guest,
        steps: Vec::new(),
    };
    let page = w.guest_dimension(tlbs, va, want)?;
    Some((page, w.steps))
}

impl Walker<'_> {
    fn push(&mut self, kind: Kind, spa: u64, domain: Domain) {
        self.steps.push(Step { kind, spa, domain });
    }

    fn guest_dimension(&mut self, tlbs: &mut CoreTlbs, va: u64, want: Want) -> Option<Page> {
        let g = self.guest;
        if (va as i64) << 16 >> 16 != va as i64 {
            return None;
        }
        let address = ADDRESS & !g.c_mask();
        let mut level = 4;
        let mut table = Table {
            gpa: g.cr3() & address,
            write: true,
            user: true,
            exec: true,
        };
        for known in [2, 3, 4] {
            if let Some(t) = tlbs.tables[known - 2].get(va >> (3 + 9 * known)) {
                (level, table) = (known - 1, t);
                break;
            }
        }
        // Upper-level entries on the way: level, place, value, table below.
        let mut passed: Vec<(usize, u64, u64, Table)> = Vec::new();
        let (leaf_gpa, leaf_spa, leaf) = loop {
            let entry_gpa = table.gpa + (va >> (3 + 9 * level) & 511) * 8;
            let nested = self.table_page(tlbs, entry_gpa)?;
            let entry_spa = nested.spa + entry_gpa % 4096;
            self.push(Kind::Walk, entry_spa, g.private());
            let entry = g.read(g.private(), entry_spa);
            if entry & PRESENT == 0 {
                return None;
            }
            let below = Table {
                gpa: entry & address,
                write: table.write && entry & WRITABLE != 0,
                user: table.user && entry & USER != 0,
                exec: table.exec && entry & NO_EXECUTE == 0,
            };
            table = below;
            if level == 1 || (level < 4 && entry & LARGE != 0) {
                break (below.gpa, entry_spa, entry);
            }
            passed.push((level, entry_spa, entry, below));
            level -= 1;
        };
        let rights = table;
        let may_write = if g.user() {
            rights.user && rights.write
        } else {
            rights.write || !g.write_protect()
        };
        let allowed = match want {
            Want::Read => rights.user || !g.user(),
            Want::Write => may_write,
            Want::Exec => rights.exec && (rights.user || !g.user()),
        };
        if !allowed {
            return None;
        }
        for (_, spa, entry, _) in &passed {
            if entry & ACCESSED == 0 {
                self.push(Kind::WalkWrite, *spa, g.private());
            }
        }
        let mut wanted = leaf | ACCESSED;
        if want == Want::Write {
            wanted |= DIRTY;
        }
        if wanted != leaf {
            self.push(Kind::WalkWrite, leaf_spa, g.private());
        }
        for (level, _, _, below) in passed {
            tlbs.tables[level - 2].put(va >> (3 + 9 * level), below);
        }

        // The page itself.
        let guest_shift = 3 + 9 * level as u32;
        let inside = (1u64 << guest_shift) - 1;
        let gpa = (leaf_gpa & !inside) | (va & inside);
        let data_private = leaf & g.c_mask() != 0 && g.private() != Domain::Shared;
        let is_private = data_private || (want == Want::Exec && g.private() != Domain::Shared);
        let nested = match tlbs.nested.get(gpa >> 12) {
            Some(n) if n.allows(want) => n,
            _ => self.nested_dimension(gpa, want)?,
        };
        let spa = nested.spa + gpa % 4096;
        if !g.rmp_allows(gpa, spa, nested.shift, is_private, want) {
            return None;
        }
        if let Some(entry) = g.rmp_entry(spa) {
            self.push(Kind::Rmp, entry, Domain::Shared);
        }
        let shift = if guest_shift.min(nested.shift) >= 21 {
            21
        } else {
            12
        };
        let ask = |want| g.rmp_allows(gpa, spa, nested.shift, is_private, want);
        Some(Page {
            shift,
            spa: spa >> shift << shift,
            data: if data_private {
                g.private()
            } else {
                Domain::Shared
            },
            code: g.private(),
            writable: may_write && wanted & DIRTY != 0 && nested.writable && ask(Want::Write),
            executable: rights.exec
                && (rights.user || !g.user())
                && nested.executable
                && ask(Want::Exec),
        })
    }

    /// Where the page of a guest table is. Tables are translated as for writing.
    fn table_page(&mut self, tlbs: &mut CoreTlbs, gpa: u64) -> Option<NestedPage> {
        if let Some(n) = tlbs.nested.get(gpa >> 12) {
            return Some(n);
        }
        let n = self.nested_dimension(gpa, Want::Write)?;
        if self.guest.ncr3().is_some() {
            tlbs.nested.put(gpa >> 12, n);
        }
        Some(n)
    }

    fn nested_dimension(&mut self, gpa: u64, want: Want) -> Option<NestedPage> {
        let g = self.guest;
        let Some(root) = g.ncr3() else {
            return Some(NestedPage {
                shift: 30,
                spa: gpa & !4095,
                writable: true,
                executable: true,
            });
        };
        let address = ADDRESS & !g.c_mask();
        let (mut table, mut level) = (root & address, 4u32);
        let (mut write, mut exec) = (true, true);
        loop {
            let spa = table + (gpa >> (3 + 9 * level) & 511) * 8;
            self.push(Kind::Walk, spa, Domain::Shared);
            let entry = g.read(Domain::Shared, spa);
            write &= entry & WRITABLE != 0;
            exec &= entry & NO_EXECUTE == 0;
            let allowed = match want {
                Want::Read => true,
                Want::Write => write,
                Want::Exec => exec,
            };
            if entry & PRESENT == 0 || entry & USER == 0 || !allowed {
                return None;
            }
            let leaf = level == 1 || (level < 4 && entry & LARGE != 0);
            let mut wanted = entry | ACCESSED;
            if leaf && want == Want::Write {
                wanted |= DIRTY;
            }
            if wanted != entry {
                self.push(Kind::WalkWrite, spa, Domain::Shared);
            }
            if leaf {
                let shift = 3 + 9 * level;
                let inside = (1u64 << shift) - 1;
                let at = (entry & address & !inside) | (gpa & inside);
                return Some(NestedPage {
                    shift,
                    spa: at & !4095,
                    writable: write && wanted & DIRTY != 0,
                    executable: exec,
                });
            }
            table = entry & address;
            level -= 1;
        }
    }
}

impl NestedPage {
    fn allows(&self, want: Want) -> bool {
        match want {
            Want::Read => true,
            Want::Write => self.writable,
            Want::Exec => self.executable,
        }
    }
}
