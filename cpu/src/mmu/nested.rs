//! The second dimension: nested page tables and the RMP (APM vol. 2, 15.25 and 15.36.10).

use sevlab_arch::{Gpa, Spa};
use sevlab_memctl::{Domain, Grants, PageSize, RmpAccess};

use super::{Access, npf, pte};
use crate::stop::Stop;
use crate::vcpu::{SevMode, Vcpu};

/// What a guest physical address leads to.
#[derive(Clone, Copy)]
pub(super) struct Nested {
    pub(super) spa: Spa,
    /// Size of the nested page, as the RMP check compares it; `None` without nested paging.
    pub(super) size: Option<PageSize>,
    /// Writes are permitted and the nested dirty bit is set.
    pub(super) writable: bool,
    pub(super) executable: bool,
}

impl Nested {
    /// Without nested paging.
    pub(super) const fn same(gpa: u64) -> Self {
        Self {
            spa: Spa(gpa),
            size: None,
            writable: true,
            executable: true,
        }
    }

    /// Address and size, for [`Vcpu::check_rmp`].
    pub(super) fn at(&self) -> (Spa, Option<PageSize>) {
        (self.spa, self.size)
    }
}

fn access_bits(access: Access) -> u64 {
    npf::USER
        | match access {
            Access::Read => 0,
            Access::Write => npf::WRITE,
            Access::Exec => npf::FETCH,
        }
}

impl Vcpu {
    /// Translates a guest physical address. `stage` is [`npf::FINAL`] or [`npf::TABLE`]; `enc`: the
    /// effective C-bit, which SNP reports; `commit`: set nested accessed and dirty bits.
    pub(super) fn nested(
        &mut self,
        gpa: u64,
        access: Access,
        stage: u64,
        enc: bool,
        commit: bool,
    ) -> Result<Nested, Stop> {
        let enc = if enc && self.mode == SevMode::Snp {
            npf::ENC
        } else {
            0
        };
        let fault = |bits: u64| Stop::NestedFault {
            gpa: Gpa(gpa),
            error: bits | access_bits(access) | stage | enc,
        };
        let Some(root) = self.ncr3 else {
            if gpa >= self.mem.size() {
                return Err(fault(0));
            }
            return Ok(Nested::same(gpa));
        };
        if gpa >> 48 != 0 {
            return Err(fault(0));
        }
        if let Some(r) = self.paging.nested.get(gpa)
            && self.paging.log.is_none()
        {
            if r.leaf {
                let fits = match access {
                    Access::Read => true,
                    Access::Write => r.write && (r.dirty || !commit),
                    Access::Exec => r.exec,
                };
                if fits {
                    return Ok(Nested {
                        spa: Spa(r.spa | (gpa & pte::offset_mask(2))),
                        size: Some(PageSize::Size2M),
                        writable: r.write && r.dirty,
                        executable: r.exec,
                    });
                }
            } else {
                return self.nested_from(gpa, access, 1, r.spa, (r.write, r.exec), commit, fault);
            }
        }
        self.counters.nested_walks += 1;
        self.nested_from(
            gpa,
            access,
            4,
            root.0 & pte::ADDR_WITH_C & !self.paging.c_mask,
            (true, true),
            commit,
            fault,
        )
    }

    #[allow(clippy::too_many_arguments)] // one private walk step, every argument a register of it
    fn nested_from(
        &mut self,
        gpa: u64,
        access: Access,
        mut level: u32,
        mut table: u64,
        (mut write, mut exec): (bool, bool),
        commit: bool,
        fault: impl Fn(u64) -> Stop,
    ) -> Result<Nested, Stop> {
        loop {
            let at = Spa(table + pte::entry_offset(gpa, level));
            let entry = self.mem.read_u64(Domain::Shared, at).map_err(Stop::Host)?;
            if entry & pte::P == 0 {
                return Err(fault(0));
            }
            let is_leaf = level == 1 || (entry & pte::PS != 0 && level < 4);
            let mut reserved = self.paging.reserved;
            if level == 4 {
                reserved |= pte::PS;
            } else if is_leaf && level > 1 {
                reserved |= pte::offset_mask(level) & !0x1fff;
            }
            if entry & reserved != 0 {
                return Err(fault(npf::PRESENT | npf::RESERVED));
            }
            write &= entry & pte::W != 0;
            exec &= entry & pte::NX == 0;
            let denied = entry & pte::U == 0
                || (access == Access::Write && !write)
                || (access == Access::Exec && !exec);
            if denied {
                return Err(fault(npf::PRESENT));
            }
            let mut want = entry | pte::A;
            if is_leaf && access == Access::Write {
                want |= pte::D;
            }
            if let Some(log) = &mut self.paging.log {
                log.note(level as u8, gpa, at.0, commit && want != entry);
            }
            if commit && want != entry {
                self.mem
                    .or_u64(Domain::Shared, at, want & !entry)
                    .map_err(Stop::Host)?;
            }
            let address = entry & pte::ADDR_WITH_C & !self.paging.c_mask;
            if is_leaf {
                let dirty = want & pte::D != 0;
                let offset = pte::offset_mask(level);
                let spa = (address & !offset) | (gpa & offset);
                if level > 1 && commit {
                    let base = spa & !pte::offset_mask(2);
                    self.paging.nested.put(gpa, base, true, write, exec, dirty);
                }
                return Ok(Nested {
                    spa: Spa(spa),
                    size: Some(if level == 1 {
                        PageSize::Size4K
                    } else {
                        PageSize::Size2M
                    }),
                    writable: write && dirty,
                    executable: exec,
                });
            }
            table = address;
            level -= 1;
            if level == 1 && commit {
                self.paging
                    .nested
                    .put(gpa, table, false, write, exec, false);
            }
        }
    }

    /// What private accesses the RMP lets through (SNP only), without a fault's story.
    #[inline]
    pub(super) fn rmp_grants(&self, gpa: Gpa, nested: &Nested) -> Option<Grants> {
        let (gpa, spa) = (gpa.page(), nested.spa.page());
        let rmp = self.mem.rmp();
        rmp.grants(self.asid, gpa, spa, self.vmpl, nested.size).ok()
    }

    pub(super) fn rmp_access(&self, access: Access) -> RmpAccess {
        match access {
            Access::Read => RmpAccess::Read,
            Access::Write => RmpAccess::Write,
            Access::Exec if self.state.cpl == 3 => RmpAccess::ExecUser,
            Access::Exec => RmpAccess::ExecSupervisor,
        }
    }

    /// The RMP's word on a guest access (SNP only). A private access needs the frame to be this
    /// guest's, at this address, validated, with VMPL permission; a shared write must not hit a frame
    /// that is assigned to a guest.
    pub(crate) fn check_rmp(
        &self,
        gpa: Gpa,
        (spa, size): (Spa, Option<PageSize>),
        access: Access,
        private: bool,
        stage: u64,
    ) -> Result<(), Stop> {
        if self.mode != SevMode::Snp {
            return Ok(());
        }
        let rmp = self.mem.rmp();
        let (gpa_page, page) = (gpa.page(), spa.page());
        let result = if private {
            let access = self.rmp_access(access);
            match size {
                Some(size) => {
                    rmp.check_guest_sized(self.asid, gpa_page, page, access, self.vmpl, size)
                }
                None => rmp.check_guest(self.asid, gpa_page, page, access, self.vmpl),
            }
        } else if access == Access::Write {
            rmp.check_host_write(page)
        } else {
            Ok(())
        };
        result.map_err(|f| {
            let bits = if f.is_vc() {
                npf::NOT_VALIDATED | npf::ENC
            } else {
                f.npf_bits()
            };
            Stop::NestedFault {
                gpa,
                error: npf::PRESENT | access_bits(access) | stage | bits,
            }
        })
    }
}
