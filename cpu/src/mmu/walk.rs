//! The guest dimension: a 4-level long-mode walk (APM vol. 2, 5.3 and 5.6).

use sevlab_arch::paging::{Cr0, Cr4};
use sevlab_arch::{Gpa, Spa, Va};

use sevlab_memctl::{Domain, PageSize};

use super::again::Seen;
use super::cache::{Rights, Table};
use super::nested::Nested;
use super::{Access, Translation, npf, pte};
use crate::model::{Entry, WalkLog};
use crate::stop::{Exception, Stop};
use crate::vcpu::{SevMode, Vcpu};

const CR0_WP: u64 = Cr0::WP.bits();
const CR0_PG: u64 = Cr0::PG.bits();
const CR4_SMEP: u64 = Cr4::SMEP.bits();
pub(super) const CR4_SMAP: u64 = Cr4::SMAP.bits();
const EFER_NXE: u64 = 1 << 11;
const RFLAGS_AC: u64 = 1 << 18;

/// #PF error code bits.
mod pf {
    use sevlab_arch::paging::PfError;
    pub const P: u32 = PfError::P.bits();
    pub const W: u32 = PfError::W.bits();
    pub const U: u32 = PfError::U.bits();
    pub const RSVD: u32 = PfError::RSVD.bits();
    pub const I: u32 = PfError::ID.bits();
}

/// Why a guest walk ended without a translation.
enum Miss {
    /// Error code bits P and RSVD of the #PF.
    Fault(u32),
    Stop(Stop),
}

impl From<Stop> for Miss {
    fn from(s: Stop) -> Self {
        Miss::Stop(s)
    }
}

/// The leaf of a guest walk.
pub(super) struct Leaf {
    pub(super) gpa: u64,
    /// The C-bit.
    pub(super) private: bool,
    pub(super) rights: Rights,
    pub(super) dirty: bool,
}

/// The rules of the moment, read once per walk.
#[derive(Clone, Copy)]
pub(super) struct Rules {
    user: bool,
    wp: bool,
    pub(super) nxe: bool,
    smep: bool,
    smap: bool,
}

impl Rules {
    fn may_write(self, r: Rights) -> bool {
        if self.user {
            r.user && r.write
        } else {
            (r.write || !self.wp) && !(self.smap && r.user)
        }
    }
    fn may_exec(self, r: Rights) -> bool {
        r.exec
            && if self.user {
                r.user
            } else {
                !(self.smep && r.user)
            }
    }
    pub(super) fn allows(self, access: Access, r: Rights) -> bool {
        match access {
            Access::Read => {
                if self.user {
                    r.user
                } else {
                    !(self.smap && r.user)
                }
            }
            Access::Write => self.may_write(r),
            Access::Exec => self.may_exec(r),
        }
    }
    fn error(self, access: Access, bits: u32) -> u32 {
        bits | if self.user { pf::U } else { 0 }
            | match access {
                Access::Read => 0,
                Access::Write => pf::W,
                Access::Exec if self.nxe || self.smep => pf::I,
                Access::Exec => 0,
            }
    }
}

impl Vcpu {
    pub(super) fn rules(&self) -> Rules {
        let s = &self.state;
        Rules {
            user: s.cpl == 3,
            wp: s.sys.cr0 & CR0_WP != 0,
            nxe: s.sys.efer & EFER_NXE != 0,
            smep: s.sys.cr4 & CR4_SMEP != 0,
            smap: s.sys.cr4 & CR4_SMAP != 0 && s.rflags & RFLAGS_AC == 0,
        }
    }

    /// The whole translation. `commit`: set accessed and dirty bits and fill the walk caches.
    pub(super) fn walk(
        &mut self,
        va: u64,
        access: Access,
        commit: bool,
    ) -> Result<Translation, Stop> {
        let rules = self.rules();
        let leaf = if self.unpaged() {
            // Unpaged: identity, and private in an encrypted guest (APM vol. 2, 15.34.5).
            Leaf {
                gpa: va & ((1 << 52) - 1) & !self.paging.c_mask,
                private: true,
                rights: Rights {
                    write: true,
                    user: true,
                    exec: true,
                },
                dirty: true,
            }
        } else {
            if ((va as i64) << 16 >> 16) as u64 != va {
                return Err(Exception::GENERAL_PROTECTION.into());
            }
            self.guest_walk(va, access, rules, commit)?
        };
        let encrypted = self.mode.encrypted();
        let effective = encrypted && (leaf.private || access == Access::Exec);
        if let Some(log) = &mut self.paging.log {
            log.guest = 0;
        }
        let nested = self.nested(leaf.gpa, access, npf::FINAL, effective, commit)?;
        if let Some(log) = &mut self.paging.log {
            log.nested = nested.size;
        }
        self.permit(&leaf, &nested, access, rules)
    }

    /// What a guest leaf and the nested page behind it come to, with the RMP's checks.
    pub(super) fn permit(
        &self,
        leaf: &Leaf,
        nested: &Nested,
        access: Access,
        rules: Rules,
    ) -> Result<Translation, Stop> {
        let encrypted = self.mode.encrypted();
        let private = leaf.private && encrypted;
        let fetch = access == Access::Exec;
        let effective = private || (fetch && encrypted);
        let gpa = Gpa(leaf.gpa);
        // One look at a private page's entry answers for all kinds of access.
        let grants = match effective && self.mode == SevMode::Snp {
            true => self.rmp_grants(gpa, nested),
            false => None,
        };
        let allows = |a: Access| match grants {
            Some(g) => g.allow(self.rmp_access(a)),
            None => self
                .check_rmp(gpa, nested.at(), a, effective, npf::FINAL)
                .is_ok(),
        };
        if grants.is_none_or(|g| !g.allow(self.rmp_access(access))) {
            self.check_rmp(gpa, nested.at(), access, effective, npf::FINAL)?;
        }
        let unpaged = self.unpaged();
        let mut writable =
            leaf.dirty && nested.writable && (unpaged || rules.may_write(leaf.rights));
        if writable && access != Access::Write {
            writable = allows(Access::Write);
        }
        let mut executable = nested.executable && (unpaged || rules.may_exec(leaf.rights));
        if executable && !fetch {
            executable = effective == encrypted && allows(Access::Exec);
        }
        Ok(Translation {
            gpa,
            spa: nested.spa,
            private,
            domain: self.domain(effective),
            writable,
            executable,
            user: leaf.rights.user && !unpaged,
        })
    }

    /// A walk from CR3 that uses no cache and notes what it reads, for a model's TLB. `seen`: what was read already.
    pub(crate) fn model_walk(
        &mut self,
        va: u64,
        access: Access,
        seen: Seen,
    ) -> Result<(Entry, WalkLog), Stop> {
        let epoch = self.mem.rmp().epoch();
        self.paging.log = Some(Box::new(WalkLog {
            seen,
            ..WalkLog::default()
        }));
        let walked = self.walk(va, access, true);
        let log = *self.paging.log.take().unwrap_or_default();
        let e = self.entry_of(&walked?, log.leaf, log.nested);
        self.remember_walk(va, &log, epoch);
        Ok((e, log))
    }

    /// A TLB entry for what a walk to a leaf of that level has found.
    pub(super) fn entry_of(&self, t: &Translation, leaf: u8, nested: Option<PageSize>) -> Entry {
        let e = Entry {
            gpa: 0,
            spa: 0,
            private: t.private,
            writable: t.writable,
            executable: t.executable,
            user: self.state.cpl == 3,
            large: leaf != 1 && nested != Some(PageSize::Size4K),
            nested,
        };
        Entry {
            gpa: t.gpa.0 & !e.mask(),
            spa: t.spa.0 & !e.mask(),
            ..e
        }
    }

    pub(super) fn unpaged(&self) -> bool {
        self.state.sys.cr0 & CR0_PG == 0
    }

    /// Whether the RMP lets an access through that a TLB entry allows.
    pub(crate) fn rmp_allows(&self, e: &Entry, va: u64, access: Access) -> bool {
        let offset = va & e.mask();
        let private = e.private || access == Access::Exec;
        let at = (Spa(e.spa | offset), e.nested);
        self.check_rmp(Gpa(e.gpa | offset), at, access, private, npf::FINAL)
            .is_ok()
    }

    fn guest_walk(
        &mut self,
        va: u64,
        access: Access,
        rules: Rules,
        commit: bool,
    ) -> Result<Leaf, Stop> {
        if let Some((level, table)) = self.paging.walk.get(va)
            && self.paging.log.is_none()
        {
            match self.descend(va, access, rules, level, table, commit) {
                Ok(leaf) => {
                    self.counters.short_walks += 1;
                    return Ok(leaf);
                }
                // A nested fault through a stale upper level could be as wrong as a guest fault.
                Err(Miss::Stop(Stop::Host(e))) => return Err(Stop::Host(e)),
                Err(_) => self.paging.walk.flush(),
            }
        }
        self.counters.full_walks += 1;
        let all = Rights {
            write: true,
            user: true,
            exec: true,
        };
        let root = self.state.sys.cr3 & pte::ADDR_WITH_C & !self.paging.c_mask;
        if let Some(log) = &mut self.paging.log {
            log.guest = 4;
        }
        let at = self.table_at(root, commit)?;
        let root = Table::new(root, at, all);
        match self.descend(va, access, rules, 4, root, commit) {
            Ok(leaf) => Ok(leaf),
            Err(Miss::Stop(s)) => Err(s),
            Err(Miss::Fault(bits)) => {
                Err(Exception::page_fault(Va(va), rules.error(access, bits)).into())
            }
        }
    }

    /// Walks from `table` at `level` to the leaf.
    fn descend(
        &mut self,
        va: u64,
        access: Access,
        rules: Rules,
        mut level: u32,
        mut table: Table,
        commit: bool,
    ) -> Result<Leaf, Miss> {
        let domain = self.domain(true);
        // Entries passed, and tables found below them, kept until the walk is known to succeed.
        let mut passed = [(0u64, 0u64); 4];
        let mut found = [None; 2];
        loop {
            let at = pte::entry_offset(va, level);
            let entry_spa = table.spa + at;
            self.check_rmp(
                Gpa(table.gpa + at),
                (Spa(entry_spa), table.size),
                Access::Read,
                true,
                npf::TABLE,
            )?;
            let entry = self.read_entry(domain, entry_spa).map_err(Stop::Host)?;
            if let Some(log) = &mut self.paging.log {
                log.note(0, table.gpa + at, entry_spa, false);
            }
            if entry & pte::P == 0 {
                return Err(Miss::Fault(0));
            }
            let address = entry & pte::ADDR_WITH_C & !self.paging.c_mask;
            let is_leaf = level == 1 || (entry & pte::PS != 0 && level < 4);
            let mut reserved = self.paging.reserved;
            if level == 4 {
                reserved |= pte::PS;
            } else if is_leaf && level > 1 {
                // Bit 12 of a large leaf is its PAT bit.
                reserved |= pte::offset_mask(level) & !0x1fff;
            }
            if !rules.nxe {
                reserved |= pte::NX;
            }
            if entry & reserved != 0 {
                return Err(Miss::Fault(pf::P | pf::RSVD));
            }
            let rights = table.rights.and(entry);
            if !is_leaf {
                passed[level as usize - 1] = (entry_spa, entry);
                level -= 1;
                if let Some(log) = &mut self.paging.log {
                    log.guest = level as u8;
                }
                table = Table::new(address, self.table_at(address, commit)?, rights);
                if level <= 2 {
                    found[level as usize - 1] = Some(table);
                }
                continue;
            }
            if !rules.allows(access, rights) {
                return Err(Miss::Fault(pf::P));
            }
            if let Some(log) = &mut self.paging.log {
                log.leaf = level as u8;
            }
            let dirty = entry & pte::D != 0 || access == Access::Write;
            if commit {
                let mut want = entry | pte::A;
                if access == Access::Write {
                    want |= pte::D;
                }
                for &(spa, old) in &passed {
                    if spa != 0 && old & pte::A == 0 {
                        self.set_bits(spa, pte::A, domain)?;
                    }
                }
                if want != entry {
                    self.check_rmp(
                        Gpa(table.gpa + at),
                        (Spa(entry_spa), table.size),
                        Access::Write,
                        true,
                        npf::TABLE,
                    )?;
                    self.set_bits(entry_spa, want & !entry, domain)?;
                }
                for (i, t) in found.iter().enumerate() {
                    if let Some(t) = t {
                        self.paging.walk.put(va, i as u32 + 1, *t);
                    }
                }
            }
            let offset = pte::offset_mask(level);
            return Ok(Leaf {
                gpa: (address & !offset) | (va & offset),
                private: entry & self.paging.c_mask != 0,
                rights,
                dirty,
            });
        }
    }

    /// A guest entry, which a walk that notes what it reads may have read before.
    fn read_entry(&mut self, domain: Domain, spa: u64) -> Result<u64, sevlab_memctl::Error> {
        let Some(log) = &mut self.paging.log else {
            return self.mem.read_u64(domain, Spa(spa));
        };
        if let Some(value) = log.seen.value(spa) {
            return Ok(value);
        }
        let value = self.mem.read_u64(domain, Spa(spa))?;
        log.seen.note(spa, value);
        Ok(value)
    }

    /// Sets bits of an entry, atomically against the walks of other vCPUs.
    fn set_bits(&mut self, spa: u64, bits: u64, domain: Domain) -> Result<(), Stop> {
        if let Some(log) = &mut self.paging.log {
            log.changed(spa);
        }
        self.mem.or_u64(domain, Spa(spa), bits).map_err(Stop::Host)
    }

    /// Nested translation of a guest table's address: as a user write (APM vol. 2, 15.25.5), because
    /// the walk may set bits in it.
    fn table_at(&mut self, gpa: u64, commit: bool) -> Result<(Spa, Option<PageSize>), Stop> {
        let enc = self.mode.encrypted();
        Ok(self
            .nested(gpa, Access::Write, npf::TABLE, enc, commit)?
            .at())
    }
}
