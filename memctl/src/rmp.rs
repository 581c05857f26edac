//! The reverse map table: which guest owns each page of DRAM, where it has it, and what its privilege levels may do there.
//!
//! The problem: the hypervisor owns the nested page tables, and could map one guest's page to another, or to another address.
//! The approach of SEV-SNP (APM vol. 2, 15.36): a table with one entry for each 4 KiB page, which only RMPUPDATE, PSMASH,
//! PVALIDATE, RMPADJUST and the firmware change, checked on every TLB fill and page walk. It lives in DRAM itself, 16 KiB of
//! bookkeeping and then 16 bytes a page; so it can be read, and attacked, where it is on hardware.
//!
//! Invariants:
//! 1. A change of an entry drops, before it returns, every fast-TLB entry of the pages it covers: no access goes on under the
//!    old one.
//! 2. If an entry at a 2 MiB boundary is assigned and has the 2 MiB size, it speaks for its 512 pages; RMPUPDATE refuses with
//!    FAIL_OVERLAP what would make two entries speak for one page.
//! 3. The table's own pages are the firmware's (assigned to ASID 0, immutable): no software writes them through a check.
//!
//! What hardware does and this does not: entries are never locked by another processor (FAIL_INUSE), and a VMSA is not marked
//! in use. With SNP off every check passes and every instruction fails; it is the CPU that raises #UD.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use sevlab_arch::rmp::{
    BOOKKEEPING_SIZE, NpfError, RMPADJUST_PERMS_SHIFT, RMPADJUST_VMPL_MASK, RMPADJUST_VMSA,
    RmpEntry, RmpStatus, RmpUpdate, VmplPerms,
};
use sevlab_arch::{Asid, Gpa, PAGE_SHIFT, PAGE_SIZE, Spa};
use thiserror::Error as ThisError;

use crate::ctl::Meta;
use crate::dram::Dram;
use crate::error::Error;
use crate::keys::MAX_ASID;
use crate::lock::Lock;
use crate::tlb::TlbSet;
use crate::view::View;

const ENTRY: u64 = size_of::<RmpEntry>() as u64;
/// Pages in 2 MiB.
const LARGE: u64 = 512;
/// RMP_BASE must be aligned to this (APM vol. 2, 15.36.4).
const BASE_ALIGN: u64 = 8192;

/// The size of a page in an RMP entry, a nested page table, or an operand of PVALIDATE and RMPADJUST.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum PageSize {
    /// 4 KiB.
    Size4K,
    /// 2 MiB.
    Size2M,
}

impl PageSize {
    /// Pages of 4 KiB in it.
    #[must_use]
    pub const fn pages(self) -> u64 {
        match self {
            Self::Size4K => 1,
            Self::Size2M => LARGE,
        }
    }

    const fn aligned(self, address: u64) -> bool {
        address.is_multiple_of(self.pages() * PAGE_SIZE)
    }

    const fn of(e: &RmpEntry) -> Self {
        if e.is_2m() {
            Self::Size2M
        } else {
            Self::Size4K
        }
    }
}

/// A guest access, in the terms of VMPL permissions.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum RmpAccess {
    /// Data read, page walks included.
    Read,
    /// Data write, accessed and dirty bits included.
    Write,
    /// Instruction fetch at CPL 3.
    ExecUser,
    /// Instruction fetch at CPL 0 to 2.
    ExecSupervisor,
}

impl RmpAccess {
    const fn needs(self) -> VmplPerms {
        match self {
            Self::Read => VmplPerms::READ,
            Self::Write => VmplPerms::WRITE,
            Self::ExecUser => VmplPerms::EXEC_USER,
            Self::ExecSupervisor => VmplPerms::EXEC_SUPERVISOR,
        }
    }
}

/// What a privilege level may do with a page that is the guest's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Grants(VmplPerms);

impl Grants {
    /// Whether the access is one of it.
    #[must_use]
    #[inline]
    pub const fn allow(self, access: RmpAccess) -> bool {
        self.0.contains(access.needs())
    }
}

/// Which rule of the RMP an access breaks.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum RmpReason {
    /// A private access to a page that is not assigned.
    NotAssigned,
    /// A write from outside to a page that is assigned.
    Assigned,
    /// The page is another guest's, or the firmware's.
    Asid,
    /// The page is the guest's, at another guest physical address.
    Gpa,
    /// The guest has not validated the page.
    NotValidated,
    /// The guest's privilege level lacks the permission.
    Vmpl,
    /// The nested page and the RMP entry have different sizes.
    NestedSize,
    /// PVALIDATE or RMPADJUST for 4 KiB on a 2 MiB entry.
    OperandSize,
}

/// An access the RMP refuses: a guest fault, not an error of the host.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ThisError)]
#[error("RMP violation at SPA {spa}: {reason:?}")]
pub struct RmpFault {
    /// The page.
    pub spa: Spa,
    /// What is wrong.
    pub reason: RmpReason,
}

impl RmpFault {
    /// The error code of the #VC that the guest gets for a page it has not validated.
    pub const VC_PAGE_NOT_VALIDATED: u32 = 0x404;

    /// Whether it is the guest that hears of it, as #VC with [`RmpFault::VC_PAGE_NOT_VALIDATED`], and not the hypervisor.
    #[must_use]
    pub fn is_vc(&self) -> bool {
        self.reason == RmpReason::NotValidated
    }

    /// What the RMP adds to EXITINFO1 of a #NPF (APM vol. 2, 15.36.10); none if [`RmpFault::is_vc`]. A write from outside by the
    /// hypervisor itself is a #PF, whose RMP bit is also bit 31.
    #[must_use]
    pub fn npf(&self) -> NpfError {
        match self.reason {
            RmpReason::NotValidated => NpfError::empty(),
            RmpReason::Assigned => NpfError::RMP,
            RmpReason::NotAssigned | RmpReason::Asid | RmpReason::Gpa | RmpReason::NestedSize => {
                NpfError::RMP | NpfError::ENC
            }
            RmpReason::Vmpl => NpfError::RMP | NpfError::ENC | NpfError::VMPL,
            RmpReason::OperandSize => NpfError::RMP | NpfError::ENC | NpfError::SIZEM,
        }
    }

    /// [`RmpFault::npf`] as a number.
    #[must_use]
    pub fn npf_bits(&self) -> u64 {
        self.npf().bits()
    }
}

/// What PVALIDATE leaves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Pvalidate {
    /// EAX.
    pub status: RmpStatus,
    /// CF: it succeeded and the page already was in that state. A guest must treat this as an attack.
    pub unchanged: bool,
}

/// RMPADJUST's operand in RDX.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RmpAdjust {
    /// Whose permissions to set.
    pub target_vmpl: u8,
    /// The permissions.
    pub perms: VmplPerms,
    /// Whether the page is to be a VMSA.
    pub vmsa: bool,
}

impl RmpAdjust {
    /// From RDX.
    #[must_use]
    pub const fn from_rdx(rdx: u64) -> Self {
        Self {
            target_vmpl: (rdx & RMPADJUST_VMPL_MASK) as u8,
            perms: VmplPerms::from_bits_truncate((rdx >> RMPADJUST_PERMS_SHIFT) as u8),
            vmsa: rdx & RMPADJUST_VMSA != 0,
        }
    }
}

/// The reverse map table of one machine.
pub struct Rmp {
    dram: Arc<Dram>,
    tlbs: Arc<TlbSet>,
    /// The view and the lock that its rights change under, which is taken after that of the table.
    view: Option<(Arc<View>, Arc<Lock<Meta>>)>,
    /// Bytes of DRAM.
    size: u64,
    base: Spa,
    enabled: bool,
    /// Held over each change: an instruction on the table is atomic.
    change: Mutex<()>,
    /// Grows with each change.
    epoch: AtomicU64,
}

impl Rmp {
    /// The table of `size` bytes of DRAM, at their end; nothing is assigned but the table itself.
    pub(crate) fn new(
        size: u64,
        enabled: bool,
        dram: Arc<Dram>,
        tlbs: Arc<TlbSet>,
        view: Option<(Arc<View>, Arc<Lock<Meta>>)>,
    ) -> Result<Self, Error> {
        let table = BOOKKEEPING_SIZE + (size >> PAGE_SHIFT) * ENTRY;
        let base = match size.checked_sub(table) {
            _ if !enabled => size,
            Some(b) if b >= BASE_ALIGN => b & !(BASE_ALIGN - 1),
            _ => {
                return Err(Error::Size {
                    size,
                    why: "too small to hold its RMP",
                });
            }
        };
        let rmp = Self {
            dram,
            tlbs,
            view,
            size,
            base: Spa(base),
            enabled,
            change: Mutex::new(()),
            epoch: AtomicU64::new(0),
        };
        let own = RmpEntry::ASSIGNED | RmpEntry::IMMUTABLE;
        for pfn in rmp.base.pfn()..size >> PAGE_SHIFT {
            rmp.put(pfn, RmpEntry { lo: own, hi: 0 });
        }
        Ok(rmp)
    }

    /// No instruction changes the table as long as the result lives.
    pub(crate) fn freeze(&self) -> MutexGuard<'_, ()> {
        self.change()
    }

    /// Whether SNP is on.
    #[must_use]
    pub fn is_enabled(&self) -> bool {
        self.enabled
    }

    /// MSR RMP_BASE: where the table starts; without SNP, the end of DRAM.
    #[must_use]
    pub fn base(&self) -> Spa {
        self.base
    }

    /// MSR RMP_END: the table's last byte; 0 without SNP.
    #[must_use]
    pub fn end(&self) -> Spa {
        Spa(if self.enabled { self.size - 1 } else { 0 })
    }

    /// A number that grows with each change of the table: what a check of an entry said holds as long as it stays.
    #[must_use]
    #[inline]
    pub fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Acquire)
    }

    /// Where [`Rmp::epoch`] is, as long as the table.
    #[must_use]
    pub fn epoch_word(&self) -> *const u64 {
        self.epoch.as_ptr()
    }

    /// The entry that speaks for a page: its own, or its 2 MiB region's with the guest physical address moved along. None if the
    /// table has no entry for it.
    #[must_use]
    pub fn lookup(&self, spa: Spa) -> Option<RmpEntry> {
        let pfn = spa.pfn();
        if !self.enabled || spa.0 >= self.size {
            return None;
        }
        let head = pfn & !(LARGE - 1);
        let e = self.get(head);
        if e.assigned() && e.is_2m() {
            let mut e = e;
            let gpa = e.gpa().wrapping_add((pfn - head) << PAGE_SHIFT) & RmpEntry::GPA_MASK;
            e.lo = e.lo & !RmpEntry::GPA_MASK | gpa;
            return Some(e);
        }
        Some(self.get(pfn))
    }

    // ---- the hypervisor's instructions ----

    /// RMPUPDATE: gives a page (or 2 MiB of them) to a guest or takes it away. Whatever the guest had validated or permitted
    /// there is void: VMPL0 has every permission, the others none.
    #[must_use]
    pub fn rmpupdate(&self, spa: Spa, new: &RmpUpdate) -> RmpStatus {
        let size = match new.page_size {
            0 => PageSize::Size4K,
            1 => PageSize::Size2M,
            _ => return RmpStatus::FAIL_INPUT,
        };
        let gpa_ok = size.aligned(new.gpa) && new.gpa & !RmpEntry::GPA_MASK == 0;
        if !self.enabled
            || new.assigned > 1
            || new.immutable > 1
            || new.asid > MAX_ASID
            || !gpa_ok
            || !self.covers(spa, size)
        {
            return RmpStatus::FAIL_INPUT;
        }
        let _change = self.change();
        let pfn = spa.pfn();
        let head = pfn & !(LARGE - 1);
        match size {
            PageSize::Size4K => {
                let over = self.get(head);
                // A 4 KiB entry at the head itself may replace nothing larger either: PSMASH first.
                if over.assigned() && over.is_2m() {
                    return RmpStatus::FAIL_OVERLAP;
                }
            }
            PageSize::Size2M => {
                let here = self.get(pfn);
                let large = here.assigned() && here.is_2m();
                if !large && (pfn..pfn + LARGE).any(|p| self.get(p).assigned()) {
                    return RmpStatus::FAIL_OVERLAP;
                }
            }
        }
        if self.get(pfn).immutable() {
            return RmpStatus::FAIL_PERMISSION;
        }
        let mut e = RmpEntry { lo: 0, hi: 0 };
        if new.assigned == 1 {
            let mut flags = RmpEntry::ASSIGNED;
            if size == PageSize::Size2M {
                flags |= RmpEntry::PAGE_2M;
            }
            if new.immutable == 1 {
                flags |= RmpEntry::IMMUTABLE;
            }
            e.lo = RmpEntry::pack(new.gpa, new.asid, flags);
            e.set_perms(0, VmplPerms::FULL.bits());
        }
        self.put(pfn, e);
        self.drop_tlb(pfn, size);
        RmpStatus::SUCCESS
    }

    /// PSMASH: splits a 2 MiB entry into 512 of 4 KiB that say the same.
    #[must_use]
    pub fn psmash(&self, spa: Spa) -> RmpStatus {
        if !self.enabled || !self.covers(spa, PageSize::Size2M) {
            return RmpStatus::FAIL_INPUT;
        }
        let _change = self.change();
        let e = self.get(spa.pfn());
        if !(e.assigned() && e.is_2m()) {
            return RmpStatus::FAIL_INPUT;
        }
        if e.immutable() {
            return RmpStatus::FAIL_PERMISSION;
        }
        let gpa = e.gpa();
        let lo = e.lo & !(RmpEntry::GPA_MASK | RmpEntry::PAGE_2M);
        // The head last: until then it speaks for all of them.
        for i in (0..LARGE).rev() {
            let gpa = gpa.wrapping_add(i << PAGE_SHIFT) & RmpEntry::GPA_MASK;
            let lo = lo | gpa;
            self.put(spa.pfn() + i, RmpEntry { lo, hi: e.hi });
        }
        RmpStatus::SUCCESS
    }

    // ---- the guest's instructions ----

    /// PVALIDATE of the page at `gpa`, which the nested tables map to `spa`. That only VMPL0 may is for the CPU to check (#GP).
    ///
    /// # Errors
    /// The #NPF, if the page is not the guest's at `gpa`, or if a 4 KiB page is asked for under a 2 MiB entry.
    pub fn pvalidate(
        &self,
        asid: Asid,
        gpa: Gpa,
        spa: Spa,
        size: PageSize,
        validate: bool,
    ) -> Result<Pvalidate, RmpFault> {
        let fail = |status| {
            Ok(Pvalidate {
                status,
                unchanged: false,
            })
        };
        if !self.enabled || !size.aligned(gpa.page().0) {
            return fail(RmpStatus::FAIL_INPUT);
        }
        let _change = self.change();
        let (pfn, mut e) = match self.operand(asid, gpa, spa, size)? {
            Ok(found) => found,
            Err(status) => return fail(status),
        };
        let unchanged = e.validated() == validate;
        if !unchanged {
            e.lo ^= RmpEntry::VALIDATED;
            self.put(pfn, e);
            self.drop_tlb(pfn, size);
        }
        Ok(Pvalidate {
            status: RmpStatus::SUCCESS,
            unchanged,
        })
    }

    /// RMPADJUST by privilege level `vmpl` on the page at `gpa`, which the nested tables map to `spa`.
    ///
    /// # Errors
    /// The #NPF, if the page is not the guest's at `gpa`, or if a 4 KiB page is asked for under a 2 MiB entry; the #VC, if it is
    /// not validated.
    pub fn rmpadjust(
        &self,
        asid: Asid,
        gpa: Gpa,
        spa: Spa,
        size: PageSize,
        vmpl: u8,
        adjust: RmpAdjust,
    ) -> Result<RmpStatus, RmpFault> {
        if !self.enabled || !size.aligned(gpa.page().0) || adjust.target_vmpl > 3 || vmpl > 3 {
            return Ok(RmpStatus::FAIL_INPUT);
        }
        if adjust.target_vmpl <= vmpl {
            return Ok(RmpStatus::FAIL_PERMISSION);
        }
        let _change = self.change();
        let (pfn, mut e) = match self.operand(asid, gpa, spa, size)? {
            Ok(found) => found,
            Err(status) => return Ok(status),
        };
        if !e.validated() {
            return Err(RmpFault {
                spa: spa.page(),
                reason: RmpReason::NotValidated,
            });
        }
        let own = VmplPerms::from_bits_truncate(e.perms(vmpl));
        // Only VMPL0 makes or unmakes a VMSA.
        if !own.contains(adjust.perms) || adjust.vmsa && vmpl != 0 {
            return Ok(RmpStatus::FAIL_PERMISSION);
        }
        if adjust.vmsa && size != PageSize::Size4K {
            return Ok(RmpStatus::FAIL_INPUT);
        }
        e.set_perms(adjust.target_vmpl, adjust.perms.bits());
        if vmpl == 0 {
            e.lo &= !RmpEntry::VMSA;
            if adjust.vmsa {
                e.lo |= RmpEntry::VMSA;
            }
        }
        self.put(pfn, e);
        self.drop_tlb(pfn, size);
        Ok(RmpStatus::SUCCESS)
    }

    // ---- checks ----

    /// A private access by a guest, whatever the size of its nested page.
    ///
    /// # Errors
    /// The fault.
    pub fn check_guest(
        &self,
        asid: Asid,
        gpa: Gpa,
        spa: Spa,
        access: RmpAccess,
        vmpl: u8,
    ) -> Result<(), RmpFault> {
        self.check(asid, gpa, spa, access, vmpl, None)
    }

    /// [`Rmp::check_guest`] where the nested tables map the page with size `nested`, which must be the RMP entry's.
    ///
    /// # Errors
    /// The fault.
    pub fn check_guest_sized(
        &self,
        asid: Asid,
        gpa: Gpa,
        spa: Spa,
        access: RmpAccess,
        vmpl: u8,
        nested: PageSize,
    ) -> Result<(), RmpFault> {
        self.check(asid, gpa, spa, access, vmpl, Some(nested))
    }

    /// A write without the C-bit: by the hypervisor (a refusal is a #PF with bit 31 of its error code), by a guest to a shared
    /// page (a #NPF), or by a device. Reads need no check: they see ciphertext.
    ///
    /// # Errors
    /// The fault.
    pub fn check_host_write(&self, spa: Spa) -> Result<(), RmpFault> {
        match self.lookup(spa) {
            Some(e) if e.assigned() => Err(RmpFault {
                spa: spa.page(),
                reason: RmpReason::Assigned,
            }),
            _ => Ok(()),
        }
    }

    /// What private accesses to the page may do by privilege level `vmpl`: [`Rmp::check_guest_sized`] for all of them at once, or
    /// [`Rmp::check_guest`] without a size.
    ///
    /// # Errors
    /// The fault of any access.
    pub fn grants(
        &self,
        asid: Asid,
        gpa: Gpa,
        spa: Spa,
        vmpl: u8,
        nested: Option<PageSize>,
    ) -> Result<Grants, RmpFault> {
        if !self.enabled {
            return Ok(Grants(VmplPerms::FULL));
        }
        let e = self.owned(asid, gpa, spa, |e| {
            nested.is_none_or(|n| n == PageSize::of(e))
        })?;
        if !e.validated() {
            return Err(RmpFault {
                spa: spa.page(),
                reason: RmpReason::NotValidated,
            });
        }
        Ok(Grants(VmplPerms::from_bits_truncate(e.perms(vmpl))))
    }

    fn check(
        &self,
        asid: Asid,
        gpa: Gpa,
        spa: Spa,
        access: RmpAccess,
        vmpl: u8,
        nested: Option<PageSize>,
    ) -> Result<(), RmpFault> {
        if self.grants(asid, gpa, spa, vmpl, nested)?.allow(access) {
            return Ok(());
        }
        Err(RmpFault {
            spa: spa.page(),
            reason: RmpReason::Vmpl,
        })
    }

    /// The entry that speaks for `spa`, if the page is the guest's at `gpa`; the checks in the hardware's order.
    fn owned(
        &self,
        asid: Asid,
        gpa: Gpa,
        spa: Spa,
        size_ok: impl Fn(&RmpEntry) -> bool,
    ) -> Result<RmpEntry, RmpFault> {
        let fault = |reason| {
            Err(RmpFault {
                spa: spa.page(),
                reason,
            })
        };
        match self.lookup(spa) {
            Some(e) if !e.assigned() => fault(RmpReason::NotAssigned),
            None => fault(RmpReason::NotAssigned),
            Some(e) if e.asid() != asid.0 => fault(RmpReason::Asid),
            Some(e) if !size_ok(&e) => fault(RmpReason::NestedSize),
            Some(e) if e.gpa() != gpa.page().0 => fault(RmpReason::Gpa),
            Some(e) => Ok(e),
        }
    }

    /// The entry to change, for an instruction on a page of `size`: its page number and its content, or why not.
    #[allow(clippy::type_complexity)] // a fault of the guest, or a status for the guest, or the entry
    fn operand(
        &self,
        asid: Asid,
        gpa: Gpa,
        spa: Spa,
        size: PageSize,
    ) -> Result<Result<(u64, RmpEntry), RmpStatus>, RmpFault> {
        let e = self.owned(asid, gpa, spa, |_| true)?;
        match (size, PageSize::of(&e)) {
            (PageSize::Size4K, PageSize::Size2M) => Err(RmpFault {
                spa: spa.page(),
                reason: RmpReason::OperandSize,
            }),
            (PageSize::Size2M, PageSize::Size4K) => Ok(Err(RmpStatus::FAIL_SIZEMISMATCH)),
            // A 2 MiB entry whose guest address is aligned, as `gpa` is, so `spa` is the head.
            _ => Ok(Ok((spa.pfn(), e))),
        }
    }

    // ---- the table ----

    fn change(&self) -> MutexGuard<'_, ()> {
        self.change.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn covers(&self, spa: Spa, size: PageSize) -> bool {
        let bytes = size.pages() * PAGE_SIZE;
        size.aligned(spa.0) && spa.0.checked_add(bytes).is_some_and(|end| end <= self.size)
    }

    fn at(&self, pfn: u64) -> u64 {
        self.base.0 + BOOKKEEPING_SIZE + pfn * ENTRY
    }

    fn get(&self, pfn: u64) -> RmpEntry {
        let at = self.at(pfn);
        RmpEntry {
            lo: self.dram.raw.load(at),
            hi: self.dram.raw.load(at + 8),
        }
    }

    /// Permissions first, so that a reader never sees an entry valid with what another had.
    fn put(&self, pfn: u64, e: RmpEntry) {
        let at = self.at(pfn);
        self.dram.store_raw(at + 8, e.hi);
        self.dram.store_raw(at, e.lo);
        self.epoch.fetch_add(1, Ordering::Release);
    }

    fn drop_tlb(&self, pfn: u64, size: PageSize) {
        let (spa, pages) = (pfn << PAGE_SHIFT, size.pages());
        self.tlbs.drop_host_range(self.dram.raw.ptr(spa), pages);
        if let Some(plain) = self.dram.plain_of() {
            self.tlbs.drop_host_range(plain.ptr(spa), pages);
        }
        if let Some((view, meta)) = &self.view
            && (pfn..pfn + pages).any(|p| view.place(p).in_view())
        {
            let meta = meta.lock();
            (pfn..pfn + pages).for_each(|p| view.park_page(&meta.slots, &self.tlbs, p));
        }
    }
}
